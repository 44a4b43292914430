"""The pictures of segmentation and detection, as figures and side by side for the page.

On the page, a reader compares each image, its ground truth and what each method makes of it.
"""

import base64
import io
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from analysis import detection, segmentation
from analysis.labels import label_places
from analysis.names import DATASETS, ink_on, model_name
from analysis.records import report_problems
from analysis.scope import Scope, resolve
from common import cli
from common.errors import UserError

WIDTH = 512  # pixels, at most
LEGEND_UP_TO = 40  # classes; of more, the legend has what is no class alone


@dataclass(frozen=True)
class Comparison:
    """Images by layers: `layers` maps a layer's name to one picture (a data URI) per image.

    With `photos`, one per image, the layers are transparent and lie over them.
    """

    images: list[str]
    layers: dict[str, list[str]]
    legend: list[tuple[str, str]] = field(default_factory=list)  # class, colour as #rrggbb
    photos: list[str] = field(default_factory=list)


def main(argv: list[str] | None = None) -> None:
    """Draw the figures that can be drawn and say what is left out. Raises UserError when none can be."""
    scope = resolve(
        "analysis.figures",
        (__doc__ or "").splitlines()[0],
        argv,
        "make figures PROFILE=imagenet SEED=1",
        unused="method checkpoints results",
    )
    missing = []
    for build in (segmentation.build, detection.build):
        try:
            build(scope)
        except UserError as error:
            missing.append(str(error))
    if len(missing) == 2:
        raise UserError("; ".join(missing))
    for line in missing:
        print(f"left out: {line}", flush=True)
    report_problems(problems(scope))


def problems(scope: Scope) -> list[str]:
    """Return one line for each broken file that is not in the figures."""
    return segmentation.find(scope)[1] + detection.find(scope)[1]


def compare_segmentation(scope: Scope) -> Comparison:
    """Return the images of the segmentation figure. Raises UserError when one is missing."""
    predictions, _ = segmentation.find(scope)
    palette = predictions[0].index["palette"]
    models = [model_name(one.model) for one in predictions]
    layers: dict[str, list[str]] = {name: [] for name in ("Image", "Ground truth", *models)}
    seen: set[int] = set()
    for image, maps in segmentation.rows(predictions, scope.data):
        seen.update(np.unique(maps).tolist())
        coloured = [class_map(Image.fromarray(segmentation.colour(one, palette))) for one in maps]
        for layer, picture in zip(layers.values(), [photo(image), *coloured], strict=True):
            layer.append(picture)
    if len(seen) > LEGEND_UP_TO:
        seen &= {-1}
    legend = [(name, "#{:02x}{:02x}{:02x}".format(*rgb)) for name, rgb in segmentation.legend(predictions[0], seen)]
    return Comparison([Path(image).stem for image, _ in predictions[0].pairs], layers, legend)


def compare_detection(scope: Scope) -> dict[str, Comparison]:
    """Return data set -> the images of the detection figure. Raises UserError when one is missing."""
    comparisons = {}
    for dataset, predictions in detection.find(scope)[0].items():
        first = predictions[0]
        paths = [image.path for image in first.images[: detection.ROWS]]
        try:
            photos = first.photos(scope.data)
        except UserError:  # `build` says so
            continue
        boxes: dict[str, list[list[detection.Box]]] = {"Image": [[] for _ in paths]}
        boxes["Ground truth"] = [image.truth for image in first.images[: detection.ROWS]]
        for one in predictions:
            boxes[model_name(one.model)] = [image.best for image in one.images[: detection.ROWS]]
        layers = {
            name: [
                draw_boxes(image.size, of_image, first.classes)
                for image, of_image in zip(photos, of_layer, strict=True)
            ]
            for name, of_layer in boxes.items()
        }
        name, dash, variant = dataset.partition("-")
        title = DATASETS.get(name, name) + (f" ({variant})" if dash else "")
        comparisons[title] = Comparison([Path(path).stem for path in paths], layers, photos=[photo(p) for p in photos])
    return comparisons


def draw_boxes(size: tuple[int, int], boxes: list[detection.Box], classes: list[str]) -> str:
    """Return boxes with their names as a transparent picture (a data URI) over a photo of (width, height) pixels."""
    width, height = size
    unit = max(width, height) / 400
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">'
    ]
    marks = [box.mark(classes) for box in boxes]
    high = 14 * unit
    sizes = [(6.6 * unit * len(text) + 4 * unit, high) for _, _, text, _ in marks]
    for (x0, y0, x1, y1), colour, _, dashed in marks:
        place = f'x="{x0:.1f}" y="{y0:.1f}" width="{x1 - x0:.1f}" height="{y1 - y0:.1f}" fill="none"'
        dashes = f' stroke-dasharray="{6 * unit:.1f}"' if dashed else ""
        # With white below it, an edge shows on any photo.
        parts.append(f'<rect {place} stroke="#fff" stroke-width="{3.5 * unit:.1f}"/>')
        parts.append(f'<rect {place} stroke="{colour}" stroke-width="{2 * unit:.1f}"{dashes}/>')
    places = label_places([corners for corners, *_ in marks], sizes, size)
    for (_, colour, text, _), (wide, _), (left, top) in zip(marks, sizes, places, strict=True):
        parts.append(f'<rect x="{left:.1f}" y="{top:.1f}" width="{wide:.1f}" height="{high:.1f}" fill="{colour}"/>')
        style = f'font-family="monospace" font-size="{11 * unit:.1f}" fill="{ink_on(colour)}"'
        parts.append(f'<text x="{left + 2 * unit:.1f}" y="{top + 10.8 * unit:.1f}" {style}>{escape(text)}</text>')
    return uri("".join([*parts, "</svg>"]).encode(), "svg+xml")


def photo(image: Image.Image) -> str:
    """Return a photo as a data URI, at most WIDTH wide, compressed."""
    return _encode(image.convert("RGB"), Image.Resampling.LANCZOS, "webp", quality=80)


def class_map(image: Image.Image) -> str:
    """Return a picture of few colours as a data URI, at most WIDTH wide, without loss."""
    return _encode(image, Image.Resampling.NEAREST, "png", optimize=True)


def uri(data: bytes, kind: str) -> str:
    """Return a data URI of an image file's content."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _encode(image: Image.Image, how: Image.Resampling, kind: str, **options: object) -> str:
    if image.width > WIDTH:
        image = image.resize((WIDTH, round(image.height * WIDTH / image.width)), how)
    stream = io.BytesIO()
    image.save(stream, format=kind, **options)
    return uri(stream.getvalue(), kind)


if __name__ == "__main__":
    cli.run(main)
