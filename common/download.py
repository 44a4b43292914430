"""Download and verify a data set, or say what to place where: `python -m common.download --dataset dtd`.

Archives come to `<data>/downloads/<name>`; one that is there already, by whatever way, is used. They are unpacked
aside and appear under their name only when whole. Addresses and checksums are torchvision's own.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

from tqdm import tqdm

from common import cli
from common.errors import UNWRITABLE, UserError
from common.files import naming
from common.names import make_data
from common.preflight import read_list

EMBEDDED = ("digits", "scenes")
TIMEOUT = 60  # seconds without a byte
CHUNK = 2**18
COCO_COUNTS = {"train2017": 118_287, "val2017": 5_000}
VOC2012_TRAINVAL = 11_540
IMAGENET_COUNTS = {"train": 1_281_167, "val": 50_000}
ADE20K_COUNTS = {"training": 20_210, "validation": 2_000}


@dataclass(frozen=True)
class File:
    """A file to download: it is unpacked, or copied if it is no archive, into the folder `into`.

    `inner` is the archive in the archive that holds the data. Where `size`, its bytes, is known, the disk is asked
    first; `unpacked` is how many bytes it unpacks to, if not as many.
    """

    url: str
    md5: str
    into: str = "."
    inner: str | None = None
    size: int = 0
    unpacked: int | None = None


@dataclass(frozen=True)
class Source:
    """Where a data set comes from: it becomes `folder`, under the data root as all paths here.

    `files` are the downloads, given the module `torchvision.datasets`; or else `manual` says what a user has
    to place, and `unpack` prepares that. `check` raises UserError unless the set is as published.
    """

    folder: str
    files: Callable[[Any], list[File]] | None = None
    manual: str = ""
    unpack: Callable[[Path], None] | None = None
    check: Callable[[str, Path], None] | None = None


def main(argv: Sequence[str] | None = None) -> None:
    """Provide one or several data sets under --data; those that are there already are checked."""
    known = (*EMBEDDED, *SOURCES, *TOGETHER)
    parser = cli.parser("common.download", "download and verify data sets")
    parser.add_argument("--dataset", default="", help=f"one or several of {', '.join(known)}; none: the embedded data")
    args = parser.parse_args(argv)
    names = [cli.one_of("DATASET", known)(word) for word in args.dataset.replace(",", " ").split()]
    cli.announce("common.download", args)
    for name in names or EMBEDDED[:1]:
        provide(name, args.data)


def provide(name: str, data: Path) -> None:
    """Download, unpack and check a data set unless it is there. Raises UserError naming what is wrong or missing."""
    if name in EMBEDDED:
        from common.embedded import ensure_embedded

        print(f"embedded data: {ensure_embedded(data)}")
        return
    require_room(name, data)
    if name in TOGETHER:
        for part in TOGETHER[name]:
            provide(part, data)
        return
    source = SOURCES[name]
    folder = data / source.folder
    if source.files is None and source.unpack is not None:
        source.unpack(data)
    elif source.files is not None and not folder.exists():
        from torchvision import datasets

        download(name, source.files(datasets), source.folder, data)
    try:
        (source.check or _check_by_transfer)(name, data)
    except UserError as error:
        if source.files is not None:
            raise
        print(source.manual.format(folder=folder))
        cause = str(error).partition("; ")[0]
        raise UserError(f"{cause}; place the files named above, then {make_data(name, data)}") from None


def require_room(name: str, data: Path) -> None:
    """Raise UserError if the disk has no room for what is to be downloaded and unpacked, as far as sizes are known."""
    from torchvision import datasets

    needed = 0
    for part in TOGETHER.get(name, (name,)):
        source = SOURCES[part]
        if source.files is None or (data / source.folder).exists():
            continue
        for file in source.files(datasets):
            archive = data / "downloads" / part / file.url.rpartition("/")[2]
            have = _size(archive) or _size(archive.with_name(f"{archive.name}.part"))
            needed += max(file.size - have, 0) + (file.size if file.unpacked is None else file.unpacked)
    place = next(folder for folder in (data, *data.absolute().parents) if folder.exists())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise UserError(
            f"{name} needs {needed / 1e9:.1f} GB more under {data} to be downloaded and unpacked, and "
            f"{free / 1e9:.1f} GB are free; make room there, or choose another disk with DATA=..."
        )


def download(name: str, files: Sequence[File], folder: str, data: Path) -> None:
    """Fetch all files, unpack them aside and move the outcome to `<data>/<folder>`."""
    place = data / "downloads" / name
    archives = [fetch(file.url, place / file.url.rpartition("/")[2], file.md5) for file in files]
    with tempfile.TemporaryDirectory(dir=data, prefix=f".{name}.") as stage:
        for file, archive in zip(files, archives, strict=True):
            print(f"unpacking {archive}", flush=True)
            _unpack(archive, Path(stage) / file.into, file.inner)
        fresh, target = Path(stage) / folder, data / folder
        if not fresh.exists():
            raise UserError(f"{', '.join(map(str, archives))} hold no folder {folder}; delete and download again")
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh.rename(target)
    print(f"{target} is complete; the archives in {place} are no longer needed", flush=True)


def fetch(url: str, path: Path, md5: str) -> Path:
    """Download `url` to `path` and return it; a half-done download, `<path>.part`, is continued.

    The name `path` appears when the file is complete and has its MD5. Raises UserError when
    the server does not give it, the checksum differs or the disk is full.
    """
    if path.is_file():
        _verify(path, md5)
        return path
    part = path.with_name(f"{path.name}.part")
    by_hand = f"run the same command again, which continues, or place the file at {path} yourself"
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        before = _size(part)
        try:
            complete = _continue(url, part)
        except (OSError, HTTPException) as error:  # of which urllib's are kinds
            if isinstance(error, OSError) and error.errno in UNWRITABLE:
                raise UserError(f"cannot write {part} ({error.strerror}); make room and {by_hand}") from None
            if _size(part) > before:  # the connection broke, but it worked
                continue
            reason = " ".join(str(getattr(error, "reason", error)).split()) or type(error).__name__
            raise UserError(f"cannot download {url} ({reason}); {by_hand}") from None
        if complete:
            break
        if _size(part) <= before:
            raise UserError(f"cannot download {url} (the server stopped after {before} bytes); {by_hand}")
    _verify(part, md5, origin=url)
    os.replace(part, path)
    return path


def _continue(url: str, part: Path) -> bool:
    """Append to `part` what the server still has. Returns whether all is there, as far as the server says."""
    have = _size(part)
    headers = {"User-Agent": "gsg"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        # The addresses are torchvision's and ours, not a user's.
        answer = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)  # noqa: S310
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:
            raise
        # Nothing lies beyond what we have: either it is all there, or it is not of this file.
        if error.headers.get("Content-Range", "").endswith(f"/{have}"):
            return True
        part.unlink()
        return _continue(url, part)
    with answer:
        resumed = answer.status == 206
        have = have if resumed else 0
        total = None if answer.length is None else have + answer.length
        bar = tqdm(desc=part.stem, total=total, initial=have, unit="B", unit_scale=True, unit_divisor=1024)
        with naming(part), bar, open(part, "ab" if resumed else "wb") as stream:
            while chunk := answer.read(CHUNK):
                stream.write(chunk)
                bar.update(len(chunk))
    return total is None or _size(part) == total


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _verify(path: Path, md5: str, origin: str | None = None) -> None:
    with open(path, "rb") as stream:
        found = hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found == md5:
        return
    if origin is not None:
        path.unlink()
        raise UserError(f"what {origin} gives has MD5 {found}, not {md5}, and was removed; run the same command again")
    raise UserError(f"{path} has MD5 {found}, not {md5}; delete it and run the same command again")


@contextmanager
def _unpacking(archive: Path) -> Iterator[None]:
    """Turn what the extractors raise on a bad archive or a full disk into a UserError naming it.

    Meanwhile every tar archive, those that torchvision opens too, unpacks plain files and folders below its target
    alone. (zipfile keeps to that by itself.)
    """
    if not hasattr(tarfile, "data_filter"):
        raise UserError(
            f"Python {platform.python_version()} cannot unpack archives safely; update it to 3.11.4 or later"
        )
    before = tarfile.TarFile.extraction_filter
    tarfile.TarFile.extraction_filter = staticmethod(_plain)
    try:
        yield
    except Exception as error:  # tarfile, zipfile, gzip and zlib each have errors of their own
        if isinstance(error, OSError) and error.errno in UNWRITABLE:
            raise UserError(f"cannot unpack {archive} ({error.strerror}); make room and try again") from None
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{archive} cannot be unpacked ({reason}); delete it and run the same command again") from None
    finally:
        tarfile.TarFile.extraction_filter = before


def _plain(member: tarfile.TarInfo, target: str) -> tarfile.TarInfo | None:
    """Pass a member on as tarfile's filter "data" does, but refuse links, which no data set has."""
    if member.issym() or member.islnk():
        raise tarfile.FilterError(f"{member.name!r} is a link")
    if member.name.startswith(("/", os.sep)):
        raise tarfile.FilterError(f"{member.name!r} is an absolute path")
    return tarfile.data_filter(member, target)


