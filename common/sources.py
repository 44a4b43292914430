"""Every data set in one table, SOURCES: where it comes from, how it is read and what it must hold.

A new data set is one entry, and a function that reads it unless one of `common.readers` serves. Readers are named as
text, and torchvision is imported where its addresses are asked for, so that importing the table costs nothing.
"""

import hashlib
import pkgutil
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import UserError

if TYPE_CHECKING:
    from common.images import LabelledImages

ARCHIVES = (".tar", ".tgz", ".gz", ".zip")
PAPER = ("cifar10", "imagenet")  # the profiles whose transfer suite has the paper's data sets
ACCURACY, MEAN_PER_CLASS, MAP11 = "accuracy", "mean_per_class_accuracy", "mAP11"
FIFTH = "val: 20 % of train"
# Where a folder of the user's keeps its data, in whatever layout.
OWN_PARTS = "train val test train2017 val2017 images annotations JPEGImages Annotations ImageSets".split()


class NotPublishedError(UserError):
    """A data set that is complete, but not the published one: its size or the checksum of a list differs."""


@dataclass(frozen=True)
class File:
    """A file to download. An archive is unpacked into the folder `into`, any other file is copied there.

    `inner` names the archive inside the archive that holds the data. `size` is in bytes; where it is known (not 0),
    the free disk space is checked first. `unpacked` is the size after unpacking where that differs.
    """

    url: str
    md5: str
    into: str = "."
    inner: str | None = None
    size: int = 0
    unpacked: int | None = None

    @property
    def name(self) -> str:
        """The file's name, the end of its address."""
        return self.url.rpartition("/")[2]

    @property
    def is_archive(self) -> bool:
        """Whether the file is unpacked, by the ending of its name."""
        return self.name.endswith(ARCHIVES)


@dataclass(frozen=True)
class Source:
    """The facts of one data set.

    Where it comes from:
        folder: The folder under the data root that holds it.
        archives: Returns the files to download, given the module `torchvision.datasets`.
        manual: What the user must place in `{folder}`, for a data set that cannot be downloaded.
        unpack: The function (data root) that unpacks what the user placed, as "module:name".
        parts: The data sets that are provided when this one is asked for.
        A data set with none of these is embedded: the demo writes it.

    What it holds:
        reader: The function (data root, split) that returns the labelled images of a split, as "module:name".
        splits: The published number of images in each split that `reader` knows.
        classes: The published number of classes; None is not checked.
        counts: For a data set without reader, the published number of files that match each glob under `folder`.
        listed: A list under `folder`; `counts` then count only the files that it names.

    How transfer scores it (paper, D.1):
        metric: A key of `transfer.metrics.METRICS`.
        origin: Where the splits come from, as records say it.
        size, resize: The side of the centre crop, and the shorter side before it (None: not resized), in pixels.
        profiles: The profiles whose transfer suite knows the data set.
        drawn: Our code draws the split, so its lists are written beside the records.
        by_name: Not part of DATASET=all.
    """

    title: str
    folder: str
    archives: Callable[[Any], Sequence[File]] | None = None
    manual: str = ""
    unpack: str = ""
    parts: tuple[str, ...] = ()
    reader: "str | Callable[[Path, str], LabelledImages]" = ""
    splits: Mapping[str, int] = field(default_factory=dict)
    classes: int | None = None
    counts: Mapping[str, int] = field(default_factory=dict)
    listed: str = ""
    metric: str = ""
    origin: str = ""
    size: int = 224
    resize: int | None = 224
    profiles: tuple[str, ...] = ()
    drawn: bool = False
    by_name: bool = False

    @property
    def embedded(self) -> bool:
        """Whether the data set comes with the code."""
        return not (self.archives or self.manual or self.parts)

    @property
    def settings(self) -> str:
        """The facts on which a transfer result depends, as text for the record's config_sha256."""
        return f"{self.metric}, resize {self.resize}, crop {self.size}"

    def files(self) -> list[File]:
        """Return the files to download."""
        if self.archives is None:
            return []
        from torchvision import datasets

        return list(self.archives(datasets))

    def read(self, data: Path, split: str) -> "LabelledImages":
        """Return the labelled images of a split. Raises UserError naming what is missing or damaged."""
        return _resolve(self.reader)(data, split)

    def prepare(self, data: Path) -> None:
        """Unpack what the user placed, if this data set has such files."""
        if self.unpack:
            _resolve(self.unpack)(data)


def known(profile: str) -> list[str]:
    """Return the data sets that a profile's transfer suite can be asked for."""
    return [name for name, source in SOURCES.items() if profile in source.profiles]


def suite(profile: str) -> list[str]:
    """Return what DATASET=all means for transfer: `known` without those to be asked for by name."""
    return [name for name in known(profile) if not SOURCES[name].by_name]


