"""Predictions side by side, for the page: each image, its ground truth and what each method makes of it."""

import argparse
import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from analysis import figures
from analysis.names import model_name

if TYPE_CHECKING:
    from PIL.Image import Image

WIDTH = 512  # pixels, at most
LEGEND_UP_TO = 40  # classes


@dataclass(frozen=True)
class Comparison:
    """Images by layers: `layers` maps a layer's name to a picture (a data URI) for each of the images."""

    images: list[str]
    layers: dict[str, list[str]]
    legend: list[tuple[str, str]]  # class, colour as #rrggbb


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

    from common.data import read_image

    found = figures.find_predictions(args.runs / args.profile / "segmentation-ade20k", args.seed)
    index = found[0].index
    palette, classes = index["palette"], index["classes"]
    pairs = list(zip(index["images"], index["annotations"], strict=True))[: figures.ROWS]
    seen: set[int] = set()

    def coloured(path: Path, first: int) -> str:
        labels = np.asarray(Image.open(path)).astype(int) - first
        seen.update(np.unique(labels).tolist())
        return class_map(Image.fromarray(figures.colour(labels, palette)))

    layers = {"Image": [photo(read_image(args.data / image)) for image, _ in pairs]}
    layers["Ground truth"] = [coloured(args.data / annotation, 1) for _, annotation in pairs]
    for predictions in found:
        name = model_name(predictions.model)
        layers[name] = [coloured(predictions.of(image), 0) for image, _ in pairs]
    shown = sorted(label for label in seen if label >= 0)
    legend = [(classes[k], "#{:02x}{:02x}{:02x}".format(*palette[k])) for k in shown]
    return Comparison([Path(image).stem for image, _ in pairs], layers, legend if len(shown) <= LEGEND_UP_TO else [])


def _encode(image: "Image", how: int, kind: str, **options: object) -> str:
    if image.width > WIDTH:
        image = image.resize((WIDTH, round(image.height * WIDTH / image.width)), how)
    stream = io.BytesIO()
    image.save(stream, format=kind, **options)
    return uri(stream.getvalue(), kind)
