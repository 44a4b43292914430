"""Download and verify data sets, or say what to place where.

Archives go to `<data>/downloads/<name>`, and one that is already there, by whatever way, is used. They are unpacked
in a temporary folder, so that a data set appears under its name only when it is complete.
"""

import os
import platform
import shutil
import stat
import tarfile
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path

from tqdm import tqdm

from common import cli
from common.embedded import ensure_embedded
from common.errors import FULL, UserError
from common.files import naming
from common.preflight import read_list
from common.sources import (
    SOURCES,
    File,
    check_published,
    make_data,
    md5_of_file,
    read_splits,
    remedy,
    summary,
)

EXAMPLES = """
make data
make data DATASET=dtd DATA=/data
make data DATASET='cifar10 cifar100'
"""
TIMEOUT = 60  # seconds without a byte
CHUNK = 2**18


def main(argv: Sequence[str] | None = None) -> None:
    """Provide one or several data sets under --data, and check those that are already there."""
    parser = cli.parser(
        "common.download", __doc__ or "", EXAMPLES, unused="profile method seed checkpoints results runs"
    )
    parser.add_argument(
        "--dataset", default="", help=f"one or several of {', '.join(SOURCES)}; without it the embedded data"
    )
    args = parser.parse_args(argv)
    names = [cli.one_of("DATASET", SOURCES)(word) for word in args.dataset.replace(",", " ").split()]
    cli.announce("common.download", args)
    for name in names or ("digits",):
        provide(name, args.data)


def provide(name: str, data: Path) -> None:
    """Download and unpack a data set unless it is there, and check it. Raises UserError for what is wrong."""
    source = SOURCES[name]
    if source.embedded:
        print(f"embedded data: {ensure_embedded(data)}")
        return
    require_room(name, data)
    if source.parts:
        for part in source.parts:
            provide(part, data)
        return
    source.prepare(data)
    folder = data / source.folder
    if source.archives and not folder.exists():
        download(name, source.files(), source.folder, data)
    try:
        check(name, data)
    except UserError as error:
        if not source.manual:
            raise
        print(source.manual.format(folder=folder))
        cause = str(error).partition("; ")[0]
        raise UserError(f"{cause}; place the files named above, then {make_data(name, data)}") from None


def check(name: str, data: Path) -> None:
    """Print what a data set holds. Raises UserError unless it is as published and every listed image is there."""
    source = SOURCES[name]
    if source.counts:
        _check_counts(name, data)
        return
    splits = read_splits(name, data)
    for images in splits.values():
        _ = images.fingerprint  # which looks at every file
    check_published(name, data, splits)
    print(f"{summary(name, splits)}, as published")


def _check_counts(name: str, data: Path) -> None:
    source, how = SOURCES[name], remedy(name, data)
    folder, listed = data / source.folder, None
    if source.listed:
        if not (folder / source.listed).is_file():
            raise UserError(f"data set file {folder / source.listed} is missing; {how}")
        listed = set(read_list(folder / source.listed))
    for pattern, count in source.counts.items():
        present = sum(listed is None or path.stem in listed for path in folder.glob(pattern))
        if present != count:
            among = f" that {source.listed} lists" if source.listed else ""
            raise UserError(f"data set {name} has {present} files {folder / pattern}{among}, not {count}; {how}")
    print(f"{folder}: {', '.join(f'{count} {pattern}' for pattern, count in source.counts.items())}, as published")


