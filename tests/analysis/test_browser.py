"""The page in a real browser, at the sizes of a phone and of a desktop."""

import numpy as np
import pytest
from PIL import Image

from analysis import report, summary
from tests.analysis.browser import CHROMIUM, Browser
from tests.analysis.conftest import Maker, clean_commit, resolved

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
MINE = "a_very_long_label_of_my_own_network"
REPOSITORY = "https://host.org/some/gsg"
SIZES = {"phone": (390, 844), "desktop": (1400, 900)}


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    scope = resolved(tmp_path_factory.mktemp("page"))
    make = Maker(scope)
    with pytest.MonkeyPatch.context() as patch:
        clean_commit(patch)
        patch.setattr(summary, "STUDY", scope.reports / "study")
        patch.setattr(summary, "repository", lambda: REPOSITORY)
        knn = {"protocol": {"k": 20, "temperature": 0.1}}
        for model, gain in (("simsiam", 0.0), ("simsiam_gsg", 3.0), ("byol", 1.0), (MINE, 2.0)):
            for seed in range(3):
                make.record(model, "knn", "digits", {"top1": 60.0 + gain + seed}, seed, **knn)
            protocol = {"grid": 45, "metric": "accuracy", "weight_decay": 1.0, "validation": 70.0}
            sweep = {
                "weight_decay": [1e-6, 1.0, 1e5],
                "val": [60.0, 70.0, 50.0 + gain],
                "converged": [True, False, True],
            }
            made = {"protocol": protocol, "details": {"sweep": sweep}}
            make.record(model, "recognition", "digits", {"accuracy": 80.0 + gain}, **made)
            grid = {"grid": 9 if model == "byol" else 45}
            make.record(model, "recognition", "scenes", {"mAP11": 30.0 + gain}, protocol=grid)
        make.record("simsiam_gsg-random", "knn", "digits", {"top1": 61.0}, **knn)
        for model in ("simsiam", "simsiam_gsg"):
            make.log(model)
            make.predictions(model)
            make.detections(model)
        make.studied()
        make.tsne_files("tsne-flowers")
        return report.build(scope)[0]


@pytest.fixture(scope="module")
def one_browser():
    browser = Browser()
    yield browser
    browser.close()


@pytest.fixture
def browser(one_browser):
    one_browser.errors.clear()
    one_browser.requests.clear()
    return one_browser


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_the_page_shows_everything_without_an_error(page, browser, size, dark):
    width, height = SIZES[size]
    browser.open(page, width, height, dark=dark)
    assert browser.errors == []
    assert all(url.startswith("data:") for url in browser.requests if url != page.as_uri())
    assert browser.js("document.documentElement.scrollWidth") <= width
    shown = browser.js(
        "[...document.querySelectorAll('.chart, .map canvas[tabindex], .stage, table.results, h2')]"
        ".filter(e => !e.closest('dialog')).map(e => { const r = (e.closest('.scroll') || e).getBoundingClientRect();"
        "return [e.tagName + '.' + e.className, r.left, r.right, r.width, r.height]; })"
    )
    assert len([name for name, *_ in shown if name.startswith(("DIV.chart", "CANVAS", "DIV.stage"))]) == 7 + 2 + 2
    for name, left, right, wide, high in shown:
        assert left >= 0, name
        assert right <= width, name
        assert wide > 60, name
        assert high > 15, name
    broken = "[...document.images].filter(i => i.src && !(i.complete && i.naturalWidth)).map(i => i.alt)"
    assert browser.js(broken) == []
    dead = (
        "[...document.querySelectorAll('a:not([download])')].map(a => a.getAttribute('href'))"
        ".filter(h => !(h.startsWith('#') ? document.querySelector(h) : h.startsWith('https://')))"
    )
    assert browser.js(dead) == []
    assert browser.js(f"document.querySelectorAll('a[href^=\"{REPOSITORY}\"]').length") == 2
    assert browser.js(CONTRAST) == []


