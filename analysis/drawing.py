"""How every figure is drawn and saved. Whoever imports this module imports matplotlib."""

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import LogLocator
from PIL.Image import Image

from analysis.labels import Corners, label_places, shifts_apart
from analysis.names import CLASS_COLOURS, DATASETS, METRIC_NAMES, ink_on, method_of, model_colour, model_name
from analysis.products import figure_files
from common.files import atomic_path, atomic_write, sha256_of_text

GRID = "#dddddd"
WIDTH = 5.5  # inches: the text width of a NeurIPS page; figures are drawn at the size at which they are printed
SEGMENTATION_COLUMN, DETECTION_COLUMN = 1.2, 2.4  # inches
SMALL = 7  # points
UNITS = (("seconds", 1), ("minutes", 60), ("hours", 3600))
CLASSES_WITH_NAMES = 20  # a t-SNE of more classes has no legend
SEGMENTATION_LEGEND = 151  # classes at most: all of ADE20K's, and unlabelled

Colours = Sequence[int]
Mark = tuple[Corners, str, str, bool]  # corners in pixels, colour, text, dashed

plt.rcParams.update(
    {
        "font.size": 8,
        "axes.titlesize": 9,
        "axes.linewidth": 0.6,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": GRID,
        "legend.frameon": False,
        "pdf.fonttype": 42,  # text stays text: journals refuse Type 3 fonts
        "savefig.bbox": "tight",
        "savefig.dpi": 220,
        "svg.fonttype": "none",
        "text.parse_math": False,  # a label may hold any character, dollars too
        "svg.hashsalt": "gsg",  # without it, the ids of the same figure differ each time
    }
)


def save(figure: Figure, stem: Path) -> None:
    """Write `<stem>.png` and `<stem>.pdf`, each atomically, and close the figure. The same data give the same bytes."""
    for path in figure_files(stem):
        kind = path.suffix.removeprefix(".")
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format=kind, metadata={"CreationDate": None} if kind == "pdf" else {})
    plt.close(figure)


def save_for_page(figure: Figure, path: Path) -> None:
    """Write an SVG that takes the page's colours and fonts when it is part of the page's text; close the figure."""
    text = io.StringIO()
    figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    plt.close(figure)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :].replace("#000000", "currentColor").replace(GRID, f"var(--line, {GRID})")
    for unwanted in (r"<metadata>.*?</metadata>", r"<!--.*?-->", r"<style.*?</style>", r' (width|height)="[\d.]*pt"'):
        svg = re.sub(unwanted, "", svg, flags=re.DOTALL)
    svg = re.sub(r"(font: [\d.]*px)[^;\"]*", r"\1 sans-serif", svg)
    # A page holds several of them, and ids must be unique within it. A file's name may hold what ends an attribute.
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r'(id="|href="#|url\(#)', rf"\1f{sha256_of_text(path.stem)[:12]}-", svg)
    atomic_write(path, lambda temporary: temporary.write_text(svg, encoding="utf-8"))


