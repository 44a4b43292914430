"""The figure of segmentation: the first validation images and each method's prediction (paper, F and figure 2).

Each row has the image, the ground truth, and the prediction of each method at the image's own size, in the data set's
colours; unlabelled pixels are black. The legend names the classes that occur.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL.Image import Image

from analysis.names import model_name, model_order
from analysis.products import digest_of_code, digest_of_files, figure_files, make_once
from analysis.scope import Scope
from common.errors import UserError
from common.images import read_class_map, read_image
from common.preflight import image_size

ROWS = 10  # the paper shows the first ten images
UNLABELLED = ("unlabelled", [0, 0, 0])
PREDICT = "delete it and run the segmentation again"
_KEYS = ("images", "annotations", "palette", "classes")


@dataclass(frozen=True)
class Predictions:
    """A model's predictions folder and its `index.json`."""

    model: str
    folder: Path
    index: dict[str, Any]

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The images that are shown and their annotations, as paths under the data root."""
        return list(zip(self.index["images"], self.index["annotations"], strict=True))[:ROWS]

    def of(self, image: str) -> Path:
        """Return the file of the prediction for an image. Raises UserError when it is missing."""
        path = self.folder / f"{Path(image).stem}.png"
        if not path.is_file():
            raise UserError(
                f"prediction {path} is missing; make it with `make segmentation-ade20k METHOD={self.model}`"
            )
        return path

    def read(self, image: str, size: tuple[int, int]) -> np.ndarray:
        """Return the predicted classes (H, W) int64 of an image of that (height, width). Raises UserError if broken."""
        return read_class_map(self.of(image), size, len(self.index["classes"]) - 1, remedy=PREDICT).astype(int)


def build(scope: Scope) -> Path:
    """Draw the figure unless it is up to date, and return its PNG. Raises UserError without predictions."""
    predictions, problems = find(scope)
    if not predictions:
        remedy = f"make them with `make segmentation-ade20k PROFILE={scope.profile}`"
        raise UserError(problems[0] if problems else f"no segmentation predictions in {scope.runs_folder}; {remedy}")
    first = predictions[0]
    files = [scope.data / path for pair in first.pairs for path in pair]
    for path in files:
        if not path.is_file():
            raise UserError(f"image {path} of {first.folder / 'index.json'} is missing; restore the data set")
    files += [
        path for p in predictions for path in (p.folder / "index.json", *(p.of(image) for image, _ in first.pairs))
    ]
    inputs = [digest_of_code("segmentation"), *(p.model for p in predictions), digest_of_files(files)]
    stem = scope.folder / "segmentation"

    def make() -> None:
        from analysis import drawing

        drawn = list(rows(predictions, scope.data))
        palette = first.index["palette"]
        coloured = [(photo, [colour(one, palette) for one in maps]) for photo, maps in drawn]
        seen = {label for _, maps in drawn for one in maps for label in np.unique(one).tolist()}
        titles = ["Image", "Ground truth", *(model_name(p.model) for p in predictions)]
        drawing.segmentation(titles, coloured, legend(first, seen), stem)

    make_once(scope.folder, "segmentation", inputs, figure_files(stem), make)
    return figure_files(stem)[0]


def find(scope: Scope) -> tuple[list[Predictions], list[str]]:
    """Return the predictions of each model, in the models' order, by runs of ADE20K with the scope's seed.

    A model whose files are broken is left out, and one line says why.
    """
    ending = f"-seed{scope.seed}"
    indices = (scope.runs_folder / "segmentation-ade20k").glob(f"*{ending}/predictions/index.json")
    files = {path.parent.parent.name.removesuffix(ending): path for path in indices}
    found: list[Predictions] = []
    problems = []
    for model in model_order(files):
        try:
            one = Predictions(model, files[model].parent, _read_index(files[model]))
            for image, _ in (found or [one])[0].pairs:
                one.of(image)
                if (scope.data / image).is_file():  # else `build` names it
                    one.read(image, image_size(scope.data / image)[::-1])
            found.append(one)
        except UserError as error:
            problems.append(str(error))
    return found, problems


def rows(predictions: list[Predictions], data: Path) -> Iterator[tuple[Image, list[np.ndarray]]]:
    """Yield each shown photo with its class maps (H, W) int64: the truth, then each prediction.

    Classes count from 0, and unlabelled pixels are -1. Raises UserError naming a file that is broken or does not fit
    its photo.
    """
    classes = len(predictions[0].index["classes"])
    for image, annotation in predictions[0].pairs:
        photo = read_image(data / image)
        size = (photo.height, photo.width)
        # ADE20K's annotations count from 1 and 0 is unlabelled; predictions count from 0.
        maps = [read_class_map(data / annotation, size, classes).astype(int) - 1]
        maps += [p.read(image, size) for p in predictions]
        yield photo, maps


def legend(predictions: Predictions, seen: set[int]) -> list[tuple[str, list[int]]]:
    """Return the name and the RGB colour of each class in `seen`, -1 being unlabelled; one entry per colour."""
    names: dict[tuple[int, ...], list[str]] = {}
    for label in sorted(seen, key=lambda label: (label < 0, label)):
        name, rgb = (predictions.index[key][label] for key in ("classes", "palette")) if label >= 0 else UNLABELLED
        names.setdefault(tuple(rgb), []).append(name)
    return [(" or ".join(of_colour), list(rgb)) for rgb, of_colour in names.items()]


def colour(classes: np.ndarray, palette: list[list[int]]) -> np.ndarray:
    """Return a class map (H, W), 0-based, in the palette's colours (H, W, 3) uint8; negative = unlabelled = black."""
    black_last = np.asarray([*palette, (0, 0, 0)], dtype=np.uint8)
    return black_last[np.where(classes < 0, len(palette), classes)]


def _read_index(path: Path) -> dict[str, Any]:
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        wrong = [key for key in _KEYS if not isinstance(index[key], list) or not index[key]]
        for text in (*index["images"], *index["annotations"], *index["classes"]):
            str.encode(text)  # it is text, and no lone surrogate
        if not all(len(bytes(colour)) == 3 for colour in index["palette"]):  # bytes refuses all but 0 to 255
            raise ValueError("a colour is not three numbers")
    except (ValueError, KeyError, TypeError, RecursionError, OSError) as error:
        raise UserError(f"{path} is not an index of predictions ({error}); {PREDICT}") from None
    if wrong or len(index["images"]) != len(index["annotations"]) or len(index["palette"]) != len(index["classes"]):
        raise UserError(f"{path} is not an index of predictions (its lists do not fit); {PREDICT}")
    return index
