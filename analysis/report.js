"use strict";
document.documentElement.classList.add("js");
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const one = (selector, root = document) => root.querySelector(selector);

// Tables: a click on a column's name sorts our models: best first, then worst first, then in the original order.
for (const table of all("table.results")) {
  const bodies = all("tbody:not(.published)", table), published = one("tbody.published", table);
  const rows = bodies.filter((body) => !body.matches(".section")).flatMap((body) => all("tr:not(.difference)", body));
  const sorted = document.createElement("tbody");
  const homes = rows.map((row) => [row.parentElement, row.nextElementSibling]);
  const restore = () => {
    for (let k = rows.length - 1; k >= 0; k--) homes[k][0].insertBefore(rows[k], homes[k][1]);
    sorted.remove();
    bodies.forEach((body) => { body.hidden = false; });
  };
  for (const button of all("th button", table)) {
    button.addEventListener("click", () => {
      const head = button.parentElement, was = head.getAttribute("aria-sort");
      all("th[aria-sort]", table).forEach((other) => other.removeAttribute("aria-sort"));
      restore();
      if (was === "ascending") return;
      head.setAttribute("aria-sort", was ? "ascending" : "descending");
      const value = (row) => parseFloat(row.cells[1 + +button.dataset.column].dataset.value);
      const sign = was ? 1 : -1, last = (x) => (isNaN(x) ? Infinity : sign * x);
      sorted.append(...[...rows].sort((a, b) => last(value(a)) - last(value(b))));
      bodies.forEach((body) => { body.hidden = true; });
      table.insertBefore(sorted, published);
    });
  }
}

// What is wider than its place says so, until the reader has come to its end.
for (const box of all(".scroll")) {
  const look = () => box.classList.toggle("more", box.scrollWidth - box.clientWidth - box.scrollLeft > 2);
  box.addEventListener("scroll", look, { passive: true });
  new ResizeObserver(look).observe(box);
}

