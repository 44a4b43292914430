"""The recognition data sets: how each is read, split and scored (paper D.1; PROTOCOLS 4.1, 4.2).

A new data set is a reader and an entry in DATASETS.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from common.cli import UserError

if TYPE_CHECKING:
    from common.data import ImageFiles, LabelledImages

PAPER = ("cifar10", "imagenet")  # the profiles that know the paper's data sets
VOC_CLASSES = tuple(
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person "
    "pottedplant sheep sofa train tvmonitor".split()
)
_VOC_HINT = "place the official VOCdevkit there: VOC2007/{JPEGImages,Annotations,ImageSets/Main}, trainval and test"


@dataclass(frozen=True)
class Recognition:
    """A data set as the protocol uses it: `both` is train and val, `val` the indices of val in it."""

    both: LabelledImages
    val: np.ndarray
    test: LabelledImages

    @property
    def train(self) -> np.ndarray:
        """The indices of the training images in `both`, in the order of `both`."""
        return np.setdiff1d(np.arange(len(self.both.labels)), self.val)


@dataclass(frozen=True)
class Spec:
    """How a data set is read from the data root, scored and prepared.

    `size` is the side of the centre crop, `resize` the shorter side before it (None: as it is), `sizes` the
    published numbers of train, val and test images, which the data must have.
    """

    read: Callable[[Path], Recognition]
    metric: str
    size: int = 224
    resize: int | None = 224
    sizes: tuple[int, int, int] | None = None
    profiles: tuple[str, ...] = PAPER

    @property
    def settings(self) -> str:
        """What a result depends on, as text for the record's config_sha256."""
        return f"{self.metric}, resize {self.resize}, crop {self.size}"


def known(profile: str) -> list[str]:
    """Return the data sets of a profile."""
    return [name for name, spec in DATASETS.items() if profile in spec.profiles]


def load(name: str, data: Path) -> Recognition:
    """Read a data set. Raises UserError naming what is missing, or a split that has not its published size."""
    spec = DATASETS[name]
    found = spec.read(data)
    if list(found.both.classes) != list(found.test.classes):
        odd = sorted(set(found.both.classes) ^ set(found.test.classes))
        raise UserError(f"data set {name}: train and test differ in the classes {', '.join(odd)}; restore the data set")
    sizes = (len(found.train), len(found.val), len(found.test.labels))
    if spec.sizes is not None and sizes != spec.sizes:
        raise UserError(
            f"data set {name} has {sizes} images in train, val and test, not {spec.sizes}: it is incomplete; restore it"
        )
    return found


def fifth(n: int) -> np.ndarray:
    """Return the validation indices of the 20 % rule: the first fifth of 0 ... n - 1 after shuffling.

    The legacy generator with seed 0, as upstream's `np.random.seed(0)`, but without touching global state.
    """
    order = np.arange(n)
    np.random.RandomState(0).shuffle(order)
    return order[: int(0.2 * n)]


def _digits(data: Path) -> Recognition:
    from common.embedded import digits

    both = digits(data, "train")
    return Recognition(both, fifth(len(both.labels)), digits(data, "test"))


def _scenes(data: Path) -> Recognition:
    from common.embedded import CLASSES, ensure_embedded

    return read_voc(ensure_embedded(data) / "VOCdevkit" / "VOC2007", "scenes", CLASSES)


def _voc2007(data: Path) -> Recognition:
    return read_voc(data / "VOCdevkit" / "VOC2007", "voc2007", VOC_CLASSES)


def _cifar10(data: Path) -> Recognition:
    from common.cifar import cifar10

    both = cifar10(data, "train")
    return Recognition(both, fifth(len(both.labels)), cifar10(data, "test"))


def read_voc(root: Path, name: str, classes: Sequence[str]) -> Recognition:
    """Read VOC2007's classification task: labels (N, K) from `ImageSets/Main/<class>_<split>.txt`.

    An image is positive if its flag is 1; 0, which says that all objects of the class are difficult, counts
    as negative, as in upstream. Raises UserError naming a missing folder or a file that does not fit.
    """
    if not root.is_dir():
        raise UserError(f"data set folder {root} is missing; {_VOC_HINT}")
    train, val, test = (_voc_split(root, name, classes, split) for split in ("train", "val", "test"))
    from common.data import ImageFiles

    both = ImageFiles(
        f"{name}-trainval", root, [*train.paths, *val.paths], np.concatenate([train.labels, val.labels]), classes
    )
    return Recognition(both, np.arange(len(train.paths), len(both.paths)), test)


def _voc_split(root: Path, name: str, classes: Sequence[str], split: str) -> ImageFiles:
    from common.data import ImageFiles

    columns, order = [], None
    for word in classes:
        path = root / "ImageSets" / "Main" / f"{word}_{split}.txt"
        if not path.is_file():
            raise UserError(f"data set file {path} is missing; {_VOC_HINT}")
        rows = [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        if not rows or any(len(row) != 2 or row[1] not in ("1", "0", "-1") for row in rows):
            raise UserError(f"data set file {path} is no list of images with 1, 0 or -1; restore it")
        stems = [stem for stem, _ in rows]
        if order is not None and stems != order:
            raise UserError(f"data set file {path} lists other images than its neighbours; restore it")
        order = stems
        columns.append([int(flag == "1") for _, flag in rows])
    paths = [f"JPEGImages/{stem}.jpg" for stem in order or ()]
    return ImageFiles(f"{name}-{split}", root, paths, np.asarray(columns, dtype=np.int64).T, classes)


DATASETS: dict[str, Spec] = {
    # The demo pretrains on digits of 32 pixels: they keep their size, and the scenes (digits of 24-80 pixels on
    # 160) shrink until theirs are about as large. Larger images cost more and scored no better.
    "digits": Spec(_digits, "accuracy", size=32, resize=None, profiles=("demo",)),
    "scenes": Spec(_scenes, "mAP11", size=96, resize=96, profiles=("demo",)),
    "cifar10": Spec(_cifar10, "accuracy", sizes=(40_000, 10_000, 10_000)),
    "voc2007": Spec(_voc2007, "mAP11", sizes=(2_501, 2_510, 4_952)),
}
