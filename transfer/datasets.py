"""The recognition data sets: how each is read, split and scored (paper D.1; PROTOCOLS 4.1, 4.2).

A new data set is a reader and a line in DATASETS. `python -m transfer.datasets --dataset dtd` checks one on disk.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common import cli
from common.download import SOURCES
from common.errors import UserError
from common.names import make_data

if TYPE_CHECKING:
    from common.images import ImageFiles, LabelledImages

DEMO = ("demo",)
PAPER = ("cifar10", "imagenet")  # the profiles that know the paper's data sets
VOC_CLASSES = tuple(
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person "
    "pottedplant sheep sofa train tvmonitor".split()
)
CALTECH_PER_CLASS = 30
THREE = ("train", "val", "test")


class NotPublishedError(UserError):
    """A data set that is all there, but not the published one: of another size, or with lists of another checksum."""


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
    """How a data set is read from the data root, scored and prepared: a line of the table DATASETS.

    `classes` and `sizes` (train, val, test) are the published numbers, which the data must have (None: not
    checked), and `splits` says where they come from. `drawn`: our own code draws the split, so the lists are
    written beside the records. `by_name`: not part of DATASET=all. `read_any` reads a copy of any size where `read`
    insists on the published files. `size` is the side of the centre crop, `resize`
    the shorter side before it (None: as it is).
    """

    read: Callable[[Path], Recognition]
    metric: str
    classes: int | None = None
    sizes: tuple[int, int, int] | None = None
    splits: str = ""
    size: int = 224
    resize: int | None = 224
    profiles: tuple[str, ...] = PAPER
    drawn: bool = False
    by_name: bool = False
    read_any: Callable[[Path], Recognition] | None = None

    @property
    def settings(self) -> str:
        """What a result depends on, as text for the record's config_sha256."""
        return f"{self.metric}, resize {self.resize}, crop {self.size}"


def known(profile: str) -> list[str]:
    """Return the data sets of a profile."""
    return [name for name, spec in DATASETS.items() if profile in spec.profiles]


def suite(profile: str) -> list[str]:
    """Return what DATASET=all means: the data sets of a profile without the variants of one."""
    return [name for name in known(profile) if not DATASETS[name].by_name]


def load(name: str, data: Path, split_file: Path | None = None, *, any_size: bool = False) -> Recognition:
    """Read a data set. Raises UserError naming what is missing, NotPublishedError what has not the published size.

    `split_file` replaces the split of a data set whose split is drawn; see `read_split`. Its sizes are free.
    `any_size` takes a smaller copy in the official layout for what it is.
    """
    spec = DATASETS[name]
    if split_file is not None:
        found = _caltech(data, read_split(split_file))
    else:
        found = (spec.read_any or spec.read)(data) if any_size else spec.read(data)
    if list(found.both.classes) != list(found.test.classes):
        odd = sorted(set(found.both.classes) ^ set(found.test.classes))
        raise UserError(f"data set {name}: train and test differ in the classes {', '.join(odd)}; restore the data set")
    classes, sizes = len(found.both.classes), (len(found.train), len(found.val), len(found.test.labels))
    for what, has, published in (
        ("classes", classes, spec.classes),
        ("images in train, val and test", sizes, spec.sizes if split_file is None else None),
    ):
        if published is not None and has != published and not any_size:
            raise NotPublishedError(
                f"data set {name} has {has} {what}, not {published}: it is not the published one; {_remedy(name, data)}"
            )
    return found


def fifth(n: int) -> np.ndarray:
    """Return the validation indices of the 20 % rule: the first fifth of 0 ... n - 1 after shuffling.

    The legacy generator with seed 0, as upstream's `np.random.seed(0)`, but without touching global state.
    """
    order = np.arange(n)
    np.random.RandomState(0).shuffle(order)
    return order[: int(0.2 * n)]