def curves(
    lines_of: Mapping[str, list[dict[str, Any]]], panels: Mapping[Path, tuple[str, str]], titles: Mapping[str, str],
    stem: Path, least: int,
) -> None:  # fmt: skip
    """Draw the training curves: one figure of all panels, and one SVG per panel.

    `lines_of` has the epochs of each model; `panels` says which key each SVG shows against which axis. Fewer than
    `least` points are not joined.
    """
    rows = list(dict.fromkeys(axis for _, axis in panels.values()))
    keys = [key for key in titles if any(key == shown for shown, _ in panels.values())]
    size = (WIDTH, 1.75 * len(rows) + 0.3)
    figure, axes = plt.subplots(len(rows), len(keys), figsize=size, squeeze=False, layout="constrained")
    for row, axis in zip(axes, rows, strict=True):
        for place, key in zip(row, keys, strict=True):
            _curve(place, lines_of, key, axis, titles[key], least)
    handles = {label: h for place in axes.flat for h, label in zip(*place.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4)
    save(figure, stem)
    for path, (key, axis) in panels.items():
        figure, place = plt.subplots(figsize=(3, 2.2), layout="constrained")
        _curve(place, lines_of, key, axis, titles[key], least)
        save_for_page(figure, path)


def _curve(
    place: Axes, lines_of: Mapping[str, list[dict[str, Any]]], key: str, axis: str, title: str, least: int
) -> None:
    longest = max((line.get(axis, 0) for lines in lines_of.values() for line in lines), default=0)
    unit, seconds = max((u for u in UNITS if u[1] * 2 <= longest), key=lambda u: u[1], default=UNITS[0])
    scale = seconds if axis == "seconds" else 1
    for position, (model, lines) in enumerate(lines_of.items()):
        points = [(line[axis] / scale, line[key]) for line in lines if key in line and axis in line]
        if points:
            style = _line(model, position) | {"marker": "o" if len(points) < 15 else "", "markersize": 3}
            if len(points) < least:
                style["linestyle"] = ""
            place.plot(*zip(*points, strict=True), **style)
    place.set_title(title, fontsize=8)
    place.set_xlabel(f"time ({unit})" if axis == "seconds" else "epoch")
    if axis == "epoch":
        place.locator_params(axis="x", integer=True)


def _line(model: str, position: int) -> dict[str, Any]:
    """Return how a model's line looks: dashes tell the base method from its GSG variant."""
    style: dict[str, Any] = {"color": model_colour(model, position), "label": model_name(model)}
    return style | {"linewidth": 1.4, "linestyle": "-" if "gsg" in model else "--"}


def sweep(records: Mapping[str, dict[str, Any]], stem: Path) -> None:
    """Draw the validation curve of each model's record, as a figure and as an SVG."""
    for height, for_page in ((2.4, False), (2.2, True)):
        figure, axis = plt.subplots(figsize=(3, height), layout="constrained")
        _validation_curves(axis, records)
        if for_page:
            save_for_page(figure, stem.with_suffix(".svg"))
        else:
            axis.legend(fontsize=SMALL)
            save(figure, stem)


def _validation_curves(axis: Axes, records: Mapping[str, dict[str, Any]]) -> None:
    for position, (model, record) in enumerate(records.items()):
        curve, protocol, style = record["details"]["sweep"], record["protocol"], _line(model, position)
        axis.plot(curve["weight_decay"], curve["val"], **style)
        points = zip(curve["weight_decay"], curve["val"], curve["converged"], strict=True)
        hollow = [(wd, value) for wd, value, converged in points if not converged]
        if hollow:  # a small open circle: the fit stopped before it converged
            axis.plot(*zip(*hollow, strict=True), "o", markersize=2.5, markerfacecolor="white", color=style["color"])
        axis.plot(protocol["weight_decay"], protocol["validation"], "D", markersize=4.5, color=style["color"])
    first = next(iter(records.values()))
    metric, dataset = first["protocol"]["metric"], first["dataset"]
    axis.set(
        xscale="log",
        xlabel="weight decay (diamond: chosen)",
        ylabel=f"validation {METRIC_NAMES.get(metric, metric)} (%)",
        title=DATASETS.get(dataset, dataset),
    )
    axis.xaxis.set_major_locator(LogLocator(numticks=5))  # matplotlib's own labels of twelve decades touch
    axis.xaxis.set_major_formatter("{x:g}")  # matplotlib's own writes powers as formulas


def geometry(measured: Mapping[str, Mapping[str, float]], stem: Path) -> None:
    """Draw alignment over uniformity, one point per checkpoint, as a figure and as an SVG."""
    save(_geometry(measured), stem)
    save_for_page(_geometry(measured), stem.with_suffix(".svg"))


def _geometry(measured: Mapping[str, Mapping[str, float]]) -> Figure:
    figure, place = plt.subplots(figsize=(3, 2.4), layout="constrained")
    labelled = set()
    for k, (name, numbers) in enumerate(measured.items()):
        model = name.partition("-seed")[0]
        marker = "o" if model.partition("-")[0].endswith("gsg") else "s"
        label = None if model in labelled else model_name(model)
        labelled.add(model)
        colour = model_colour(method_of(model), k)
        place.scatter(numbers["uniformity"], numbers["alignment"], s=26, color=colour, marker=marker, label=label)
    place.margins(0.2)
    place.locator_params(nbins=4)
    place.set(xlabel="uniformity (lower: spread)", ylabel="alignment (lower: together)")
    figure.legend(fontsize=SMALL, loc="outside lower center", ncols=2)  # where it hides no point
    return figure


def study(accuracies: Mapping[str, Sequence[float]], path: Path) -> None:
    """Draw the kNN accuracies of each arm's runs as dots, with their mean as a line, and write an SVG."""
    figure, axis = plt.subplots(figsize=(WIDTH, 0.5 + 0.22 * len(accuracies)))
    for row, values in enumerate(accuracies.values()):
        axis.plot(values, [row] * len(values), "o", markersize=4, color="#0072B2", alpha=0.8, markeredgewidth=0)
        axis.plot([np.mean(values)] * 2, [row - 0.3, row + 0.3], color="black", linewidth=1)
    axis.set_yticks(range(len(accuracies)), list(accuracies))
    axis.invert_yaxis()
    axis.set_xlabel("kNN accuracy on the test images in percent; a dot per run, a line at the mean")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="svg", facecolor="white", metadata={"Date": None, "Creator": None})
    plt.close(figure)


