"""t-SNE of test images' features, one panel per method (paper, appendix E).

The paper shows CIFAR-10's test set; any checkpoint and any labelled images will do.
"""

import argparse
import json
from collections.abc import Sequence
from math import ceil, sqrt
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from analysis.products import digest_of_code, figure_files, make_once
from analysis.scope import PERPLEXITY, Scope, add_images, resolve
from common import cli
from common.embedded import CLASSES as DIGITS
from common.errors import UserError
from common.files import atomic_path, atomic_write
from common.images import LabelledImages

EXAMPLES = """
make tsne
make tsne CHECKPOINT=resnet50.pth NAME=mine PROFILE=imagenet DATA_ROOT=/birds
make tsne DATASET=cifar100 PROFILE=cifar10 ARGS='--perplexity 50'
"""
GRID = 4095  # the page's coordinates are whole numbers from 0 to this
LEAST = 4  # images: each needs three neighbours at the lowest perplexity, 1
THUMBNAIL = 32  # pixels


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    description = (__doc__ or "").splitlines()[0]
    build(
        resolve(
            "analysis.tsne", description, argv, EXAMPLES, reads_checkpoint=True, unused="results", more=add_arguments
        )
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that choose the images, and --perplexity."""
    add_images(parser)
    parser.add_argument("--perplexity", default=PERPLEXITY, type=_perplexity, help="of t-SNE")


def build(scope: Scope) -> Path:
    """Draw the figure of the checkpoints that exist, unless it is up to date; return its PNG.

    Beside it lie the PDF, a JSON file of points, labels and scores, and the images as one picture, for the page.
    Raises UserError when no checkpoint exists.
    """
    subjects = scope.existing("t-SNE")
    from analysis import features

    images, transform = features.open_images(scope, least=LEAST)
    if images.labels.ndim != 1:
        raise UserError(f"t-SNE colours points by their class, and images of {images.name} have several")
    stem = scope.stem("tsne")
    settings = f"perplexity {scope.perplexity}, {transform!r}, {images.fingerprint}"
    code = digest_of_code("tsne", "embedding", "features")
    inputs = [settings, code, *(f"{s.name}:{s.sha256}" for s in subjects)]
    files = [*figure_files(stem), stem.with_suffix(".json"), stem.with_suffix(".webp")]

    def make() -> None:
        from analysis import drawing, embedding

        classes, labels = by_value(images.classes, images.labels)
        panels = []
        for subject in tqdm(subjects, desc="t-SNE", unit="panel", leave=False):
            x = features.extract(subject, images, transform, scope.runs_folder / "features")
            points = embedding.embed(x, scope.perplexity)
            panels.append((subject.name, points, embedding.scores(x, points, labels)))
        shown = [(name, points, caption(scores)) for name, points, scores in panels]
        drawing.tsne(shown, labels, classes, stem)
        with atomic_path(stem.with_suffix(".webp")) as temporary:
            _thumbnails(images, temporary)
        content = {
            "data": scope.images,
            "perplexity": scope.perplexity,
            "classes": classes,
            "labels": labels.tolist(),
            "panels": [{"model": m, "scores": s, "points": whole(points)} for m, points, s in panels],
        }
        text = json.dumps(content, separators=(",", ":"), allow_nan=False)
        atomic_write(stem.with_suffix(".json"), lambda temporary: temporary.write_text(text, encoding="utf-8"))

    make_once(scope.folder, stem.name, inputs, files, make)
    return files[0]


def by_value(classes: Sequence[str], labels: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Return class names and labels (N,) with digits in their order; other classes stay as they are.

    >>> by_value(["one", "zero"], np.array([0, 1, 1]))
    (['zero', 'one'], array([1, 0, 0]))
    """
    if not set(classes) <= set(DIGITS):
        return list(classes), labels
    shown = sorted(classes, key=DIGITS.index)
    return shown, np.array([shown.index(name) for name in classes])[labels]


def caption(scores: dict[str, float]) -> str:
    """Return a panel's scores in two lines."""

    def number(name: str) -> str:
        return f"{scores[name]:.2f}" if name in scores else "undefined"

    return (
        f"features: silhouette {number('silhouette')}, kNN purity {number('purity')}\n"
        f"map: silhouette {number('map_silhouette')}, kNN purity {number('map_purity')}, "
        f"trustworthiness {number('trustworthiness')}"
    )


def whole(points: np.ndarray) -> list[int]:
    """Return points (N, 2) as whole numbers x0, y0, x1, ... from 0 to GRID, centred and in proportion.

    >>> whole(np.array([[0.0, 0.0], [2.0, 1.0]]))
    [0, 1024, 4095, 3071]
    """
    low, high = points.min(0), points.max(0)
    span = float((high - low).max()) or 1.0
    return (((points - (low + high) / 2) / span + 0.5) * GRID).round().astype(int).ravel().tolist()


def _perplexity(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 1 <= value < float("inf"):
        raise UserError(f"--perplexity is '{text}'; choose a number from 1 on, usually 5 to 50")
    return value


def _thumbnails(images: LabelledImages, path: Path) -> None:
    """Write the images, small, row by row into one square picture."""
    columns = ceil(sqrt(len(images.labels)))
    sheet = Image.new("RGB", (columns * THUMBNAIL, -(-len(images.labels) // columns) * THUMBNAIL))
    for k in range(len(images.labels)):
        image = images.image(k)
        side = min(image.size)
        left, top = ((edge - side) // 2 for edge in image.size)
        small = image.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BILINEAR, (left, top, left + side, top + side))
        sheet.paste(small, (k % columns * THUMBNAIL, k // columns * THUMBNAIL))
    sheet.save(path, format="WEBP", quality=60)


if __name__ == "__main__":
    cli.run(main)