def main(argv: Sequence[str] | None = None) -> None:
    """Read data sets whole, images' names included, and say what they hold. Raises UserError on the first fault."""
    parser = cli.Parser("transfer.datasets", description="check data sets on disk")
    parser.add_argument("--dataset", required=True, help=f"one or several of {', '.join(DATASETS)}")
    parser.add_argument("--data", default="data", type=cli.path, help="root folder of the data sets")
    args = parser.parse_args(argv)
    for name in map(cli.one_of("DATASET", DATASETS), args.dataset.replace(",", " ").split()):
        found = load(name, args.data)
        for images in (found.both, found.test):
            _ = images.fingerprint  # names an image that is not there
        sizes = f"{len(found.train)} train, {len(found.val)} val and {len(found.test.labels)} test images"
        print(f"{name}: {sizes} of {len(found.both.classes)} classes, as published")


# ---- the readers, in the order of the table ----


def _digits(data: Path) -> Recognition:
    from common.embedded import digits

    both = digits(data, "train")
    return Recognition(both, fifth(len(both.labels)), digits(data, "test"))


def _scenes(data: Path) -> Recognition:
    from common.embedded import CLASSES, ensure_embedded

    folder = ensure_embedded(data) / "VOCdevkit" / "VOC2007"
    return read_voc(folder, "scenes", CLASSES, "delete data/demo and run the command again")


def _aircraft(data: Path) -> Recognition:
    needs = ["data/images", "data/variants.txt", "data/images_variant_{split}.txt"]
    return _recognition(
        *_official("aircraft", data, needs, THREE, lambda tv, split: tv.FGVCAircraft(data, split, "variant"))
    )


def _caltech(data: Path, split: Mapping[str, Sequence[str]] | None = None, *, upstream: bool = False) -> Recognition:
    """Read Caltech-101 as `split` says, by default as drawn; labels are the sorted folders, BACKGROUND_Google 0."""
    from common.images import ImageFiles, image_folder

    root = data / "caltech101" / "101_ObjectCategories"
    images = image_folder(root, name="caltech101", hint=_remedy("caltech101", data))
    label_of = dict(zip(images.paths, images.labels.tolist(), strict=True))
    split = draw_caltech(images, upstream=upstream) if split is None else split
    parts = []
    for part, paths in split.items():
        gone = next((path for path in paths if path not in label_of), None)
        if gone is not None:
            raise UserError(f"image {root / gone} of the {part} list is missing; restore it or correct the list")
        labels = np.asarray([label_of[path] for path in paths], dtype=np.int64)
        parts.append(ImageFiles(f"caltech101-{part}", root, paths, labels, images.classes))
    return _recognition(*parts)


def draw_caltech(images: ImageFiles, *, upstream: bool = False) -> dict[str, list[str]]:
    """Draw Caltech-101's split: 30 images of each class for training, all others for test; sorted paths of each.

    The paper's appendix D.1 says no more. By default, 30 different ones: class after class, the first of a
    permutation by the legacy generator with seed 0, whose stream NumPy has frozen. `upstream`: ssl-transfer's
    list of 2021 (`caltech101-splits/train.txt`), which was drawn with replacement, so that some images count
    two or three times; it depends on the names alone.
    """
    generator = np.random.RandomState(0)
    train: list[str] = []
    for label in range(len(images.classes)):
        paths = [images.paths[k] for k in np.flatnonzero(images.labels == label)]
        if upstream:
            drawn = generator.choice(len(paths), CALTECH_PER_CLASS)
        else:
            drawn = generator.permutation(len(paths))[:CALTECH_PER_CLASS]
        train += [paths[k] for k in np.sort(drawn)]
    taken = set(train)
    return {"train": train, "test": [path for path in images.paths if path not in taken]}