def _unpack(archive: Path, into: Path, inner: str | None = None) -> None:
    from torchvision.datasets.utils import extract_archive

    into.mkdir(parents=True, exist_ok=True)
    with _unpacking(archive):
        if archive.suffix not in (".tar", ".tgz", ".gz", ".zip"):
            shutil.copy(archive, into)
        elif inner is None:
            extract_archive(archive, into)
        else:
            with tempfile.TemporaryDirectory(dir=into) as outer:
                extract_archive(archive, outer)
                extract_archive(Path(outer) / inner, into)


def _check_by_transfer(name: str, data: Path) -> None:
    """Let the room that reads the data set check it: common imports no room, so as a command."""
    command = [sys.executable, "-m", "transfer.datasets", "--dataset", name, "--data", str(data)]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    line = (done.stderr.strip().splitlines() or [""])[-1]
    if done.returncode == 1 and line.startswith("error: "):
        raise UserError(line.removeprefix("error: "))
    sys.stderr.write(done.stderr)
    if done.returncode != 0:
        sys.exit(done.returncode)


def _unpack_imagenet(data: Path) -> None:
    """Unpack what is there of the official archives, unless it is unpacked: `train` and `val`, a folder a class."""
    root = data / "imagenet"
    if not any(root.glob("ILSVRC2012_*")):
        return
    from torchvision.datasets import imagenet

    places = {kind: root / file for kind, (file, _) in imagenet.ARCHIVE_META.items()}
    for split in ("train", "val"):
        needed = [places[split]] if split == "train" else [places["val"], places["devkit"]]
        if (root / split).exists() or not all(path.is_file() for path in needed):
            continue
        print(f"unpacking {places[split]}", flush=True)
        with tempfile.TemporaryDirectory(dir=root, prefix=f".{split}.") as stage, _unpacking(places[split]):
            # A path that is absolute counts as it is, so the archives need not lie where the outcome goes.
            if split == "train":
                imagenet.parse_train_archive(stage, file=str(places["train"].resolve()))
            else:
                imagenet.parse_devkit_archive(stage, file=str(places["devkit"].resolve()))
                imagenet.parse_val_archive(stage, file=str(places["val"].resolve()))
            (Path(stage) / split).rename(root / split)