def add_folder(root: Path, profile: str) -> str:
    """Add a folder of the user's, with train/ and val/ of one folder per class, to the table; return its name.

    `val` is the test set, and a fifth of `train` the validation set. Raises UserError as `own_name` does.
    """
    name, place = own_name(root), root.resolve()

    def reader(data: Path, split: str) -> "LabelledImages":
        from common.images import image_split

        return image_split(place, split, name)

    side = SOURCES["digits" if profile == "demo" else "cifar10"].size
    SOURCES[name] = Source(
        name, str(place), manual="Place train/ and val/, each with one folder per class, in {folder}",
        reader=reader, splits={"train": 0, "test": 0}, metric=ACCURACY, origin=f"folders train, val; {FIFTH}",
        size=side, resize=side,
    )  # fmt: skip
    return name


def own_name(root: Path) -> str:
    """Return the name in records of a folder of the user's: its own.

    Raises UserError for a folder that is missing, or named like another data set, whose records would be mixed up.
    """
    name = root.resolve().name
    if not root.is_dir():
        raise UserError(f"--data-root {root} (DATA_ROOT) is not a folder; correct it")
    if name in SOURCES and not Path(SOURCES[name].folder).is_absolute():  # as `add_folder` has it
        raise UserError(f"--data-root {root} (DATA_ROOT) is named like the data set {name}; rename it")
    if not name:
        raise UserError(f"--data-root {root} (DATA_ROOT) has no name for the records; choose a folder below it")
    return name


def own_data(root: Path | None) -> list[str]:
    """Return one SHA-256 over the names and sizes of the files in a folder of the user's; nothing for no folder.

    Results belong to it: another folder of the same name, or with other files, is another data set. Raises UserError
    as `own_name` does.
    """
    if root is None:
        return []
    from common.images import folder_sha256

    own_name(root)
    parts = [root / name for name in OWN_PARTS if (root / name).is_dir()]
    return [folder_sha256(root, parts or [root])]


def make_data(name: str, data: Path, folder: Path | None = None) -> str:
    """Return the remedy for a data set that is missing, or incomplete in `folder`: the end of an error message."""
    where = "" if data == Path("data") else f" DATA={shlex.quote(str(data))}"
    first = f"move {folder} away and " if folder is not None and folder.is_dir() else ""
    return f"{first}run `make data DATASET={name}{where}`"


def remedy(name: str, data: Path) -> str:
    """Return the remedy for a data set of the table; files that the user placed need not be moved away."""
    source = SOURCES[name]
    if source.embedded:
        return f"delete {data / source.folder} and run the command again"
    return make_data(name, data, data / source.folder if source.archives else None)


def read_splits(name: str, data: Path) -> "dict[str, LabelledImages]":
    """Read every split of a data set. Raises UserError naming what is missing, damaged or inconsistent."""
    splits = {split: SOURCES[name].read(data, split) for split in SOURCES[name].splits}
    (first, images), *others = splits.items()
    for split, other in others:  # labels are places in the list of classes
        if list(images.classes) != list(other.classes):
            odd = ", ".join(sorted(set(images.classes) ^ set(other.classes))) or "by their order"
            folder = data / SOURCES[name].folder
            raise UserError(f"data set {name}: {first} and {split} differ in the classes {odd}; restore {folder}")
    return splits


def check_published(name: str, data: Path, splits: "Mapping[str, LabelledImages]", *, sizes: bool = True) -> None:
    """Raise NotPublishedError unless the splits and the downloaded lists are the published ones.

    With `sizes` False the number of images in each split is free.
    """
    source = SOURCES[name]
    classes = len(next(iter(splits.values())).classes)
    has, published = tuple(len(images.labels) for images in splits.values()), tuple(source.splits.values())
    said = ""
    if source.classes is not None and classes != source.classes:
        said = f"has {classes} classes, not {source.classes}"
    elif sizes and any(published) and has != published:
        said = f"has {has} images in {_join(source.splits)}, not {published}"
    else:
        for file in source.files():
            path = data / file.into / file.name
            if not file.is_archive and md5_of_file(path) != file.md5:
                said = f"has a list {path} without the official MD5"
    if said:
        raise NotPublishedError(f"data set {name} {said}: it is not the published one; {remedy(name, data)}")