for (const button of all("button.copy")) {
  button.addEventListener("click", async () => {
    const content = document.getElementById(button.dataset.copy).href.split(",")[1];
    const text = new TextDecoder().decode(Uint8Array.from(atob(content), (character) => character.charCodeAt(0)));
    try {
      await navigator.clipboard.writeText(text);
    } catch {  // without permission, select the text and copy it the old way
      const area = document.createElement("textarea");
      area.value = text;
      button.after(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy as LaTeX"; }, 2000);
  });
}

// A number opens its records in a dialog. Without scripts, its link leads to the record in the page.
const dialog = one("dialog"), inside = one("dialog > div");
one("button", dialog).addEventListener("click", () => dialog.close());
dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
for (const link of all("a[data-records]")) {
  link.addEventListener("click", (event) => {
    event.preventDefault();
    const numbers = link.dataset.records.split(" ");
    inside.replaceChildren(...numbers.map((number) => {
      const copy = one(`details[data-record="${number}"]`).cloneNode(true);
      one("dl", copy).removeAttribute("id");
      copy.open = numbers.length === 1;
      return copy;
    }));
    one("h2", dialog).textContent = numbers.length === 1 ? "The record of this number" : `The ${numbers.length} records of this number`;
    dialog.showModal();
  });
}

// t-SNE: canvases over the same images, which zoom, show the image under the pointer and mark it in every panel.
const THUMBNAIL = 32, GRID = 4095, MARGIN = 0.03;
for (const figure of all(".tsne")) {
  const data = JSON.parse(one(".data", figure).textContent), sheet = one(".sheet", figure), live = one(".live", figure);
  const columns = Math.ceil(Math.sqrt(data.labels.length)), only = new Set();
  const panels = all(".map", figure).map((element, k) => makePanel(element, data.panels[k]));
  let chosen = -1;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const dots = all(".classes .dot", figure);

  function colour(label) {
    if (!dots.length) return `hsl(${(label * 137.5) % 360} 55% ${dark.matches ? 65 : 42}%)`;
    return getComputedStyle(dots[label]).backgroundColor;
  }

  const draw = () => panels.forEach((panel) => panel.draw());

  function choose(index, panel) {
    if (index === chosen && panel.tipShown) return;
    chosen = index;
    panels.forEach((other) => { other.tip(other === panel ? index : -1); other.paint(); });
    live.textContent = index < 0 ? "" : `Image ${index}: ${data.classes[data.labels[index]]}`;
  }

  function makePanel(element, { points }) {
    const canvas = one("canvas", element), context = canvas.getContext("2d"), tip = one(".tip", element);
    const view = { x: 0.5, y: 0.5, scale: 1 }, pointers = new Map();
    const layer = document.createElement("canvas");  // all points; the canvas shows it with a ring around the chosen one
    const side = () => canvas.clientWidth;
    const along = (v, middle) => side() * (0.5 + (MARGIN + (1 - 2 * MARGIN) * v - middle) * view.scale);
    const place = (i) => [along(points[2 * i] / GRID, view.x), along(1 - points[2 * i + 1] / GRID, view.y)];
    const radius = () => Math.max(1.3, Math.min(5, 60 / Math.sqrt(data.labels.length))) * Math.sqrt(view.scale) * side() / 400;
    const shown = (i) => !only.size || only.has(data.labels[i]);
    const panel = {
      tipShown: false,
      draw() {
        const ratio = devicePixelRatio || 1, size = side(), colours = data.classes.map((_, label) => colour(label));
        if (!size) return;
        layer.width = layer.height = canvas.width = canvas.height = Math.round(size * ratio);
        const brush = layer.getContext("2d");
        brush.scale(ratio, ratio);
        brush.globalAlpha = 0.85;
        for (let i = 0; i < data.labels.length; i++) {
          if (!shown(i)) continue;
          const [x, y] = place(i);
          if (x < -9 || y < -9 || x > size + 9 || y > size + 9) continue;
          brush.fillStyle = colours[data.labels[i]];
          brush.beginPath();
          brush.arc(x, y, radius(), 0, 7);
          brush.fill();
        }
        panel.paint();
      },
      paint() {
        context.setTransform(1, 0, 0, 1, 0, 0);
        context.clearRect(0, 0, canvas.width, canvas.height);
        context.drawImage(layer, 0, 0);
        if (chosen < 0) return;
        context.scale(canvas.width / side(), canvas.width / side());
        context.lineWidth = 2;
        context.strokeStyle = getComputedStyle(canvas).color;
        context.beginPath();
        context.arc(...place(chosen), radius() + 4, 0, 7);
        context.stroke();
      },
      tip(index) {
        panel.tipShown = index >= 0;
        tip.hidden = index < 0;
        if (index < 0) return;
        const [x, y] = place(index);
        one("span", tip).textContent = `${data.classes[data.labels[index]]}\nimage ${index}`;
        one("span", tip).style.whiteSpace = "pre";
        one("canvas", tip).getContext("2d").drawImage(sheet, (index % columns) * THUMBNAIL,
          Math.floor(index / columns) * THUMBNAIL, THUMBNAIL, THUMBNAIL, 0, 0, THUMBNAIL, THUMBNAIL);
        tip.style.left = `${Math.max(0, Math.min(canvas.offsetLeft + x + 12, element.clientWidth - tip.offsetWidth - 4))}px`;
        tip.style.top = `${canvas.offsetTop + y + (y > side() - 110 ? -tip.offsetHeight - 12 : 12)}px`;
      },
    };
    function nearest(x, y, far, fits = () => true) {
      let best = -1, least = far * far;
      for (let i = 0; i < data.labels.length; i++) {
        if (!shown(i)) continue;
        const [px, py] = place(i), distance = (px - x) ** 2 + (py - y) ** 2;
        if (distance < least && fits(px - x, py - y)) { best = i; least = distance; }
      }
      return best;
    }
    function zoom(factor, x = side() / 2, y = side() / 2) {
      const before = view.scale;
      view.scale = factor ? Math.min(60, Math.max(1, before * factor)) : 1;
      const keep = (1 / before - 1 / view.scale) / side();
      const limit = (v) => Math.min(1, Math.max(0, v));
      view.x = view.scale === 1 ? 0.5 : limit(view.x + (x - side() / 2) * keep);
      view.y = view.scale === 1 ? 0.5 : limit(view.y + (y - side() / 2) * keep);
      canvas.classList.toggle("zoomed", view.scale > 1);
      panel.tip(panel.tipShown ? chosen : -1);
      panel.draw();
    }
    const at = (event) => { const box = canvas.getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; };
    canvas.addEventListener("pointerdown", (event) => {
      pointers.set(event.pointerId, at(event));
      choose(nearest(...at(event), 24), panel);
    });
    canvas.addEventListener("pointermove", (event) => {
      const was = pointers.get(event.pointerId), now = at(event);
      if (!was) {
        if (event.pointerType === "mouse") choose(nearest(...now, 16), panel);
        return;
      }
      pointers.set(event.pointerId, now);
      const other = [...pointers].find(([id]) => id !== event.pointerId);
      if (other) {  // two fingers
        const spread = (p) => Math.hypot(p[0] - other[1][0], p[1] - other[1][1]) || 1;
        zoom(spread(now) / spread(was), (now[0] + other[1][0]) / 2, (now[1] + other[1][1]) / 2);
      } else if (view.scale > 1) {
        view.x -= (now[0] - was[0]) / side() / view.scale;
        view.y -= (now[1] - was[1]) / side() / view.scale;
        panel.tip(-1);
        panel.draw();
      }
    });
    for (const name of ["pointerup", "pointercancel", "pointerleave"]) {
      canvas.addEventListener(name, (event) => {
        pointers.delete(event.pointerId);
        if (name === "pointerleave" && event.pointerType === "mouse") choose(-1, panel);
      });
    }
    canvas.addEventListener("wheel", (event) => {
      if (document.activeElement !== canvas && !event.ctrlKey) return;  // the page scrolls until the map is clicked
      event.preventDefault();
      zoom(Math.exp(-event.deltaY / 400), ...at(event));
    }, { passive: false });
    canvas.addEventListener("dblclick", (event) => zoom(2, ...at(event)));
    canvas.addEventListener("keydown", (event) => {
      const factor = { "+": 1.6, "=": 1.6, "-": 0.625, 0: 0 }[event.key];
      const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
      if (factor !== undefined) zoom(factor, ...(chosen >= 0 ? place(chosen) : []));
      else if (event.key === "Escape") choose(-1, panel);
      else if (way) {
        const [x, y] = chosen >= 0 ? place(chosen) : [side() / 2, side() / 2];
        const ahead = (dx, dy) => dx * way[0] + dy * way[1] > Math.abs(dx * way[1] + dy * way[0]);
        const next = nearest(x, y, Infinity, chosen >= 0 ? ahead : undefined);
        if (next >= 0) choose(next, panel);
      } else return;
      event.preventDefault();
    });
    for (const button of all("[data-zoom]", element)) {
      button.addEventListener("click", () => zoom(+button.dataset.zoom, ...(panel.tipShown ? place(chosen) : [])));
    }
    return panel;
  }

  for (const button of all(".classes button", figure)) {
    button.addEventListener("click", () => {
      const label = +button.dataset.class, on = !only.has(label);
      only[on ? "add" : "delete"](label);
      button.setAttribute("aria-pressed", on);
      draw();
    });
  }
  new ResizeObserver(draw).observe(one(".maps", figure));
  dark.addEventListener("change", draw);
  addEventListener("beforeprint", draw);
}

// Pictures: two layers of an image, one over the other, with a slider between them.
for (const figure of all(".compare")) {
  const [which, left, right] = all("select", figure), stage = one(".stage", figure), slider = one("input", figure);
  const grid = one(".grid", figure), button = one(".all", figure);
  const picture = (layer) => one(`img[data-row="${which.value}"][data-layer="${CSS.escape(layer)}"]`, grid);
  function show() {
    for (const [image, tag, select] of [[0, 0, left], [1, 1, right]]) {
      const source = picture(select.value), target = all("img", stage)[image];
      target.src = source.src;
      target.alt = source.alt;
      target.style.setProperty("--photo", getComputedStyle(source).getPropertyValue("--photo"));
      all("b", stage)[tag].textContent = select.value;
    }
    stage.style.setProperty("--at", `${slider.value}%`);
  }
  for (const control of [which, left, right, slider]) control.addEventListener("input", show);
  stage.addEventListener("pointermove", (event) => {
    if (event.pointerType === "mouse" && !event.buttons) return;
    const box = stage.getBoundingClientRect();
    slider.value = 100 * (event.clientX - box.left) / box.width;
    show();
  });
  stage.addEventListener("dragstart", (event) => event.preventDefault());
  button.addEventListener("click", () => {
    grid.hidden = !grid.hidden;
    button.setAttribute("aria-expanded", !grid.hidden);
    button.textContent = grid.hidden ? "Show all side by side" : "Hide all";
  });
  grid.hidden = true;
  show();
}