def _check_imagenet(name: str, data: Path) -> None:
    for split, count in IMAGENET_COUNTS.items():
        folder = data / name / split
        if not folder.is_dir():
            raise UserError(f"data set folder {folder} is missing")
        found = sum(1 for _ in folder.glob("*/*.JPEG")), sum(1 for _ in folder.glob("*/"))
        if found != (count, 1000):
            raise UserError(
                f"data set folder {folder} has {found[0]} images of {found[1]} classes, not {count} of 1000"
            )
        print(f"{folder}: {count} images of 1000 classes, as published")


def _check_voc2012(name: str, data: Path) -> None:
    """Check the part of VOC2012 that detection trains on."""
    folder = data / SOURCES[name].folder
    listed = folder / "ImageSets" / "Main" / "trainval.txt"
    if not listed.is_file():
        raise UserError(f"data set file {listed} is missing; {make_data(name, data, folder)}")
    images = read_list(listed)
    for kind, ending in (("JPEGImages", "jpg"), ("Annotations", "xml")):
        there = {path.stem for path in (folder / kind).glob(f"*.{ending}")}
        found = sum(image in there for image in images)
        if found != VOC2012_TRAINVAL:
            raise UserError(
                f"data set folder {folder / kind} has {found} of trainval's files, not {VOC2012_TRAINVAL}; "
                f"{make_data(name, data, folder)}"
            )
    print(f"{folder}: {VOC2012_TRAINVAL} trainval images with annotations, as published")