def md5_of_file(path: Path) -> str:
    """Return the MD5 of the file's bytes as 32 hexadecimal digits."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def summary(name: str, splits: "Mapping[str, LabelledImages]") -> str:
    """Return a line on what a data set holds."""
    classes = len(next(iter(splits.values())).classes)
    return f"{name}: {_join(f'{len(i.labels)} {split}' for split, i in splits.items())} images of {classes} classes"


def _join(words: Iterable[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def _resolve(function: str | Callable[..., Any]) -> Callable[..., Any]:
    return pkgutil.resolve_name(function) if isinstance(function, str) else function


_CARS = """\
Stanford Cars cannot be downloaded any more: its server is gone. Copies are found under the name
"Stanford Cars Dataset" (16,185 images). Place these files in {folder}:
  cars_train/00001.jpg ... 08144.jpg
  cars_test/00001.jpg ... 08041.jpg
  devkit/cars_meta.mat
  devkit/cars_train_annos.mat
  cars_test_annos_withlabels.mat     (or in devkit/)"""
_IMAGENET = """\
ImageNet needs an account: https://image-net.org/download-images, ILSVRC 2012. Place these files in {folder}:
  ILSVRC2012_img_train.tar           (138 GB)
  ILSVRC2012_img_val.tar             (6.3 GB)
  ILSVRC2012_devkit_t12.tar.gz       (the class of each validation image)
