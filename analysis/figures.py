"""Segmentation of the first validation images by each method (paper, F and figure 2): `python -m analysis.figures`.

A row each: image, ground truth, and the prediction of each method at the image's own size, in the data set's
colours; unlabelled pixels are black. The legend names the classes that occur.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.names import model_name, model_order
from analysis.products import arguments, digest_of_files, figure_files, folder, make_once
from common import cli
from common.errors import UserError
from common.files import sha256_of_file

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

MODULE = "analysis.figures"
ROWS = 10  # the paper shows the first ten images
LEGEND_UP_TO = 151  # classes: all of ADE20K's, and unlabelled
COLUMN = 1.2  # inches
FONT = 7  # points
PREDICT = "run the segmentation again"
_KEYS = ("images", "annotations", "palette", "classes")


@dataclass(frozen=True)
class Predictions:
    """A model's predictions folder and its `index.json`."""

    model: str
    folder: Path
    index: dict[str, Any]

    def of(self, image: str) -> Path:
        """Return the file of the prediction for an image. Raises UserError when it is missing."""
        path = self.folder / f"{Path(image).stem}.png"
        if not path.is_file():
            raise UserError(
                f"prediction {path} is missing; make it with `make segmentation-ade20k METHOD={self.model}`"
            )
        return path


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    build(arguments(MODULE, (__doc__ or "").splitlines()[0], argv))


def build(args: argparse.Namespace) -> Path:
    """Draw the figure unless it is up to date, and return its PNG. Raises UserError without predictions."""
    found = find_predictions(args.runs / args.profile / "segmentation-ade20k", args.seed)
    if not found:
        raise UserError(
            f"no segmentation predictions in {args.runs / args.profile}; make them with "
            f"`make segmentation-ade20k PROFILE={args.profile}`"
        )
    pairs = list(zip(found[0].index["images"], found[0].index["annotations"], strict=True))[:ROWS]
    files = [args.data / path for pair in pairs for path in pair]
    for path in files:
        if not path.is_file():
            raise UserError(f"image {path} of {found[0].folder / 'index.json'} is missing; restore the data set")
    files += [path for p in found for path in (p.folder / "index.json", *(p.of(image) for image, _ in pairs))]
    inputs = [sha256_of_file(Path(__file__)), *(p.model for p in found), digest_of_files(files)]
    stem = folder(args) / "segmentation"
    make_once(folder(args), "segmentation", inputs, figure_files(stem), lambda: _make(found, pairs, args.data, stem))
    return figure_files(stem)[0]


def find_predictions(runs: Path, seed: int) -> list[Predictions]:
    """Return the predictions under `<runs>/<model>-seed<seed>/predictions`, in the order of the models."""
    ending = f"-seed{seed}"
    folders = {
        path.parent.parent.name.removesuffix(ending): path for path in runs.glob(f"*{ending}/predictions/index.json")
    }
    return [Predictions(model, folders[model].parent, _read_index(folders[model])) for model in model_order(folders)]


def rows(
    found: list[Predictions], pairs: list[tuple[str, str]], data: Path
) -> Iterator[tuple["Image", list["np.ndarray"]]]:
    """Yield for each image and annotation (paths under `data`) the photo and its maps (H, W) int64.

    The first map is the truth, the others are what `found` predict: 0-based classes, unlabelled is -1. Raises
    UserError naming a file that is broken or does not fit its photo.
    """
    from common.images import read_class_map, read_image

    classes = len(found[0].index["classes"])
    for image, annotation in pairs:
        photo = read_image(data / image)
        size = (photo.height, photo.width)
        # ADE20K's annotations count from 1 and 0 is unlabelled; predictions count from 0.
        maps = [read_class_map(data / annotation, size, classes).astype(int) - 1]
        maps += [read_class_map(p.of(image), size, classes - 1, remedy=PREDICT).astype(int) for p in found]
        yield photo, maps


def colour(classes: "np.ndarray", palette: list[list[int]]) -> "np.ndarray":
    """Return a class map (H, W), 0-based, in the palette's colours (H, W, 3) uint8; negative = unlabelled = black."""
    import numpy as np

    black_last = np.asarray([*palette, (0, 0, 0)], dtype=np.uint8)
    return black_last[np.where(classes < 0, len(palette), classes)]


def _read_index(path: Path) -> dict[str, Any]:
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        wrong = [key for key in _KEYS if not isinstance(index[key], list) or not index[key]]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no index of predictions ({error}); {PREDICT}") from None
    if wrong or len(index["images"]) != len(index["annotations"]) or len(index["palette"]) != len(index["classes"]):
        raise UserError(f"{path} is no index of predictions (its lists do not fit); {PREDICT}")
    return index


def _make(found: list[Predictions], pairs: list[tuple[str, str]], data: Path, stem: Path) -> None:
    import numpy as np

    from analysis.style import plt, save

    palette, classes = found[0].index["palette"], found[0].index["classes"]
    titles = ["Image", "Ground truth", *(model_name(p.model) for p in found)]
    drawn = list(rows(found, pairs, data))
    heights = [photo.height / photo.width for photo, _ in drawn]
    figure, axes = plt.subplots(
        *(len(drawn), len(titles)),
        figsize=(COLUMN * len(titles), COLUMN * sum(heights)),
        squeeze=False,
        height_ratios=heights,
        gridspec_kw={"wspace": 0.03, "hspace": 0.03},
    )
    for row, (photo, maps) in zip(axes, drawn, strict=True):
        row[0].imshow(photo)
        for axis, classes_of in zip(row[1:], maps, strict=True):
            axis.imshow(colour(classes_of, palette), interpolation="none")  # in the PDF every pixel is there
        for axis in row:
            axis.set_axis_off()
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=FONT)
    seen = np.unique(np.concatenate([np.unique(one) for _, maps in drawn for one in maps])).tolist()
    named = [(classes[k], palette[k]) for k in seen if k >= 0] + [("unlabelled", [0, 0, 0])] * (-1 in seen)
    if len(named) <= LEGEND_UP_TO:
        patches = [
            plt.Rectangle((0, 0), 1, 1, facecolor=np.divide(rgb, 255), edgecolor="#888888", linewidth=0.4)
            for _, rgb in named
        ]
        anchor = axes[-1][0].get_position()
        figure.legend(
            patches,
            [name for name, _ in named],
            loc="upper center",
            bbox_to_anchor=(0.5, anchor.y0 - 0.005),
            ncols=len(titles),
            fontsize=FONT,
            handlelength=1,
            handleheight=1,
            columnspacing=1,
        )
    save(figure, stem)


if __name__ == "__main__":
    cli.run(main)