def _check_coco(name: str, data: Path) -> None:
    root = data / SOURCES[name].folder
    for split, count in COCO_COUNTS.items():
        annotations = root / "annotations" / f"instances_{split}.json"
        found = sum(1 for _ in (root / split).glob("*.jpg"))
        if not annotations.is_file():
            raise UserError(f"data set file {annotations} is missing; {make_data(name, data, root)}")
        if found != count:
            raise UserError(
                f"data set folder {root / split} has {found} images, not {count}; {make_data(name, data, root)}"
            )
        print(f"{root / split}: {count} images, as published")


def _check_ade20k(name: str, data: Path) -> None:
    root = data / SOURCES[name].folder
    for split, count in ADE20K_COUNTS.items():
        for kind, ending in (("images", "jpg"), ("annotations", "png")):
            folder = root / kind / split
            if not folder.is_dir():
                raise UserError(f"data set folder {folder} is missing; {make_data(name, data, root)}")
            found = sum(1 for _ in folder.glob(f"*.{ending}"))
            if found != count:
                remedy = make_data(name, data, root)
                raise UserError(f"data set folder {folder} has {found} .{ending} files, not {count}; {remedy}")
        print(f"{root}: {count} {split} images with annotations, as published")


_CARS = """\
Stanford Cars cannot be downloaded any more: its origin is gone. Copies are found under the name
"Stanford Cars Dataset" (16,185 images). Place these files in {folder}:
  cars_train/00001.jpg ... 08144.jpg
  cars_test/00001.jpg ... 08041.jpg
  devkit/cars_meta.mat
  devkit/cars_train_annos.mat
  cars_test_annos_withlabels.mat     (or in devkit/)"""