# Each text's contrast with what lies behind it, WCAG 2.2: 4.5, or 3 for large letters.
CONTRAST = """(() => {
  const paint = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  const rgb = (css, under) => {
    paint.fillStyle = `rgb(${under})`; paint.fillRect(0, 0, 1, 1);
    paint.fillStyle = css; paint.fillRect(0, 0, 1, 1);
    return [...paint.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const ground = (e) => {
    const below = e.parentElement ? ground(e.parentElement) : [255, 255, 255];
    return rgb(getComputedStyle(e).backgroundColor, below);
  };
  const light = (c) => c.map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, k) => sum + v * [0.2126, 0.7152, 0.0722][k], 0);
  const bad = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const e = walk.currentNode.parentElement;
    if (!walk.currentNode.textContent.trim() || !e.getClientRects().length || e.closest('.stage, script')) continue;
    const style = getComputedStyle(e), under = ground(e);
    const ink = rgb(e.closest('svg') ? style.fill : style.color, under);
    const [low, high] = [light(ink), light(under)].sort((a, b) => a - b);
    const large = parseFloat(style.fontSize) >= 24 || (parseFloat(style.fontSize) >= 18.66 && style.fontWeight >= 700);
    const ratio = (high + 0.05) / (low + 0.05);
    if (ratio < (large ? 3 : 4.5)) bad.push([e.tagName, walk.currentNode.textContent.trim().slice(0, 40), ratio]);
  }
  return bad;
})()"""


def test_the_first_screen_says_what_the_page_is_and_ends_with_numbers(page, browser):
    browser.open(page, *SIZES["desktop"])
    top = browser.js("document.querySelector('header').innerText")
    for part in ("NeurIPS 2023", "profile demo", "difference +3.00", "over 3 seeds", "Commit", "Repository", "JSON"):
        assert part in top
    assert browser.js("document.querySelector('td a').getBoundingClientRect().bottom") < SIZES["desktop"][1]
    assert not browser.js("document.querySelector('.settings').open")
    assert browser.js("document.body.innerText.match(/not comparable/g).length") == 1
    browser.js("document.querySelector('td a').click()")
    assert "k 20, temperature 0.1" in browser.js("document.querySelector('dialog').textContent")  # behind its number


def test_nothing_of_one_seed_is_best(page, browser):
    browser.open(page)
    best = browser.js("[...document.querySelectorAll('td.best, td.tied')].map(e => e.textContent)")
    assert best
    assert all("±" in text for text in best)
    assert browser.js("[...document.querySelectorAll('td a')].some(e => !e.textContent.includes('±'))")


@pytest.mark.parametrize("size", SIZES)
def test_no_label_of_a_chart_covers_or_touches_another(page, browser, size):
    browser.open(page, *SIZES[size])
    covered = browser.js(
        "[...document.querySelectorAll('.chart svg')].flatMap(svg => {"
        "const all = [...svg.querySelectorAll('text')].map(t => [t.textContent, t.getBoundingClientRect()]);"
        "return all.flatMap(([a, p], k) => all.slice(0, k).filter(([b, q]) => p.left < q.right + 5"
        " && q.left < p.right + 5 && p.top < q.bottom - 1 && q.top < p.bottom - 1).map(([b]) => `${a} and ${b}`)); })"
    )
    assert covered == []
    assert browser.js("document.querySelectorAll('.chart svg text').length") > 50


def test_a_table_that_is_too_wide_says_so_and_long_names_wrap(page, browser):
    cue = (
        "[...document.querySelectorAll('.scroll')].filter(e => e.checkVisibility()).map(e => "
        "[e.scrollWidth > e.clientWidth + 2, getComputedStyle(e).maskImage !== 'none', "
        "[[e.nextElementSibling, '::before'], [e.previousElementSibling, '::after']].filter("
        "([at, where]) => at && /scroll sideways/i.test(getComputedStyle(at, where).content)).length == 1])"
    )
    settled = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
    browser.open(page, *SIZES["phone"])
    found = browser.js(cue)
    assert [True, True, True] in found
    assert all(wide == faded == said for wide, faded, said in found)
    browser.js("document.querySelectorAll('.scroll').forEach(e => { e.scrollLeft = 9999; })")
    browser.js(settled)
    assert not any(faded or said for _, faded, said in browser.js(cue))
    name = f"[...document.querySelectorAll('th')].find(e => e.textContent === '{MINE}')"
    assert browser.js(f"{name}.scrollWidth <= {name}.clientWidth")
    assert browser.js(f"{name}.getBoundingClientRect().width") <= 0.4 * SIZES["phone"][0]
    browser.open(page, *SIZES["desktop"])
    assert not any(faded for _, faded, _ in browser.js(cue))


def test_the_test_of_contrast_can_fail(page, browser):
    browser.open(page)
    browser.js("document.querySelector('h1').style.color = '#ccc'")
    assert [tag for tag, *_ in browser.js(CONTRAST)] == ["H1"]


