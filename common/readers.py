"""The readers that `common.sources` names: the official files of each recognition data set as labelled images.

Each takes the data root and a split, and raises UserError naming what is missing or damaged (PROTOCOLS 4.1, 4.2).
"""

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from torchvision import datasets as tv

from common.embedded import CLASSES, ensure_embedded
from common.errors import UserError
from common.images import ImageFiles, image_folder, image_split
from common.preflight import read_lines
from common.sources import SOURCES, remedy

VOC_CLASSES = tuple(
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person "
    "pottedplant sheep sofa train tvmonitor".split()
)
CALTECH_PER_CLASS = 30


def aircraft(data: Path, split: str) -> ImageFiles:
    """Read FGVC-Aircraft by variant."""
    needs = ["data/images", "data/variants.txt", f"data/images_variant_{split}.txt"]
    return _official("aircraft", data, split, needs, lambda: tv.FGVCAircraft(data, split, "variant"))


def caltech101(
    data: Path, split: str, *, lists: Mapping[str, Sequence[str]] | None = None, upstream: bool = False
) -> ImageFiles:
    """Read Caltech-101 as `lists` say, by default as drawn; labels are the sorted folders, BACKGROUND_Google 0."""
    root = data / "caltech101" / "101_ObjectCategories"
    images = image_folder(root, name="caltech101", hint=remedy("caltech101", data))
    label_of = dict(zip(images.paths, images.labels.tolist(), strict=True))
    paths = (draw_caltech(images, upstream=upstream) if lists is None else lists)[split]
    gone = next((path for path in paths if path not in label_of), None)
    if gone is not None:
        raise UserError(f"image {root / gone} of the {split} list is missing; restore it or correct the list")
    labels = np.asarray([label_of[path] for path in paths], dtype=np.int64)
    return ImageFiles(f"caltech101-{split}", root, paths, labels, images.classes)


def caltech101_sst(data: Path, split: str) -> ImageFiles:
    """Read Caltech-101 by ssl-transfer's split."""
    return caltech101(data, split, upstream=True)


def draw_caltech(images: ImageFiles, *, upstream: bool = False) -> dict[str, list[str]]:
    """Draw Caltech-101's split: 30 images of each class for training, all others for test; sorted paths of each.

    The paper's appendix D.1 says no more. By default the 30 differ: class after class, the first of a permutation by
    the legacy generator with seed 0, whose stream NumPy has frozen. `upstream` gives ssl-transfer's list of 2021
    (`caltech101-splits/train.txt`), which was drawn with replacement, so that some images count two or three times;
    it depends only on the names.
    """
    generator = np.random.RandomState(0)
    train: list[str] = []
    for label in range(len(images.classes)):
        paths = [images.paths[k] for k in np.flatnonzero(images.labels == label).tolist()]
        if upstream:
            drawn = generator.choice(len(paths), CALTECH_PER_CLASS)
        else:
            drawn = generator.permutation(len(paths))[:CALTECH_PER_CLASS]
        train += [paths[k] for k in np.sort(drawn)]
    taken = set(train)
    return {"train": train, "test": [path for path in images.paths if path not in taken]}


def cars(data: Path, split: str) -> ImageFiles:
    """Read Stanford Cars; the test labels lie beside `devkit`, as for torchvision, or in it, as for upstream."""
    inside = Path("devkit") / "cars_test_annos_withlabels.mat"

    class Cars(tv.StanfordCars):
        def _check_exists(self) -> bool:
            if split == "test" and (self._base_folder / inside).exists():
                self._annotations_mat_path: Path = self._base_folder / inside
            return super()._check_exists()

    labels = str(inside) if (data / "stanford_cars" / inside).exists() else inside.name
    annotations = {"train": "devkit/cars_train_annos.mat", "test": labels}[split]
    needs = [f"cars_{split}", "devkit/cars_meta.mat", annotations]
    return _official("cars", data, split, needs, lambda: Cars(data, split))


def dtd(data: Path, split: str) -> ImageFiles:
    """Read the first partition of DTD."""
    needs = ["dtd/images", f"dtd/labels/{split}1.txt"]
    return _official("dtd", data, split, needs, lambda: tv.DTD(data, split, partition=1))


def flowers(data: Path, split: str) -> ImageFiles:
    """Read Flowers-102, whatever the MD5 of its lists: `check_published` compares them."""

    class Flowers(tv.Flowers102):
        def _check_integrity(self) -> bool:
            return True

    needs = ["jpg", "setid.mat", "imagelabels.mat"]
    return _official("flowers", data, split, needs, lambda: Flowers(data, split))


def food(data: Path, split: str) -> ImageFiles:
    """Read Food-101 class by class, as upstream does: the order decides which fifth is validation."""
    needs = ["images", f"meta/{split}.json"]
    images = _official("food", data, split, needs, lambda: tv.Food101(data, split))
    order = np.argsort(images.labels, kind="stable")
    return replace(images, paths=[images.paths[k] for k in order], labels=images.labels[order])


def pets(data: Path, split: str) -> ImageFiles:
    """Read the breeds of Oxford-IIIT Pets."""
    needs = ["images", f"annotations/{split}.txt"]
    return _official("pets", data, split, needs, lambda: tv.OxfordIIITPet(data, split))