def require_room(name: str, data: Path) -> None:
    """Raise UserError if the disk has too little room to download and unpack files whose sizes are known."""
    needed = 0
    for part in SOURCES[name].parts or (name,):
        if (data / SOURCES[part].folder).exists():
            continue
        for file in SOURCES[part].files():
            archive = data / "downloads" / part / file.name
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
    """Fetch all files, unpack them in a temporary folder and move the result to `<data>/<folder>`."""
    place = data / "downloads" / name
    archives = [fetch(file.url, place / file.name, file.md5) for file in files]
    with tempfile.TemporaryDirectory(dir=data, prefix=f".{name}.") as stage:
        for file, archive in zip(files, archives, strict=True):
            print(f"unpacking {archive}", flush=True)
            _unpack(file, archive, Path(stage) / file.into)
        fresh, target = Path(stage) / folder, data / folder
        if not fresh.exists():
            raise UserError(
                f"{', '.join(map(str, archives))} hold no folder {folder}; delete them and run the same command again"
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh.rename(target)
    print(f"{target} is complete; the archives in {place} are no longer needed", flush=True)


def fetch(url: str, path: Path, md5: str) -> Path:
    """Download `url` to `path` and return it; a partial download, `<path>.part`, is continued.

    `path` appears when the file is complete and has its MD5. Raises UserError when the server does not give the file,
    the checksum differs or the disk is full.
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
        except (OSError, HTTPException) as error:  # the bases of urllib's errors
            if isinstance(error, OSError) and error.errno in FULL:
                raise UserError(f"cannot write {part} ({error.strerror}); make room and {by_hand}") from None
            if _size(part) > before:  # the connection broke, but brought something
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
    """Append the rest of the file to `part`. Returns whether it is complete, as far as the server says."""
    have = _size(part)
    headers = {"User-Agent": "gsg"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        # The addresses come from our table, not from a user.
        answer = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)  # noqa: S310
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:
            raise
        # The server has no more: either our part is complete, or it belongs to another file.
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
    actual = md5_of_file(path)
    if actual == md5:
        return
    if origin is not None:
        path.unlink()
        raise UserError(f"what {origin} gives has MD5 {actual}, not {md5}, and was removed; run the same command again")
    raise UserError(f"{path} has MD5 {actual}, not {md5}; delete it and run the same command again")


@contextmanager
def _unpacking(archive: Path) -> Iterator[None]:
    """Turn what the extractors raise on a bad archive or a full disk into a UserError naming the archive.

    Inside the block every tar archive, those that torchvision opens too, unpacks only plain files and folders, and only
    below its target. (`_extract` refuses other zip archives.)
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
        if isinstance(error, OSError) and error.errno in FULL:
            raise UserError(f"cannot unpack {archive} ({error.strerror}); make room and try again") from None
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{archive} cannot be unpacked ({reason}); delete it and run the same command again") from None
    finally:
        tarfile.TarFile.extraction_filter = before


def _plain(member: tarfile.TarInfo, target: str) -> tarfile.TarInfo | None:
    """Do as tarfile's filter "data" does, but refuse links too: no data set has any."""
    if member.issym() or member.islnk():
        raise tarfile.FilterError(f"{member.name!r} is a link")
    if member.name.startswith(("/", os.sep)):
        raise tarfile.FilterError(f"{member.name!r} is an absolute path")
    return tarfile.data_filter(member, target)


def _unpack(file: File, archive: Path, into: Path) -> None:
    into.mkdir(parents=True, exist_ok=True)
    with _unpacking(archive):
        if not file.is_archive:
            shutil.copy(archive, into)
        elif file.inner is None:
            _extract(archive, into)
        else:
            with tempfile.TemporaryDirectory(dir=into) as outer:
                _extract(archive, Path(outer))
                _extract(Path(outer) / file.inner, into)


def _extract(archive: Path, into: Path) -> None:
    """Unpack an archive whose suffix gives its kind. Of a zip, shutil would pass over what it does not unpack."""
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as content:
            for entry in content.infolist():
                if entry.filename.startswith("/") or ".." in Path(entry.filename).parts:
                    raise ValueError(f"{entry.filename!r} would be extracted outside the destination")
                if stat.S_ISLNK(entry.external_attr >> 16):
                    raise ValueError(f"{entry.filename!r} is a link")
    shutil.unpack_archive(archive, into)


def unpack_imagenet(data: Path) -> None:
    """Unpack the official archives that the user placed to `train` and `val`, one folder per class, unless done."""
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
            # Torchvision joins `stage` and `file`; an absolute path wins, so the archives may lie elsewhere.
            if split == "train":
                imagenet.parse_train_archive(stage, file=str(places["train"].resolve()))
            else:
                imagenet.parse_devkit_archive(stage, file=str(places["devkit"].resolve()))
                imagenet.parse_val_archive(stage, file=str(places["val"].resolve()))
            (Path(stage) / split).rename(root / split)


if __name__ == "__main__":
    cli.run(main, interrupted="the same command continues the download")
