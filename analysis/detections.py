"""Objects and detections of the first test images, a column each method: `python -m analysis.detections`."""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from analysis.names import CLASS_COLOURS, DATASETS, model_name, model_order
from analysis.products import arguments, digest_of_files, figure_files, folder, make_once
from common import cli
from common.errors import UserError
from common.files import sha256_of_file

MODULE = "analysis.detections"
ROWS = 10
WIDTH = 2.4  # inches of a column
TASK = "detection-"  # begins the folders of the runs


class Box(NamedTuple):
    """A box (x0, y0, x1, y1) in the image's pixels; of an object, `score` is None and `ignored` may be set."""

    box: tuple[float, float, float, float]
    label: int
    score: float | None = None
    ignored: bool = False  # VOC's difficult objects, COCO's crowds: neither right nor wrong to find


@dataclass(frozen=True)
class Shown:
    """One test image, relative to the data root, with its objects and a model's detections."""

    path: str
    truth: list[Box]
    detections: list[Box]

    @property
    def best(self) -> list[Box]:
        """The detections of the highest scores, as many as there are objects, weakest first.

        No threshold: a network's scores are high or low for other reasons than being right.
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


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    build(arguments(MODULE, __doc__ or "", argv))


def build(args: argparse.Namespace) -> list[Path]:
    """Draw a figure a data set unless it is up to date, and return the PNGs. Raises UserError without predictions."""
    made = [_build(args, dataset, found) for dataset, found in find(args.runs / args.profile, args.seed).items()]
    if not made:
        raise UserError(
            f"no detections in {args.runs / args.profile}; make them with `make detection-voc PROFILE={args.profile}`"
        )
    return made


def find(runs: Path, seed: int) -> dict[str, list[Predictions]]:
    """Return data set -> predictions of each model, in the models' order, under `<runs>/detection-<dataset>/`."""
    ending = f"-seed{seed}"
    found: dict[str, dict[str, Path]] = {}
    for path in sorted(runs.glob(f"{TASK}*/*{ending}/predictions.json")):
        dataset = path.parent.parent.name.removeprefix(TASK)
        found.setdefault(dataset, {})[path.parent.name.removesuffix(ending)] = path
    return {
        dataset: [read(model, files[model]) for model in model_order(files)] for dataset, files in sorted(found.items())
    }


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
        if not images or not all(0 <= label < len(classes) for label in labels):
            raise ValueError("no images, or a label beyond the classes")
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise UserError(f"{path} holds no predictions ({error}); run the detection again") from None
    return Predictions(model, path, classes, score, images)


def class_colour(label: int) -> str:
    """Return a class's colour; beyond ten they repeat, and the name beside the box tells them apart."""
    return CLASS_COLOURS[label % len(CLASS_COLOURS)]


def ink_on(colour: str) -> str:
    """Return the colour of text on #rrggbb: black where it looks bright (ITU-R BT.601), else white."""
    red, green, blue = (int(colour[k : k + 2], 16) for k in (1, 3, 5))
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 127 else "white"


def _corners(values: Any) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = map(float, values)
    return x0, y0, x1, y1


def _build(args: argparse.Namespace, dataset: str, found: list[Predictions]) -> Path:
    name = f"{TASK}{dataset}"
    stem = folder(args) / name
    for one in found:
        if [image.path for image in one.images] != [image.path for image in found[0].images]:
            raise UserError(f"{one.file} is of other images than {found[0].file}; run the older detection again")
    images = [args.data / image.path for image in found[0].images[:ROWS]]
    for image in images:
        if not image.is_file():
            raise UserError(f"image {image} of {found[0].file} is missing; restore the data set")
    files = [*images, *(one.file for one in found)]
    inputs = [sha256_of_file(Path(__file__)), *(one.model for one in found), digest_of_files(files)]
    make_once(folder(args), name, inputs, figure_files(stem), lambda: _make(dataset, found, images, stem))
    return figure_files(stem)[0]


def _make(dataset: str, found: list[Predictions], images: list[Path], stem: Path) -> None:
    import numpy as np

    from analysis.style import plt, save
    from common.images import read_image

    titles = ["Ground truth", *(model_name(one.model) for one in found)]
    pictures = [np.asarray(read_image(path)) for path in images]
    heights = [picture.shape[0] / picture.shape[1] for picture in pictures]
    size = (WIDTH * len(titles), WIDTH * sum(heights) + 0.8)
    figure, axes = plt.subplots(
        len(images), len(titles), figsize=size, squeeze=False, layout="constrained", height_ratios=heights
    )
    for number, (row, picture) in enumerate(zip(axes, pictures, strict=True)):
        columns = [found[0].images[number].truth, *(one.images[number].best for one in found)]
        for axis, boxes in zip(row, columns, strict=True):
            axis.imshow(picture)
            axis.set_axis_off()
            for box in boxes:
                _draw(axis, box, found[0].classes)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title)
    note = f"{DATASETS.get(dataset, dataset)}: as many detections as objects, those of the highest scores"
    if any(box.ignored for image in found[0].images[:ROWS] for box in image.truth):
        note += "\nDashed objects are not counted"
    figure.supxlabel(note, fontsize=9)
    save(figure, stem)


def _draw(axis: Any, box: Box, classes: list[str]) -> None:
    from analysis.style import plt

    x0, y0, x1, y1 = box.box
    colour = class_colour(box.label)
    style = "--" if box.ignored else "-"
    # Pixel k of an image reaches from k - 0.5 to k + 0.5 on the axes. White below: the edge shows on any photograph.
    for edge, width, line in (("white", 2.6, "-"), (colour, 1.4, style)):
        place = (x0 - 0.5, y0 - 0.5)
        axis.add_patch(plt.Rectangle(place, x1 - x0, y1 - y0, fill=False, edgecolor=edge, lw=width, linestyle=line))
    text = classes[box.label] + ("" if box.score is None else f" {box.score:.2f}")
    patch = dict(facecolor=colour, edgecolor="none", pad=0.8)
    axis.text(x0, y0, text, fontsize=5.5, color=ink_on(colour), verticalalignment="bottom", bbox=patch, clip_on=True)


if __name__ == "__main__":
    cli.run(main)