def tsne(panels: Sequence[tuple[str, np.ndarray, str]], labels: np.ndarray, classes: Sequence[str], stem: Path) -> None:
    """Draw the maps of t-SNE: of each panel the model, the points (N, 2) and the caption; `labels` is (N,)."""
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    side = WIDTH / 2
    size = (side * columns, (side + 0.35) * rows + 0.4)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    named = len(classes) <= CLASSES_WITH_NAMES
    names_of: list[tuple[Axes, list[Text]]] = []
    for axis, (model, points, caption) in zip(axes.flat, panels, strict=False):
        names_of.append((axis, []))
        axis.set_title(model_name(model))
        axis.set_xlabel(caption, fontsize=6)
        for label, name in enumerate(classes):
            mine = points[labels == label]
            colour = CLASS_COLOURS[label % len(CLASS_COLOURS)]
            dot = max(0.6, 2500 / len(points) ** 0.95)
            axis.scatter(*mine.T, s=dot, color=colour, label=name, linewidths=0, alpha=0.85, rasterized=True)
            if named and len(mine):  # the legend alone does not suffice: ten colours are many
                at = np.median(mine, axis=0)
                box = {"boxstyle": "round,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.7}
                names_of[-1][1].append(axis.text(*at, name, fontsize=6, ha="center", va="center", bbox=box))
        axis.set(xticks=[], yticks=[])
        axis.spines[["top", "right"]].set_visible(True)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    if named:
        handles, names = axes.flat[0].get_legend_handles_labels()
        legend = figure.legend(handles, names, loc="outside lower center", ncols=min(5, len(names)))
        for handle in legend.legend_handles:
            handle.set_sizes([14])  # type: ignore[union-attr]
    figure.draw_without_rendering()  # only now do the axes have their places
    for axis, texts in names_of:
        _move_apart(axis, texts)
    save(figure, stem)


def _move_apart(axis: Axes, texts: Sequence[Text]) -> None:
    """Move each text that covers one before it up or down, to the nearest free place."""
    frame = axis.get_window_extent()
    extents = [text.get_bbox_patch().get_window_extent() for text in texts]  # type: ignore[union-attr]
    shifts = shifts_apart([(e.x0, e.y0, e.x1, e.y1) for e in extents], frame.y0, frame.y1)
    for text, shift in zip(texts, shifts, strict=True):
        x, y = axis.transData.transform(text.get_position())
        text.set_y(axis.transData.inverted().transform((x, y + shift))[1])


def segmentation(
    titles: Sequence[str],
    rows: Sequence[tuple[Image, list[np.ndarray]]],
    legend: Sequence[tuple[str, Colours]],
    stem: Path,
) -> None:
    """Draw one row per image: the photo and its class maps, each coloured (H, W, 3) uint8."""
    heights = [photo.height / photo.width for photo, _ in rows]
    figure, axes = plt.subplots(
        *(len(rows), len(titles)),
        figsize=(SEGMENTATION_COLUMN * len(titles), SEGMENTATION_COLUMN * sum(heights)),
        squeeze=False,
        height_ratios=heights,
        gridspec_kw={"wspace": 0.03, "hspace": 0.03},
    )
    for row, (photo, maps) in zip(axes, rows, strict=True):
        row[0].imshow(photo)
        for axis, coloured in zip(row[1:], maps, strict=True):
            axis.imshow(coloured, interpolation="none")  # keeps every pixel in the PDF
        for axis in row:
            axis.set_axis_off()
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=SMALL)
    if len(legend) <= SEGMENTATION_LEGEND:
        patches = [
            plt.Rectangle((0, 0), 1, 1, facecolor=np.divide(rgb, 255), edgecolor="#888888", linewidth=0.4)
            for _, rgb in legend
        ]
        figure.legend(
            patches,
            [name for name, _ in legend],
            loc="upper center",
            bbox_to_anchor=(0.5, axes[-1][0].get_position().y0 - 0.005),
            ncols=len(titles),
            fontsize=SMALL,
            handlelength=1,
            handleheight=1,
            columnspacing=1,
        )
    save(figure, stem)


