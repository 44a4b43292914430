"""Segmentation of the first validation images by each method (paper, figure 2): `python -m analysis.figures`."""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.names import model_name, model_order
from analysis.products import arguments, digest_of_files, figure_files, folder, make_once
from common import cli
from common.cli import UserError
from common.files import sha256_of_file

if TYPE_CHECKING:
    import numpy as np

MODULE = "analysis.figures"
ROWS = 10  # the paper shows the first ten images
LEGEND_UP_TO = 20  # classes
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
    build(arguments(MODULE, __doc__ or "", argv))


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
        raise UserError(f"{path} is no index of predictions ({error}); run the segmentation again") from None
    if wrong or len(index["images"]) != len(index["annotations"]) or len(index["palette"]) != len(index["classes"]):
        raise UserError(f"{path} is no index of predictions (its lists do not fit); run the segmentation again")
    return index


def _make(found: list[Predictions], pairs: list[tuple[str, str]], data: Path, stem: Path) -> None:
    import numpy as np
    from PIL import Image

    from analysis.style import plt, save
    from common.data import read_image

    palette, classes = found[0].index["palette"], found[0].index["classes"]
    titles = ["Image", "Ground truth", *(model_name(p.model) for p in found)]
    figure, axes = plt.subplots(
        len(pairs), len(titles), figsize=(1.9 * len(titles), 1.9 * len(pairs)), squeeze=False, layout="constrained"
    )
    seen: set[int] = set()
    for row, (image, annotation) in zip(axes, pairs, strict=True):
        # ADE20K's annotations count from 1 and 0 is unlabelled; predictions count from 0.
        truth = np.asarray(Image.open(data / annotation)).astype(int) - 1
        maps = [truth, *(np.asarray(Image.open(p.of(image))).astype(int) for p in found)]
        seen |= {int(label) for one in maps for label in np.unique(one) if label >= 0}
        if max(seen) >= len(classes):
            raise UserError(f"{data / annotation} or its predictions hold class {max(seen)} of {len(classes)}")
        for axis, shown in zip(
            row, [np.asarray(read_image(data / image)), *(colour(m, palette) for m in maps)], strict=True
        ):
            axis.imshow(shown)
            axis.set_axis_off()
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title)
    if len(seen) <= LEGEND_UP_TO:
        patches = [
            plt.Rectangle((0, 0), 1, 1, facecolor=np.divide(palette[k], 255), edgecolor="#888888") for k in sorted(seen)
        ]
        figure.legend(patches, [classes[k] for k in sorted(seen)], loc="outside lower center", ncols=6)
    save(figure, stem)


if __name__ == "__main__":
    cli.run(main)