and run this command again: it unpacks them to train/<class>/ and val/<class>/. Or place these two folders yourself."""


def _voc(tv: Any, sizes: Mapping[str, int]) -> list[File]:
    """Return VOC's archives, given their bytes by torchvision's name of the year."""
    years = tv.voc.DATASET_YEAR_DICT
    return [File(years[year]["url"], years[year]["md5"], size=size) for year, size in sizes.items()]


def _coco(path: str, md5: str, size: int, unpacked: int | None = None) -> File:
    return File(f"http://images.cocodataset.org/{path}", md5, "coco", size=size, unpacked=unpacked)


# fmt: off
_CALTECH101 = Source(
    "Caltech-101", "caltech101",
    lambda tv: [File(
        "https://data.caltech.edu/records/mzrjq-6wc02/files/caltech-101.zip", "3138e1922a9193bfa496528edbbc45d0",
        "caltech101", inner="caltech-101/101_ObjectCategories.tar.gz",
    )],
    reader="common.readers:caltech101", splits={"train": 3_060, "test": 6_084}, classes=102,
    metric=MEAN_PER_CLASS, origin=f"drawn: 30 a class, the rest; {FIFTH}", profiles=PAPER, drawn=True,
)
# fmt: on

# In the order of the tables' columns. torchvision publishes most addresses and checksums as attributes of its classes;
# what stands here as text it publishes nowhere, or only inside its functions. COCO and CSAIL (ADE20K) publish no
# checksums: these are the ones that many readers of the two verify.
# fmt: off
SOURCES: dict[str, Source] = {
    "aircraft": Source(
        "Aircraft", "fgvc-aircraft-2013b", lambda tv: [File(tv.FGVCAircraft._URL, "d4acdd33327262359767eeaa97a4f732")],
        reader="common.readers:aircraft", splits={"train": 3_334, "val": 3_333, "test": 3_333}, classes=100,
        metric=MEAN_PER_CLASS, origin="images_variant_{train,val,test}.txt", profiles=PAPER,
    ),
    "caltech101": _CALTECH101,
    "caltech101-sst": replace(
        _CALTECH101, title="Caltech-101 (ssl-transfer's split)", parts=("caltech101",),
        reader="common.readers:caltech101_sst", splits={"train": 3_060, "test": 6_728},
        origin=f"ssl-transfer's draw of 2021; {FIFTH}", by_name=True,
    ),
    "cars": Source(
        "Cars", "stanford_cars", manual=_CARS,
        reader="common.readers:cars", splits={"train": 8_144, "test": 8_041}, classes=196,
        metric=ACCURACY, origin=f"official annotations; {FIFTH}", profiles=PAPER,
    ),
    "cifar10": Source(
        "CIFAR-10", "cifar-10-batches-py", lambda tv: [File(tv.CIFAR10.url, tv.CIFAR10.tgz_md5)],
        reader="common.cifar:cifar10", splits={"train": 50_000, "test": 10_000}, classes=10,
        metric=ACCURACY, origin=f"official batches; {FIFTH}", profiles=PAPER,
    ),
    "cifar100": Source(
        "CIFAR-100", "cifar-100-python", lambda tv: [File(tv.CIFAR100.url, tv.CIFAR100.tgz_md5)],
        reader="common.cifar:cifar100", splits={"train": 50_000, "test": 10_000}, classes=100,
        metric=ACCURACY, origin=f"official batches; {FIFTH}", profiles=PAPER,
    ),
    "dtd": Source(
        "DTD", "dtd", lambda tv: [File(tv.DTD._URL, tv.DTD._MD5, "dtd")],
        reader="common.readers:dtd", splits={"train": 1_880, "val": 1_880, "test": 1_880}, classes=47,
        metric=ACCURACY, origin="partition 1: labels/{train,val,test}1.txt", profiles=PAPER,
    ),
    "flowers": Source(
        "Flowers", "flowers-102",
        lambda tv: [
            File(tv.Flowers102._download_url_prefix + name, md5, "flowers-102")
            for name, md5 in tv.Flowers102._file_dict.values()
        ],
        reader="common.readers:flowers", splits={"train": 1_020, "val": 1_020, "test": 6_149}, classes=102,
        metric=MEAN_PER_CLASS, origin="setid.mat: trnid, valid, tstid", profiles=PAPER,
    ),
    "food": Source(
        "Food", "food-101", lambda tv: [File(tv.Food101._URL, tv.Food101._MD5)],
        reader="common.readers:food", splits={"train": 75_750, "test": 25_250}, classes=101,
        metric=ACCURACY, origin=f"meta/{{train,test}}.json; {FIFTH}", profiles=PAPER,
    ),
    "pets": Source(
        "Pets", "oxford-iiit-pet",
        lambda tv: [File(url, md5, "oxford-iiit-pet") for url, md5 in tv.OxfordIIITPet._RESOURCES],
        reader="common.readers:pets", splits={"trainval": 3_680, "test": 3_669}, classes=37,
        metric=MEAN_PER_CLASS, origin=f"annotations/{{trainval,test}}.txt; {FIFTH}", profiles=PAPER,
    ),
    "sun397": Source(
        "SUN397", "SUN397",
        lambda tv: [File(tv.SUN397._DATASET_URL, tv.SUN397._DATASET_MD5), File(
            "https://vision.princeton.edu/projects/2010/SUN/download/Partitions.zip",
            "29a205c0a0129d21f36cbecfefe81881", "SUN397",
        )],
        reader="common.readers:sun397", splits={"train": 19_850, "test": 19_850}, classes=397,
        metric=ACCURACY, origin=f"{{Training,Testing}}_01.txt; {FIFTH}", profiles=PAPER,
    ),
    "voc2007": Source(
        "VOC2007", "VOCdevkit/VOC2007", lambda tv: _voc(tv, {"2007": 460_032_000, "2007-test": 451_020_800}),
        reader="common.readers:voc2007", splits={"train": 2_501, "val": 2_510, "test": 4_952}, classes=20,
        metric=MAP11, origin="ImageSets/Main/<class>_{train,val,test}.txt", profiles=PAPER,
    ),
    "voc2012": Source(
        "VOC2012", "VOCdevkit/VOC2012", lambda tv: _voc(tv, {"2012": 1_999_639_040}),
        counts={"JPEGImages/*.jpg": 11_540, "Annotations/*.xml": 11_540}, listed="ImageSets/Main/trainval.txt",
    ),
    "imagenet": Source(
        "ImageNet", "imagenet", manual=_IMAGENET, unpack="common.download:unpack_imagenet",
        reader="common.readers:imagenet", splits={"train": 1_281_167, "test": 50_000}, classes=1000,
    ),
    "voc": Source("VOC", "VOCdevkit", parts=("voc2007", "voc2012")),
    "coco": Source(
        "COCO", "coco",
        lambda tv: [
            _coco("zips/train2017.zip", "cced6f7f71b7629ddf16f17bbcfab6b2", 19_336_861_798),
            _coco("zips/val2017.zip", "442b8da7639aecaf257c1dceb8ba8c80", 815_585_330),
            _coco(
                "annotations/annotations_trainval2017.zip", "f4bbac642086de4f52a3fdda2de5fa2c",
                size=252_907_541, unpacked=850_000_000,
            ),
        ],
        counts={
            "annotations/instances_train2017.json": 1, "train2017/*.jpg": 118_287,
            "annotations/instances_val2017.json": 1, "val2017/*.jpg": 5_000,
        },
    ),
    "ade20k": Source(
        "ADE20K", "ADEChallengeData2016",
        lambda tv: [File(
            "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip",
            "7328b3957e407ddae1d3cbf487f149ef", size=967_382_037,
        )],
        counts={
            "images/training/*.jpg": 20_210, "annotations/training/*.png": 20_210,
            "images/validation/*.jpg": 2_000, "annotations/validation/*.png": 2_000,
        },
    ),
    # The demo pretrains on digits of 32 pixels: they keep their size, and the scenes (digits of 24-80 pixels on 160)
    # shrink until theirs are about as large. Larger images cost more and scored no better.
    "digits": Source(
        "Digits", "demo",
        reader="common.embedded:digits", splits={"train": 1_437, "test": 360}, classes=10,
        metric=ACCURACY, origin=f"embedded; {FIFTH}", size=32, resize=None, profiles=("demo",),
    ),
    "scenes": Source(
        "Scenes", "demo",
        reader="common.readers:scenes", splits={"train": 200, "val": 60, "test": 100}, classes=10,
        metric=MAP11, origin="embedded", size=96, resize=96, profiles=("demo",),
    ),
}
# fmt: on