def read_split(path: Path) -> dict[str, list[str]]:
    """Read lists as `splits/caltech101.json` beside the records has them: {"train": [paths], "test": [paths]}.

    Paths are relative to 101_ObjectCategories. Raises UserError naming the file when it is something else, or
    when an image is in both lists.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--split-file {path} cannot be read ({error.strerror}); correct the path") from None
    except ValueError as error:
        raise UserError(f"--split-file {path} is no JSON ({error}); correct it") from None
    lists: list[Any] = [content.get(part) for part in ("train", "test")] if isinstance(content, dict) else [None]
    if not all(isinstance(part, list) and part and all(isinstance(word, str) for word in part) for part in lists):
        raise UserError(f'--split-file {path} is not {{"train": [paths], "test": [paths]}}; correct it')
    train, test = lists
    shared = sorted(set(train) & set(test))
    if shared:
        raise UserError(f"--split-file {path} has {shared[0]} in train and in test; remove it from one")
    return {"train": train, "test": test}


def _cars(data: Path) -> Recognition:
    inside = Path("devkit") / "cars_test_annos_withlabels.mat"  # upstream's place; torchvision's is beside devkit

    def read(tv: Any, split: str) -> Any:
        class Cars(tv.StanfordCars):
            def _check_exists(self) -> bool:
                if split == "test" and (self._base_folder / inside).exists():
                    self._annotations_mat_path: Path = self._base_folder / inside
                return super()._check_exists()

        return Cars(data, split)

    labels = str(inside) if (data / "stanford_cars" / inside).exists() else inside.name
    needs = ["cars_train", "cars_test", "devkit/cars_meta.mat", "devkit/cars_train_annos.mat", labels]
    return _recognition(*_official("cars", data, needs, ("train", "test"), read))


def _cifar10(data: Path) -> Recognition:
    from common.cifar import cifar10

    both = cifar10(data, "train")
    return Recognition(both, fifth(len(both.labels)), cifar10(data, "test"))


def _cifar100(data: Path) -> Recognition:
    from common.cifar import cifar100

    both = cifar100(data, "train")
    return Recognition(both, fifth(len(both.labels)), cifar100(data, "test"))


def _dtd(data: Path) -> Recognition:
    needs = ["dtd/images", "dtd/labels/{split}1.txt"]
    return _recognition(*_official("dtd", data, needs, THREE, lambda tv, split: tv.DTD(data, split, partition=1)))


def _flowers(data: Path, *, check_md5: bool = True) -> Recognition:
    needs = ["jpg", "imagelabels.mat", "setid.mat"]

    def read(tv: Any, split: str) -> Any:
        class Flowers(tv.Flowers102):
            def _check_integrity(self) -> bool:  # of the lists' MD5
                return super()._check_integrity() if check_md5 else True

        return Flowers(data, split)

    return _recognition(*_official("flowers", data, needs, THREE, read))


def _food(data: Path) -> Recognition:
    """Read Food-101, class by class as upstream has it: the order decides which fifth is validation."""
    needs = ["images", "meta/{split}.json"]
    parts = _official("food", data, needs, ("train", "test"), lambda tv, split: tv.Food101(data, split))
    orders = [np.argsort(part.labels, kind="stable") for part in parts]
    return _recognition(
        *(
            replace(part, paths=[part.paths[k] for k in order], labels=part.labels[order])
            for part, order in zip(parts, orders, strict=True)
        )
    )


def _pets(data: Path) -> Recognition:
    needs = ["images", "annotations/{split}.txt"]
    return _recognition(
        *_official("pets", data, needs, ("trainval", "test"), lambda tv, split: tv.OxfordIIITPet(data, split))
    )


def _sun397(data: Path) -> Recognition:
    """Read the first official split, images and classes in the order of the official lists.

    An image's class is its folder. Upstream's reader (`datasets/sun397.py`) takes the first class whose name
    occurs anywhere in the path, which labels the barns as bars; that is not followed.
    """
    from common.images import ImageFiles

    root = data / "SUN397"
    names = _lines(root / "ClassName.txt", _remedy("sun397", data))  # /a/abbey
    label_of = {name: label for label, name in enumerate(names)}
    parts = []
    for part, file in (("train", "Training_01.txt"), ("test", "Testing_01.txt")):
        paths = _lines(root / file, "unpack the official Partitions.zip there")
        odd = next((path for path in paths if path.rpartition("/")[0] not in label_of), None)
        if odd is not None:
            raise UserError(f"data set file {root / file} has {odd}, of no class in ClassName.txt; restore it")
        labels = np.asarray([label_of[path.rpartition("/")[0]] for path in paths], dtype=np.int64)
        relative = [path.removeprefix("/") for path in paths]
        parts.append(ImageFiles(f"sun397-{part}", root, relative, labels, [name[3:] for name in names]))
    return _recognition(*parts)


def _voc2007(data: Path) -> Recognition:
    root = data / "VOCdevkit" / "VOC2007"
    return read_voc(root, "voc2007", VOC_CLASSES, _remedy("voc2007", data))


def read_voc(root: Path, name: str, classes: Sequence[str], remedy: str) -> Recognition:
    """Read VOC2007's classification task: labels (N, K) from `ImageSets/Main/<class>_<split>.txt`.

    An image is positive if its flag is 1; 0, which says that all objects of the class are difficult, counts
    as negative, as in upstream. Raises UserError naming a missing folder or a file that does not fit.
    """
    if not root.is_dir():
        raise UserError(f"data set folder {root} is missing; {remedy}")
    return _recognition(*(_voc_split(root, name, classes, split, remedy) for split in ("train", "val", "test")))


def _voc_split(root: Path, name: str, classes: Sequence[str], split: str, remedy: str) -> ImageFiles:
    from common.images import ImageFiles

    columns, order = [], None
    for word in classes:
        path = root / "ImageSets" / "Main" / f"{word}_{split}.txt"
        rows = [line.split() for line in _lines(path, remedy)]
        if not rows or any(len(row) != 2 or row[1] not in ("1", "0", "-1") for row in rows):
            raise UserError(f"data set file {path} is no list of images with 1, 0 or -1; restore it")
        stems = [stem for stem, _ in rows]
        if order is not None and stems != order:
            raise UserError(f"data set file {path} lists other images than its neighbours; restore it")
        order = stems
        columns.append([int(flag == "1") for _, flag in rows])
    paths = [f"JPEGImages/{stem}.jpg" for stem in order or ()]
    return ImageFiles(f"{name}-{split}", root, paths, np.asarray(columns, dtype=np.int64).T, classes)


# ---- what the readers share ----


def _official(
    name: str, data: Path, needs: Sequence[str], splits: Sequence[str], read: Callable[[Any, str], Any]
) -> list[ImageFiles]:
    """Read the lists of images and labels of each split by torchvision: `read(torchvision.datasets, split)`.

    `needs`, under the data set's folder, is what must be there: torchvision does not say which file it misses.
    """
    root, remedy = data / SOURCES[name].folder, _remedy(name, data)
    for path in (root / need.format(split=split) for split in splits for need in needs):
        if not path.exists():
            raise UserError(f"data set {name}: {path} is missing; {remedy}")
    from torchvision import datasets

    from common.images import ImageFiles

    parts = []
    for split in splits:
        try:
            source = read(datasets, split)
            files, labels = _files_and_labels(source)
            paths = [str(Path(file).relative_to(root)) for file in files]
        except RuntimeError:  # nothing is missing, so a checksum differs
            raise NotPublishedError(f"data set {name}: a list in {root} has not the official MD5; {remedy}") from None
        except Exception as error:  # the parsers of five formats have errors of their own
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise UserError(f"data set {name}: the {split} list in {root} is damaged ({reason}); {remedy}") from error
        parts.append(ImageFiles(f"{name}-{split}", root, paths, np.asarray(labels, dtype=np.int64), source.classes))
    return parts


def _files_and_labels(source: Any) -> tuple[Sequence[Any], Sequence[int]]:
    """Return what torchvision's readers hold under three names."""
    if hasattr(source, "_samples"):
        return [file for file, _ in source._samples], [label for _, label in source._samples]
    return source._image_files if hasattr(source, "_image_files") else source._images, source._labels