_IMAGENET = """\
ImageNet needs an account: https://image-net.org/download-images, ILSVRC 2012. Place there, in {folder}:
  ILSVRC2012_img_train.tar           (138 GB)
  ILSVRC2012_img_val.tar             (6.3 GB)
  ILSVRC2012_devkit_t12.tar.gz       (which validation image is of which class)
and run this command again: it unpacks them to train/<class>/ and val/<class>/. Or place these two yourself."""
# What torchvision does not publish as an attribute, or not at all.
_AIRCRAFT_MD5 = "d4acdd33327262359767eeaa97a4f732"
_CALTECH = ("https://data.caltech.edu/records/mzrjq-6wc02/files/caltech-101.zip", "3138e1922a9193bfa496528edbbc45d0")
_COCO = "http://images.cocodataset.org/"
# COCO publishes no checksums; these are the ones that many readers of the data set verify.
_COCO_FILES = (
    ("zips/train2017.zip", "cced6f7f71b7629ddf16f17bbcfab6b2", 19_336_861_798, None),
    ("zips/val2017.zip", "442b8da7639aecaf257c1dceb8ba8c80", 815_585_330, None),
    ("annotations/annotations_trainval2017.zip", "f4bbac642086de4f52a3fdda2de5fa2c", 252_907_541, 850_000_000),
)
_VOC_SIZES = {"2007": 460_032_000, "2007-test": 451_020_800, "2012": 1_999_639_040}
# Neither does CSAIL.
_ADE20K = (
    "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip",
    "7328b3957e407ddae1d3cbf487f149ef",
)
_ADE20K_SIZE = 967_382_037
_PARTITIONS = (
    "https://vision.princeton.edu/projects/2010/SUN/download/Partitions.zip",
    "29a205c0a0129d21f36cbecfefe81881",
)


def _voc_files(tv: Any, *years: str) -> list[File]:
    found = tv.voc.DATASET_YEAR_DICT
    return [File(found[year]["url"], found[year]["md5"], size=_VOC_SIZES[year]) for year in years]


# `tv` is torchvision.datasets, whose classes publish addresses and checksums.
SOURCES: dict[str, Source] = {
    "aircraft": Source("fgvc-aircraft-2013b", lambda tv: [File(tv.FGVCAircraft._URL, _AIRCRAFT_MD5)]),
    "caltech101": Source(
        "caltech101", lambda tv: [File(*_CALTECH, "caltech101", "caltech-101/101_ObjectCategories.tar.gz")]
    ),
    "cars": Source("stanford_cars", manual=_CARS),
    "cifar10": Source("cifar-10-batches-py", lambda tv: [File(tv.CIFAR10.url, tv.CIFAR10.tgz_md5)]),
    "cifar100": Source("cifar-100-python", lambda tv: [File(tv.CIFAR100.url, tv.CIFAR100.tgz_md5)]),
    "dtd": Source("dtd", lambda tv: [File(tv.DTD._URL, tv.DTD._MD5, "dtd")]),
    "flowers": Source(
        "flowers-102",
        lambda tv: [
            File(tv.Flowers102._download_url_prefix + name, md5, "flowers-102")
            for name, md5 in tv.Flowers102._file_dict.values()
        ],
    ),
    "food": Source("food-101", lambda tv: [File(tv.Food101._URL, tv.Food101._MD5)]),
    "imagenet": Source("imagenet", manual=_IMAGENET, unpack=_unpack_imagenet, check=_check_imagenet),
    "pets": Source(
        "oxford-iiit-pet", lambda tv: [File(url, md5, "oxford-iiit-pet") for url, md5 in tv.OxfordIIITPet._RESOURCES]
    ),
    "sun397": Source(
        "SUN397", lambda tv: [File(tv.SUN397._DATASET_URL, tv.SUN397._DATASET_MD5), File(*_PARTITIONS, "SUN397")]
    ),
    "voc2007": Source("VOCdevkit/VOC2007", lambda tv: _voc_files(tv, "2007", "2007-test")),
    "voc2012": Source("VOCdevkit/VOC2012", lambda tv: _voc_files(tv, "2012"), check=_check_voc2012),
    "coco": Source(
        "coco",
        lambda tv: [File(_COCO + path, md5, "coco", None, size, large) for path, md5, size, large in _COCO_FILES],
        check=_check_coco,
    ),
    "ade20k": Source("ADEChallengeData2016", lambda tv: [File(*_ADE20K, size=_ADE20K_SIZE)], check=_check_ade20k),
}
# What one name asks for, data set by data set.
TOGETHER = {"voc": ("voc2007", "voc2012")}


if __name__ == "__main__":
    cli.run(main, interrupted="the same command continues the download")