def test_everything_is_reached_by_the_keyboard_and_shows_its_focus(page, browser):
    browser.open(page)
    can = (
        "[...document.querySelectorAll('a, button, select, input, canvas[tabindex], summary, [tabindex]')]"
        ".filter(e => e.checkVisibility() && !e.closest('dialog'))"
    )
    browser.js(f"window.expected = new Set({can}); window.bare = []; expected.size")
    for _ in range(browser.js("expected.size")):
        browser.press("Tab")
        browser.js(
            "(() => { const e = document.activeElement; expected.delete(e);"
            "if (getComputedStyle(e).outlineStyle === 'none') bare.push(e.outerHTML.slice(0, 80)); })()"
        )
    assert browser.js("[...expected].map(e => e.outerHTML.slice(0, 80))") == []
    assert browser.js("bare") == []


def test_a_number_opens_its_records(page, browser):
    browser.open(page)
    browser.js("document.querySelector('td a').focus()")
    browser.press("Enter")
    assert browser.js("document.querySelector('dialog').open")
    assert browser.js("document.querySelectorAll('dialog .record').length") == 3
    assert "5eed5eed" in browser.js("document.querySelector('dialog').textContent")
    browser.press("Escape")
    assert not browser.js("document.querySelector('dialog').open")
    browser.js("[...document.querySelectorAll('td a')].at(-1).click()")
    assert browser.js("document.querySelector('dialog .record').open")  # one record is shown at once
    assert browser.errors == []


def test_a_column_sorts_and_comes_back(page, browser):
    browser.open(page)
    rows = (
        "[...document.querySelectorAll('table.results tbody:not([hidden]) tr')].filter(r => r.checkVisibility())"
        ".filter(r => r.closest('table') === document.querySelector('table.results')).map(r => r.cells[0].textContent)"
    )
    before = ["SimSiam", "SimSiam w/ GSG", "difference", "BYOL", MINE]
    assert browser.js(rows) == before
    browser.click("table.results th button")
    assert browser.js(rows) == ["SimSiam w/ GSG", MINE, "BYOL", "SimSiam"]
    browser.click("table.results th button")
    assert browser.js(rows) == ["SimSiam", "BYOL", MINE, "SimSiam w/ GSG"]
    assert browser.js("document.querySelector('th[aria-sort]').getAttribute('aria-sort')") == "ascending"
    browser.click("table.results th button")
    assert browser.js(rows) == before
    assert browser.errors == []


def test_published_rows_stay_below_the_sorted_ones_of_ours(tmp_path, browser):
    scope = resolved(tmp_path, "--profile=imagenet")
    for model, value in (("simsiam", 10.0), ("mine", 60.0)):
        Maker(scope).record(model, "knn", "imagenet", {"top1": value}, profile="imagenet")
    browser.open(report.build(scope)[0], *SIZES["phone"])
    rows = "[...document.querySelectorAll('tr')].filter(r => r.checkVisibility()).map(r => r.cells[0].textContent)"
    before = browser.js(rows)
    at = before.index("SimSiam")
    assert before[at : at + 3] == ["SimSiam", "mine", "Published elsewhere, not our runs"]
    browser.click("table.results th button")
    assert browser.js(rows) == [*before[:at], "mine", "SimSiam", *before[at + 2 :]]
    assert browser.js("document.documentElement.scrollWidth") == SIZES["phone"][0]
    assert browser.errors == []


def test_tables_are_copied_as_latex(page, browser):
    browser.open(page)
    browser.js("navigator.clipboard.writeText = async (text) => { window.copied = text; }; 0")
    browser.click("button.copy")
    assert browser.js("copied") == (page.parent / "table-standard.tex").read_text()
    assert r"\begin{tabular}" in browser.js("copied")
    browser.js("navigator.clipboard.writeText = async () => { throw new Error(); }; 0")
    browser.js("document.addEventListener('copy', (event) => { window.selected = event.target.value; })")
    browser.click("button.copy")
    assert browser.js("selected") == browser.js("copied")
    assert browser.errors == []


