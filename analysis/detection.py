"""The figures of detection, one per data set: objects and each method's detections in the first test images."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from PIL.Image import Image

from analysis.labels import Corners
from analysis.names import CLASS_COLOURS, DATASETS, model_name, model_order
from analysis.products import digest_of_code, digest_of_files, figure_files, make_once
from analysis.scope import Scope
from common.errors import UserError
from common.images import read_image

ROWS = 10
TASK = "detection-"  # the runs' folders begin with it


class Box(NamedTuple):
    """A box (x0, y0, x1, y1) in the image's pixels. The `score` of an object is None, and it may be `ignored`."""

    box: Corners
    label: int
    score: float | None = None
    ignored: bool = False  # VOC's difficult objects, COCO's crowds: neither right nor wrong to find

    def mark(self, classes: list[str]) -> tuple[Corners, str, str, bool]:
        """Return how it is drawn: the corners, the colour, the text, and whether the edge is dashed."""
        score = "" if self.score is None else f" {self.score:.2f}"
        return self.box, class_colour(self.label), classes[self.label] + score, self.ignored


@dataclass(frozen=True)
class Shown:
    """One test image, relative to the data root, with its objects and a model's detections."""

    path: str
    truth: list[Box]
    detections: list[Box]

    @property
    def best(self) -> list[Box]:
        """The detections of the highest scores, as many as there are objects, weakest first.

        A threshold would not do: whether a network's scores are high or low says little about whether they are right.
        """
        ranked = sorted(self.detections, key=lambda box: -(box.score or 0.0))
        return ranked[: len(self.truth)][::-1]


@dataclass(frozen=True)
class Predictions:
    """What a model's run left for the figure: `predictions.json`."""

    model: str
    file: Path
    classes: list[str]
    score: float  # detections below it are not in the file
    images: list[Shown]

    def photos(self, data: Path) -> list[Image]:
        """Return the shown images in RGB, upright. Raises UserError naming one that is missing or broken."""
        for image in self.images[:ROWS]:
            if not (data / image.path).is_file():
                raise UserError(f"image {data / image.path} of {self.file} is missing; restore the data set")
        return [read_image(data / image.path, upright=True) for image in self.images[:ROWS]]


def build(scope: Scope) -> list[Path]:
    """Draw one figure per data set unless up to date, and return the PNGs. Raises UserError without predictions."""
    found, problems = find(scope)
    if not found:
        remedy = f"make them with `make detection-voc PROFILE={scope.profile}`"
        raise UserError(problems[0] if problems else f"no detections in {scope.runs_folder}; {remedy}")
    made, missing = [], []
    for dataset, predictions in found.items():
        try:
            made.append(_build(scope, dataset, predictions))
        except UserError as error:  # of its photos
            missing.append(str(error))
    if not made:
        raise UserError(missing[0])
    for line in missing:
        print(f"left out: {line}", flush=True)
    return made


def find(scope: Scope) -> tuple[dict[str, list[Predictions]], list[str]]:
    """Return data set -> predictions of each model, in the models' order, by runs with the scope's seed.

    A model whose file is broken, or of other images than the first one's, is left out, and one line says why.
    """
    ending = f"-seed{scope.seed}"
    files: dict[str, dict[str, Path]] = {}
    for path in sorted(scope.runs_folder.glob(f"{TASK}*/*{ending}/predictions.json")):
        dataset = path.parent.parent.name.removeprefix(TASK)
        files.setdefault(dataset, {})[path.parent.name.removesuffix(ending)] = path
    found: dict[str, list[Predictions]] = {}
    problems = []
    for dataset, of_model in sorted(files.items()):
        for model in model_order(of_model):
            try:
                one = read(model, of_model[model])
                first = found.get(dataset, [one])[0]
                if [image.path for image in one.images] != [image.path for image in first.images]:
                    raise UserError(
                        f"{one.file} is of other images than {first.file}; delete the older and run its detection again"
                    )
                found.setdefault(dataset, []).append(one)
            except UserError as error:
                problems.append(str(error))
    return found, problems


def read(model: str, path: Path) -> Predictions:
    """Return what a run left. Raises UserError naming a file that is not of the expected form."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        images = [
            Shown(
                image["path"],
                [Box(_corners(b["box"]), int(b["label"]), ignored=bool(b["ignored"])) for b in image["truth"]],
                [Box(_corners(b["box"]), int(b["label"]), float(b["score"])) for b in image["detections"]],
            )
            for image in content["images"]
        ]
        classes, score = [str(name) for name in content["classes"]], float(content["score"])
        labels = [box.label for image in images for box in (*image.truth, *image.detections)]
        "".join([*classes, *(image.path for image in images)]).encode()  # refuses lone surrogates
        if not images or not all(0 <= label < len(classes) for label in labels):
            raise ValueError("no images, or a label beyond the classes")
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError, OSError) as error:
        raise UserError(f"{path} holds no predictions ({error}); delete it and run the detection again") from None
    return Predictions(model, path, classes, score, images)


def class_colour(label: int) -> str:
    """Return a class's colour; beyond ten they repeat, and the name beside the box tells them apart."""
    return CLASS_COLOURS[label % len(CLASS_COLOURS)]


def _corners(values: Any) -> Corners:
    x0, y0, x1, y1 = map(float, values)
    return x0, y0, x1, y1


def _build(scope: Scope, dataset: str, predictions: list[Predictions]) -> Path:
    stem = scope.folder / f"{TASK}{dataset}"
    first = predictions[0]
    photos = first.photos(scope.data)
    files = [*(scope.data / image.path for image in first.images[:ROWS]), *(one.file for one in predictions)]
    inputs = [digest_of_code("detection", "labels"), *(one.model for one in predictions), digest_of_files(files)]

    def make() -> None:
        from analysis import drawing

        rows = []
        for k, photo in enumerate(photos):
            columns = [first.images[k].truth, *(one.images[k].best for one in predictions)]
            rows.append((photo, [[box.mark(first.classes) for box in boxes] for boxes in columns]))
        note = f"{DATASETS.get(dataset, dataset)}: as many detections as objects, those of the highest scores"
        if any(box.ignored for image in first.images[:ROWS] for box in image.truth):
            note += "\nDashed objects are not counted"
        drawing.detection(["Ground truth", *(model_name(one.model) for one in predictions)], rows, note, stem)

    make_once(scope.folder, stem.name, inputs, figure_files(stem), make)
    return figure_files(stem)[0]