def sun397(data: Path, split: str) -> ImageFiles:
    """Read the first official split, images and classes in the order of the official lists.

    An image's class is its folder. Upstream's reader (`datasets/sun397.py`) takes the first class whose name occurs
    anywhere in the path, which labels the barns as bars; we do not follow it.
    """
    root = data / "SUN397"
    names = _lines(root / "ClassName.txt", remedy("sun397", data))  # /a/abbey
    label_of = {name: label for label, name in enumerate(names)}
    if len(label_of) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"data set file {root / 'ClassName.txt'} has {twice} twice; {remedy('sun397', data)}")
    file = root / {"train": "Training_01.txt", "test": "Testing_01.txt"}[split]
    paths = _lines(file, "unpack the official Partitions.zip there")
    odd = next((path for path in paths if path.rpartition("/")[0] not in label_of), None)
    if odd is not None:
        raise UserError(f"data set file {file} has {odd}, whose class is not in ClassName.txt; restore it")
    labels = np.asarray([label_of[path.rpartition("/")[0]] for path in paths], dtype=np.int64)
    relative = [path.removeprefix("/") for path in paths]
    return ImageFiles(f"sun397-{split}", root, relative, labels, [name[3:] for name in names])


def voc2007(data: Path, split: str) -> ImageFiles:
    """Read the classification task of VOC2007."""
    return read_voc(data / "VOCdevkit" / "VOC2007", "voc2007", VOC_CLASSES, split, remedy("voc2007", data))


def scenes(data: Path, split: str) -> ImageFiles:
    """Read which digits each of the demo's scenes shows, writing the demo's data if needed."""
    root = ensure_embedded(data) / "VOCdevkit" / "VOC2007"
    return read_voc(root, "scenes", CLASSES, split, remedy("scenes", data))


def imagenet(data: Path, split: str) -> ImageFiles:
    """Read ImageNet's "train" or, as "test", its validation images from `<data>/imagenet`."""
    return image_split(data / "imagenet", split, "imagenet", remedy("imagenet", data))


def read_voc(root: Path, name: str, classes: Sequence[str], split: str, remedy: str) -> ImageFiles:
    """Read VOC2007's classification task: labels (N, K) of 0 and 1 from `ImageSets/Main/<class>_<split>.txt`.

    An image is positive if its flag is 1; 0, which says that all objects of the class are difficult, counts as
    negative, as in upstream. Raises UserError, ending with `remedy`, for a missing folder or a file that does not fit.
    """
    if not root.is_dir():
        raise UserError(f"data set folder {root} is missing; {remedy}")
    columns, order = [], None
    for word in classes:
        path = root / "ImageSets" / "Main" / f"{word}_{split}.txt"
        rows = [line.split() for line in _lines(path, remedy)]
        if any(len(row) != 2 or row[1] not in ("1", "0", "-1") for row in rows):
            raise UserError(f"data set file {path} is not a list of images with 1, 0 or -1; restore it")
        stems = [stem for stem, _ in rows]
        if order is not None and stems != order:
            raise UserError(f"data set file {path} lists other images than its neighbours; restore it")
        order = stems
        columns.append([int(flag == "1") for _, flag in rows])
    paths = [f"JPEGImages/{stem}.jpg" for stem in order or ()]
    return ImageFiles(f"{name}-{split}", root, paths, np.asarray(columns, dtype=np.int64).T, classes)


def _official(name: str, data: Path, split: str, needs: Sequence[str], read: Callable[[], Any]) -> ImageFiles:
    """Return the images and labels that `read()`, a data set of torchvision, lists.

    `needs` are the files and folders of the data set that must be there: torchvision does not say which one it misses.
    The last is the file with the labels.
    """
    root, how = data / SOURCES[name].folder, remedy(name, data)
    for path in (root / need for need in needs):
        if not path.exists():
            raise UserError(f"data set {name}: {path} is missing; {how}")
        if path.suffix == ".mat" and not _is_readable(path, path.stat().st_mtime_ns):
            raise UserError(f"data set {name}: {path} is damaged; {how}")
    try:
        source = read()
        files, numbers = _files_and_labels(source)
        paths = [str(Path(file).relative_to(root)) for file in files]
        labels, classes = np.asarray(numbers), [str(word) for word in source.classes]
        if labels.dtype.kind not in "iu":
            raise ValueError("a label is not a whole number")
        if not paths:
            raise ValueError("it lists no image")
    except Exception as error:  # the parsers of five formats have errors of their own
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UserError(f"data set {name}: the {split} list in {root} is damaged ({reason}); {how}") from error
    for image, label in zip(paths, labels.tolist(), strict=True):
        if not 0 <= label < len(classes):
            said = f"data set {name}: {root / needs[-1]} gives {image} the label {label}"
            raise UserError(f"{said}, beyond 0 to {len(classes) - 1}; {how}")
    if len(set(classes)) < len(classes):
        twice = next(word for word in classes if classes.count(word) > 1)
        raise UserError(f"data set {name}: the class {twice} has several labels in the lists of {root}; {how}")
    return ImageFiles(f"{name}-{split}", root, paths, labels.astype(np.int64), classes)


@cache
def _is_readable(path: Path, changed: int) -> bool:
    """Return whether scipy reads a .mat file; `changed` is its time of change, so that each state is read once.

    In a process of its own, because a damaged file can crash scipy.
    """
    script = "import sys, scipy.io; scipy.io.loadmat(sys.argv[1], squeeze_me=True)"
    return subprocess.run([sys.executable, "-c", script, path], capture_output=True, check=False).returncode == 0


def _files_and_labels(source: Any) -> tuple[Sequence[Any], Sequence[int]]:
    """Return the image files and labels, which torchvision's classes keep under three names."""
    if hasattr(source, "_samples"):
        return [file for file, _ in source._samples], [label for _, label in source._samples]
    return source._image_files if hasattr(source, "_image_files") else source._images, source._labels


def _lines(path: Path, remedy: str) -> list[str]:
    lines = read_lines(path, "data set file", remedy)
    if not lines:
        raise UserError(f"data set file {path} is empty; {remedy}")
    return lines
