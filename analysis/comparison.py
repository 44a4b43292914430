"""Predictions side by side, for the page: each image, its ground truth and what each method makes of it."""

import argparse
import base64
import io
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from analysis import detections, figures
from analysis.names import DATASETS, model_name

if TYPE_CHECKING:
    from PIL.Image import Image

WIDTH = 512  # pixels, at most
LEGEND_UP_TO = 40  # classes


@dataclass(frozen=True)
class Comparison:
    """Images by layers: `layers` maps a layer's name to a picture (a data URI) for each of the images.

    With `photos`, one for each image, the layers are transparent and lie upon them.
    """

    images: list[str]
    layers: dict[str, list[str]]
    legend: list[tuple[str, str]] = field(default_factory=list)  # class, colour as #rrggbb
    photos: list[str] = field(default_factory=list)


def uri(data: bytes, kind: str) -> str:
    """Return a data URI of an image file's content."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def photo(image: "Image") -> str:
    """Return a photo as a data URI, at most WIDTH wide, compressed."""
    from PIL import Image

    return _encode(image.convert("RGB"), Image.Resampling.LANCZOS, "webp", quality=80)


def class_map(image: "Image") -> str:
    """Return a picture of few colours as a data URI, at most WIDTH wide, without loss."""
    from PIL import Image

    return _encode(image, Image.Resampling.NEAREST, "png", optimize=True)


def segmentation(args: argparse.Namespace) -> Comparison:
    """Return the images of the segmentation figure. Raises UserError when one is missing."""
    import numpy as np
    from PIL import Image

    found = figures.find_predictions(args.runs / args.profile / "segmentation-ade20k", args.seed)
    index = found[0].index
    palette, classes = index["palette"], index["classes"]
    pairs = list(zip(index["images"], index["annotations"], strict=True))[: figures.ROWS]
    layers: dict[str, list[str]] = {"Image": [], "Ground truth": [], **{model_name(p.model): [] for p in found}}
    seen: set[int] = set()
    for image, maps in figures.rows(found, pairs, args.data):
        seen.update(np.unique(maps).tolist())
        coloured = [class_map(Image.fromarray(figures.colour(one, palette))) for one in maps]
        for layer, picture in zip(layers.values(), [photo(image), *coloured], strict=True):
            layer.append(picture)
    shown = sorted(label for label in seen if label >= 0)
    legend = [(classes[k], "#{:02x}{:02x}{:02x}".format(*palette[k])) for k in shown]
    return Comparison([Path(image).stem for image, _ in pairs], layers, legend if len(shown) <= LEGEND_UP_TO else [])


def detection(args: argparse.Namespace) -> dict[str, Comparison]:
    """Return data set -> the images of the detection figure. Raises UserError when one is missing."""
    from common.images import read_image

    shown = {}
    for dataset, found in detections.find(args.runs / args.profile, args.seed).items():
        paths = [image.path for image in found[0].images[: detections.ROWS]]
        photos = [read_image(args.data / path) for path in paths]
        sizes = [image.size for image in photos]
        boxes: dict[str, list[list[detections.Box]]] = {"Image": [[] for _ in paths]}
        boxes["Ground truth"] = [image.truth for image in found[0].images]
        for one in found:
            boxes[model_name(one.model)] = [image.best for image in one.images]
        layers = {
            name: [
                boxes_upon(size, of_image, found[0].classes) for size, of_image in zip(sizes, of_layer, strict=False)
            ]
            for name, of_layer in boxes.items()
        }
        name, dash, variant = dataset.partition("-")
        title = DATASETS.get(name, name) + (f" ({variant})" if dash else "")
        shown[title] = Comparison([Path(path).stem for path in paths], layers, photos=[photo(p) for p in photos])
    return shown


def boxes_upon(size: tuple[int, int], boxes: "list[detections.Box]", classes: list[str]) -> str:
    """Return boxes with their names as a transparent picture (a data URI) over a photo of (width, height) pixels."""
    width, height = size
    unit = max(width, height) / 400
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">'
    ]
    for box in boxes:
        x0, y0, x1, y1 = box.box
        colour = detections.class_colour(box.label)
        place = f'x="{x0:.1f}" y="{y0:.1f}" width="{x1 - x0:.1f}" height="{y1 - y0:.1f}" fill="none"'
        dashes = f' stroke-dasharray="{6 * unit:.1f}"' if box.ignored else ""
        # White below: the edge shows on any photograph.
        parts.append(f'<rect {place} stroke="#fff" stroke-width="{3.5 * unit:.1f}"/>')
        parts.append(f'<rect {place} stroke="{colour}" stroke-width="{2 * unit:.1f}"{dashes}/>')
        text = classes[box.label] + ("" if box.score is None else f" {box.score:.2f}")
        wide, high, top = 6.6 * unit * len(text) + 4 * unit, 14 * unit, max(0.0, y0 - 14 * unit)
        left = max(0.0, min(x0, width - wide))
        parts.append(f'<rect x="{left:.1f}" y="{top:.1f}" width="{wide:.1f}" height="{high:.1f}" fill="{colour}"/>')
        style = f'font-family="monospace" font-size="{11 * unit:.1f}" fill="{detections.ink_on(colour)}"'
        parts.append(f'<text x="{left + 2 * unit:.1f}" y="{top + 10.8 * unit:.1f}" {style}>{escape(text)}</text>')
    return uri("".join([*parts, "</svg>"]).encode(), "svg+xml")


def _encode(image: "Image", how: int, kind: str, **options: object) -> str:
    if image.width > WIDTH:
        image = image.resize((WIDTH, round(image.height * WIDTH / image.width)), how)
    stream = io.BytesIO()
    image.save(stream, format=kind, **options)
    return uri(stream.getvalue(), kind)