def test_a_map_shows_the_image_under_the_pointer_and_zooms(page, browser):
    browser.open(page)
    browser.js("window.panel = document.querySelector('.map'); panel.scrollIntoView()")
    # Where the first point lies, as the page is asked to draw it.
    x, y = browser.js(
        "(() => { const p = JSON.parse(document.querySelector('.tsne .data').textContent).panels[0].points;"
        "const r = panel.querySelector('canvas').getBoundingClientRect(), s = (v) => 0.03 + 0.94 * v;"
        "return [r.x + s(p[0] / 4095) * r.width, r.y + s(1 - p[1] / 4095) * r.height]; })()"
    )
    browser.mouse("mouseMoved", x + 1, y + 1)
    tip = "panel.querySelector('.tip')"
    assert not browser.js(f"{tip}.hidden")
    assert browser.js(f"{tip}.textContent") == "background\nimage 0"
    assert browser.js("document.querySelector('.live').textContent") == "Image 0: background"
    seen = browser.js(f"[...{tip}.querySelector('canvas').getContext('2d').getImageData(0, 0, 32, 32).data]")
    sheet = np.asarray(Image.open(page.parent / "tsne-flowers.webp").convert("RGB"))[:32, :32]
    assert np.abs(np.reshape(seen, (32, 32, 4))[..., :3] - sheet.astype(int)).max() <= 3
    before = browser.js("panel.querySelector('canvas').toDataURL()")
    browser.click(".map [data-zoom]")
    assert browser.js("panel.querySelector('canvas').toDataURL()") != before
    assert browser.js("panel.querySelector('canvas').classList.contains('zoomed')")
    browser.js("panel.querySelector('canvas').focus()")
    browser.press("ArrowRight")
    assert not browser.js(f"{tip}.hidden")
    browser.press("Escape")
    assert browser.js(f"{tip}.hidden")
    browser.click(".classes button")
    assert browser.js("document.querySelector('.classes button').getAttribute('aria-pressed')") == "true"
    assert browser.errors == []


def test_pictures_have_a_slider_and_layers(page, browser):
    browser.open(page)
    sources = "[...document.querySelector('.stage').querySelectorAll('img')].map(i => i.alt)"
    assert browser.js(sources) == ["v1: Image", "v1: SimSiam w/ GSG"]
    browser.js("document.querySelector('.compare input').focus()")
    browser.press("ArrowRight")
    assert browser.js("document.querySelector('.stage').style.getPropertyValue('--at')") == "51%"
    choose = "(s, v) => { const e = document.querySelector(s); e.value = v; e.dispatchEvent(new Event('input')); }"
    browser.js(f"({choose})('.which', '1'); ({choose})('.left', 'Ground truth')")
    assert browser.js(sources) == ["v2: Ground truth", "v2: SimSiam w/ GSG"]
    shown = (
        "(() => { const s = [...document.querySelectorAll('.stage')].at(-1);"
        "const i = s.querySelector('.over'), b = getComputedStyle(i).backgroundImage;"
        "return [i.alt, i.naturalWidth, b.slice(0, 28)]; })()"
    )
    assert browser.js(shown) == ["0: SimSiam w/ GSG", 60, 'url("data:image/webp;base64,']  # boxes upon the photo
    grid = "document.querySelector('.compare .grid').checkVisibility()"
    assert not browser.js(grid)
    browser.click(".compare .all")
    assert browser.js(grid)
    assert browser.errors == []


def test_the_page_without_scripts_still_shows_everything(page, browser):
    browser.open(page, scripts=False)
    assert browser.errors == []
    tree = browser.call("DOM.getDocument")["root"]["nodeId"]

    def is_shown(selector):
        node = browser.call("DOM.querySelector", nodeId=tree, selector=selector)["nodeId"]
        return bool(browser.call("DOM.getContentQuads", nodeId=node)["quads"])

    assert is_shown(".tsne .still")
    assert is_shown(".compare .grid img")
    assert is_shown("table.results")


def test_print_shows_the_tables_and_every_picture(page, browser):
    browser.open(page, *SIZES["phone"])
    browser.call("Emulation.setEmulatedMedia", media="print")
    try:
        assert browser.js("document.querySelector('.compare .grid').checkVisibility()")
        assert not browser.js("document.querySelector('nav').checkVisibility()")
        assert browser.js("[...document.querySelectorAll('th button')].every(e => e.checkVisibility())")  # metrics
        assert not browser.js("document.querySelector('.stage').checkVisibility()")
        assert browser.js(
            "[...document.querySelectorAll('.scroll')].every(e => getComputedStyle(e).maskImage === 'none')"
        )
        assert browser.js("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert len(browser.call("Page.printToPDF")["data"]) > 10_000
    finally:
        browser.call("Emulation.setEmulatedMedia", media="")