def detection(
    titles: Sequence[str], rows: Sequence[tuple[Image, Sequence[Sequence[Mark]]]], note: str, stem: Path
) -> None:
    """Draw one row per image: under each title, the photo with that column's boxes."""
    heights = [photo.height / photo.width for photo, _ in rows]
    size = (DETECTION_COLUMN * len(titles), DETECTION_COLUMN * sum(heights) + 0.8)
    figure, axes = plt.subplots(
        len(rows), len(titles), figsize=size, squeeze=False, layout="constrained", height_ratios=heights
    )
    for row, (photo, columns) in zip(axes, rows, strict=True):
        for axis, marks in zip(row, columns, strict=True):
            axis.imshow(photo)
            axis.set_axis_off()
            point = 1.1 * photo.width / (72 * DETECTION_COLUMN)  # pixels; the layout makes columns a little narrower
            sizes = [((3.5 * len(text) + 2) * point, 8 * point) for _, _, text, _ in marks]
            places = label_places([corners for corners, *_ in marks], sizes, photo.size)
            for mark, (left, top), (_, high) in zip(marks, places, sizes, strict=True):
                _box(axis, *mark, (left, top + high))
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title)
    figure.supxlabel(note, fontsize=9)
    save(figure, stem)


def _box(axis: Axes, corners: Corners, colour: str, text: str, dashed: bool, foot: tuple[float, float]) -> None:
    x0, y0, x1, y1 = corners
    # On the axes, pixel k of an image reaches from k - 0.5 to k + 0.5. With white below it, an edge shows on any photo.
    for edge, width, line in (("white", 2.6, "-"), (colour, 1.4, "--" if dashed else "-")):
        place = (x0 - 0.5, y0 - 0.5)
        axis.add_patch(plt.Rectangle(place, x1 - x0, y1 - y0, fill=False, edgecolor=edge, lw=width, linestyle=line))
    patch = {"facecolor": colour, "edgecolor": "none", "pad": 0.8}
    axis.text(*foot, text, fontsize=5.5, color=ink_on(colour), verticalalignment="bottom", bbox=patch, clip_on=True)