def _recognition(*parts: ImageFiles) -> Recognition:
    """Join train, val and test; or train and test, of which the 20 % rule makes val."""
    from common.images import ImageFiles

    *trainval, test = parts
    if len(trainval) == 1:
        return Recognition(trainval[0], fifth(len(trainval[0].labels)), test)
    train, val = trainval
    paths, labels = [*train.paths, *val.paths], np.concatenate([train.labels, val.labels])
    if list(train.classes) != list(val.classes):
        raise UserError(f"data sets {train.name} and {val.name} differ in their classes; restore the data set")
    both = ImageFiles(f"{train.name}val", train.root, paths, labels, train.classes)
    return Recognition(both, np.arange(len(train.paths), len(paths)), test)


def _lines(path: Path, remedy: str) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except FileNotFoundError:
        raise UserError(f"data set file {path} is missing; {remedy}") from None
    except ValueError:
        raise UserError(f"data set file {path} is no text; {remedy}") from None


def _remedy(name: str, data: Path) -> str:
    source = name.partition("-")[0]  # caltech101-sst is caltech101
    folder = SOURCES[source].folder if source in SOURCES else None
    by_hand = folder is None or SOURCES[source].files is None
    return make_data(source, data, None if by_hand else data / str(folder))


ACC, MPC, MAP = "accuracy", "mean_per_class_accuracy", "mAP11"
FIFTH = "val: 20 % of train"
# The demo pretrains on digits of 32 pixels: they keep their size, and the scenes (digits of 24-80 pixels on
# 160) shrink until theirs are about as large. Larger images cost more and scored no better.
# fmt: off
DATASETS: dict[str, Spec] = {
    #                  reader, metric, classes, (train, val, test), where the splits come from
    "digits":     Spec(_digits, ACC, 10, (1_150, 287, 360), f"embedded; {FIFTH}", size=32, resize=None, profiles=DEMO),
    "scenes":     Spec(_scenes, MAP, 10, None, "embedded", size=96, resize=96, profiles=DEMO),
    "aircraft":   Spec(_aircraft, MPC, 100, (3_334, 3_333, 3_333), "images_variant_{train,val,test}.txt"),
    "caltech101": Spec(_caltech, MPC, 102, (2_448, 612, 6_084), f"drawn: 30 a class, the rest; {FIFTH}", drawn=True),
    "caltech101-sst": Spec(
        partial(_caltech, upstream=True), MPC, 102, (2_448, 612, 6_728), f"ssl-transfer's draw of 2021; {FIFTH}",
        drawn=True, by_name=True,
    ),
    "cars":       Spec(_cars, ACC, 196, (6_516, 1_628, 8_041), f"official annotations; {FIFTH}"),
    "cifar10":    Spec(_cifar10, ACC, 10, (40_000, 10_000, 10_000), f"official batches; {FIFTH}"),
    "cifar100":   Spec(_cifar100, ACC, 100, (40_000, 10_000, 10_000), f"official batches; {FIFTH}"),
    "dtd":        Spec(_dtd, ACC, 47, (1_880, 1_880, 1_880), "partition 1: labels/{train,val,test}1.txt"),
    "flowers":    Spec(
        _flowers, MPC, 102, (1_020, 1_020, 6_149), "setid.mat: trnid, valid, tstid",
        read_any=partial(_flowers, check_md5=False),
    ),
    "food":       Spec(_food, ACC, 101, (60_600, 15_150, 25_250), f"meta/{{train,test}}.json; {FIFTH}"),
    "pets":       Spec(_pets, MPC, 37, (2_944, 736, 3_669), f"annotations/{{trainval,test}}.txt; {FIFTH}"),
    "sun397":     Spec(_sun397, ACC, 397, (15_880, 3_970, 19_850), f"{{Training,Testing}}_01.txt; {FIFTH}"),
    "voc2007":    Spec(_voc2007, MAP, 20, (2_501, 2_510, 4_952), "ImageSets/Main/<class>_{train,val,test}.txt"),
}
# fmt: on


if __name__ == "__main__":
    cli.run(main)
