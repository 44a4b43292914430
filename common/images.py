"""Labelled images: what every reader returns, and the reading of folders, images and class maps."""

import os
import stat
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.TiffImagePlugin import (
    BITSPERSAMPLE,
    COMPRESSION,
    COMPRESSION_INFO,
    PHOTOMETRIC_INTERPRETATION,
    ImageFileDirectory_v2,
    TiffImageFile,
)

from common.errors import UserError, rank
from common.files import sha256_of_text

IMAGENET_MEAN = (0.485, 0.456, 0.406)

IMAGENET_STD = (0.229, 0.224, 0.225)

EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".ppm", ".pgm", ".pbm", ".pnm", ".tif", ".tiff", ".webp"),
    ".gif",
)

# Folders that systems add to the user's; hidden ones, such as .ipynb_checkpoints, begin with a dot.
SYSTEM_FOLDERS = ("__MACOSX", "@eaDir", "lost+found")

# What turns an image upright, by its EXIF orientation.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

SIDEWAYS = tuple(TURNS[k] for k in (5, 6, 7, 8))  # which exchange width and height

# From an image's (width, height) to the factor by which its reader may reduce it.
Reduction = Callable[[tuple[int, int]], float]


class LabelledImages(Protocol):
    """N images with labels: (N,) int64 class indices, or (N, K) int64 of 0 and 1 for K labels each."""

    @property
    def name(self) -> str:
        """The name of the set in caches and messages."""
        ...

    @property
    def classes(self) -> Sequence[str]:
        """The K class names, in the order of the indices."""
        ...

    @property
    def labels(self) -> np.ndarray:
        """The labels, in the order of the images."""
        ...

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the identity of the images and their labels."""
        ...

    def image(self, index: int) -> Image.Image:
        """Return image `index` in RGB."""
        ...


@dataclass(frozen=True)
class ImageFiles:
    """Labelled images in files under one root."""

    name: str
    root: Path
    paths: Sequence[str]  # relative to root
    labels: np.ndarray
    classes: Sequence[str]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over names, sizes in bytes and labels, in order (contents are not read)."""
        sizes = [f"{path}:{stat.st_size}" for path, stat in zip(self.paths, self._stats, strict=True)]
        return sha256_of_text(self.name, *sizes, str(self.labels.tolist()))

    @cached_property
    def state(self) -> str:
        """SHA-256 over the times of change of the files, which a cache needs besides `fingerprint`."""
        return sha256_of_text(*(str(stat.st_mtime_ns) for stat in self._stats))

    @cached_property
    def _stats(self) -> list[os.stat_result]:
        return [_stat(self.root / path) for path in self.paths]

    def image(self, index: int, reduction: Reduction | None = None) -> Image.Image:
        """Return image `index` in RGB. Raises UserError naming a missing or corrupt file.

        `reduction`: see `read_image`.
        """
        return read_image(self.root / self.paths[index], reduction)


def read_image(path: Path, reduction: Reduction | None = None, *, upright: bool = False) -> Image.Image:
    """Return the image in RGB, also where it is stored as grayscale, palette, CMYK or transparent.

    An EXIF tag that asks for a rotation is obeyed with `upright`, as in detectron2, and otherwise ignored, as by
    torchvision's loader. 16 bits are scaled to 8. `reduction` is called with the stored size; where the factor that it
    returns allows it, a JPEG is decoded at 1/2, 1/4 or 1/8 of its scale. Raises UserError naming a file that is
    missing, corrupt or too large, or that holds numbers of 32 bits, which have no range of levels.
    """
    with readable(path, remedy="restore or remove it"):
        image = open_image(path)
    with image:
        factor = 1 if reduction is None else max(1, int(reduction(image.size)))
        with readable(path, remedy="restore or remove it"):
            if factor > 1:
                image.draft(None, (max(1, image.width // factor), max(1, image.height // factor)))
            rgb = _as_rgb(image, path)
            turn = turn_of(image) if upright else None
            return rgb if turn is None else rgb.transpose(turn)


def open_image(path: Path) -> Image.Image:
    """Open an image with Pillow, whose errors `readable` turns into a user's."""
    if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would be waited for without end
        raise OSError("it is not a file")
    image = Image.open(path)
    image.filename = ""  # else Pillow 13.0 maps an uncompressed TIFF into memory, and scrambles one that is rotated
    return image


def turn_of(image: Image.Image) -> Image.Transpose | None:
    """Return what turns a loaded image upright; a damaged EXIF block asks for nothing, as in detectron2."""
    try:
        return TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:
        return None


def _as_rgb(image: Image.Image, path: Path) -> Image.Image:
    """Return the image in RGB of 8 bits; Pillow's own conversion would clip deeper levels at 255.

    Levels of 16 bits are scaled by the range of the format, whatever part of it the image uses. Raises UserError as
    `top_level` does.
    """
    top = top_level(image, path)
    if top is None:
        return image.convert("RGB")
    levels = (np.asarray(image).astype(np.uint32) * 255 + top // 2) // top
    if _tags(image).get(PHOTOMETRIC_INTERPRETATION) == 0:  # white is 0, which Pillow heeds only in 8 bits
        levels = 255 - levels
    return Image.fromarray(levels.astype(np.uint8)).convert("RGB")


def top_level(image: Image.Image, path: Path) -> int | None:
    """Return the highest level of an image of more than 8 bits, None for others.

    Raises UserError for numbers of 32 bits or with signs, which have no range.
    """
    if image.mode[0] not in "IF":  # the modes I, I;16 and their like, and F
        return None
    if image.mode.startswith("I;16"):
        return 2 ** min(16, _tags(image).get(BITSPERSAMPLE, (16,))[0]) - 1  # 12 bits stay as they are
    if image.mode == "I" and image.format in ("PPM", "PNG"):
        return 2**16 - 1  # Pillow scales a PGM's levels to this
    raise UserError(
        f"image {path} holds numbers of 32 bits or with signs (Pillow's mode {image.mode}), which have no range "
        "of levels; convert it to 8 or 16 bits"
    )


def _tags(image: Image.Image) -> Mapping[int, Any]:
    return image.tag_v2 if isinstance(image, TiffImageFile) else {}


def read_class_map(
    path: Path, size: tuple[int, int], highest: int, *, remedy: str = "restore the data set"
) -> np.ndarray:
    """Return the labels (H, W) uint8, 0 to `highest`, of an 8-bit picture of classes.

    Raises UserError naming a map that is missing or broken, that is a JPEG by its contents, whose shape is not its
    image's `size` (height, width), or that has a label above `highest`.
    """
    with readable(path, "class map", remedy=remedy, missing=remedy), open_image(path) as image:
        kind, mode, labels = image.format, image.mode, np.asarray(image)
    if kind == "JPEG":
        raise UserError(f"class map {path} is a JPEG, whose compression changes labels; {remedy}")
    if mode not in ("L", "P"):
        raise UserError(f"class map {path} does not hold 8-bit labels (Pillow's mode {mode}); {remedy}")
    if labels.shape != size:
        raise UserError(f"class map {path} is {labels.shape}, but its image is {size} pixels; {remedy}")
    if labels.max() > highest:
        raise UserError(f"class map {path} has label {labels.max()}, beyond {highest}; {remedy}")
    return labels


def image_folder(root: Path, *, name: str, hint: str) -> ImageFiles:
    """Read `<root>/<class>/<image>`: classes and files in sorted order, labels = index of the class.

    Hidden files and folders and SYSTEM_FOLDERS are left out; symbolic links are followed. A folder without images is
    not a class; such folders, and files that by their ending are not images, are named on stderr. Raises UserError
    naming the folder, with `hint` on what to place there, when it has no class folders with images, and naming what
    cannot be read or has a name that is not UTF-8.
    """
    if not root.is_dir():
        raise UserError(f"data set folder {root} is missing; {hint}")
    classes: list[str] = []
    empty: list[str] = []
    paths: list[str] = []
    labels: list[int] = []
    others: Counter[str] = Counter()
    start = len(os.path.join(root, ""))
    for folder in _visible(root):
        if folder.is_symlink() and not os.path.exists(folder.path):
            raise UserError(f"data set folder {folder.path} is a link to nothing; restore what it names, or remove it")
        if not folder.is_dir():
            others["outside the class folders"] += _is_image(folder.path)
            continue
        files = list(_files(folder.path))
        images = [file for file in files if _is_image(file)]
        others.update(os.path.splitext(file)[1].lower() or "without an ending" for file in files if not _is_image(file))
        if not images:
            empty.append(folder.name)
            continue
        labels += [len(classes)] * len(images)
        paths += [file[start:] for file in images]
        classes.append(folder.name)
    if empty:
        _note(f"data set folder {root}: no images in {_some(empty)}, which are not counted as classes")
    if skipped := [f"{count} {kind}" for kind, count in sorted(others.items()) if count]:
        _note(f"data set folder {root}: files that are not read: {_some(skipped)}")
    if not paths:
        raise UserError(f"data set folder {root} holds no class folders with images; {hint}")
    for path in paths:
        check_utf8(root, path)
    return ImageFiles(name, root, paths, np.asarray(labels, dtype=np.int64), classes)


def image_tree(root: Path, *, name: str) -> ImageFiles:
    """Read the images at any depth of a folder, in sorted order, all with label 0: for what needs no classes.

    What is left out, followed and named is as in `image_folder`. Raises UserError for a folder that is missing or
    holds no image, and for a name that is not UTF-8.
    """
    if not root.is_dir():
        raise UserError(f"data set folder {root} is missing; correct its name")
    files = list(_files(str(root)))
    paths = [os.path.relpath(file, root) for file in files if _is_image(file)]
    if not paths:
        raise UserError(f"data set folder {root} holds no images; place them there, in any folders")
    if len(paths) < len(files):
        _note(f"data set folder {root}: {len(files) - len(paths)} files that are not images are not read")
    for path in paths:
        check_utf8(root, path)
    return ImageFiles(name, root, paths, np.zeros(len(paths), dtype=np.int64), ["images"])


def folder_sha256(root: Path, parts: Sequence[Path]) -> str:
    """Return a SHA-256 over the names and sizes in bytes of the files in folders below `root`; of its own, of images.

    What is left out and followed is as in `image_folder`. Raises UserError for a name that is not UTF-8.
    """
    entries = []
    for part in parts:
        for file in _files(str(part)):
            if part != root or _is_image(file):
                check_utf8(file)
                try:
                    size = os.stat(file).st_size
                except OSError:  # a broken link, which the reader names
                    size = 0
                entries.append(f"{os.path.relpath(file, root)}:{size}")
    return sha256_of_text(*entries)


def check_utf8(*parts: str | Path) -> None:
    """Raise UserError, in printable words, unless a path's name is UTF-8: records and caches could not hold it."""
    path = Path(*parts)
    try:
        str(parts[-1]).encode()
    except UnicodeEncodeError:
        raise UserError(f"the name of {os.fsencode(path)!r} is not UTF-8; rename it") from None


def image_split(root: Path, split: str, name: str, hint: str = "") -> ImageFiles:
    """Read `<root>/train`, or for "test" `<root>/val`, each with one folder per class.

    `hint` says what to do where they are missing. Raises UserError as `image_folder` does, and for a test split whose
    classes are not those of the training split.
    """
    hint = hint or f"place one folder per class, with its images, in {root / 'train'} and {root / 'val'}"
    images = image_folder(root / {"train": "train", "test": "val"}[split], name=f"{name}-{split}", hint=hint)
    if split == "test" and (root / "train").is_dir():
        check_classes(root / "train", images)
    return images


def check_classes(train: Path, test: ImageFiles) -> None:
    """Raise UserError naming the difference unless the folders `train` and `test` have the same two classes or more.

    Labels are places in the list of classes, so a class that only one of them has would shift all labels after it.
    """
    classes = set(_class_folders(train))
    sides = [(train, classes - set(test.classes)), (test.root, set(test.classes) - classes)]
    if differences := [f"only {folder} has {_some(sorted(names))}" for folder, names in sides if names]:
        raise UserError(
            f"the class folders of {train} and {test.root} differ: {'; '.join(differences)}; "
            "give both the same class folders, with images in each"
        )
    if len(classes) == 1:
        raise UserError(f"{train} has images of one class alone, {classes.pop()}: any guess is right; add the others")


def has_classes(root: Path, least: int = 1) -> bool:
    """Return whether a folder is there and has `least` folders with images, which `image_folder` takes for classes."""
    return root.is_dir() and len(list(islice(_class_folders(root), least))) == least


def _class_folders(root: Path) -> Iterator[str]:
    return (e.name for e in _visible(root) if e.is_dir() and any(map(_is_image, _files(e.path))))


def _visible(folder: str | Path) -> list[os.DirEntry]:
    """Return the folder's entries, sorted by name, without hidden ones and the system's."""
    try:
        with os.scandir(folder) as entries:
            kept = [e for e in entries if not e.name.startswith(".") and e.name not in SYSTEM_FOLDERS]
    except OSError as error:
        raise UserError(
            f"data set folder {folder} cannot be read ({error.strerror}); correct its permissions"
        ) from None
    return sorted(kept, key=lambda entry: entry.name)


def _files(folder: str, above: tuple[os.stat_result, ...] | None = None) -> Iterator[str]:
    """Yield the paths of the files at any depth of the folder, sorted; a link to a folder above it is not followed."""
    if above is None:
        above = tuple(parent.stat() for parent in Path(folder).absolute().parents)
    here = os.stat(folder)
    if any(os.path.samestat(here, other) for other in above):
        return
    for entry in _visible(folder):
        if entry.is_dir():
            yield from _files(entry.path, (*above, here))
        else:
            yield entry.path


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except FileNotFoundError:
        raise UserError(f"image {path} is missing; restore the data set") from None
    except (OSError, ValueError) as error:  # a list may name what cannot be a file
        raise UserError(f"image {str(path)!a} cannot be read ({error.args[-1]}); restore the data set") from None


def _is_image(path: str) -> bool:
    return path.lower().endswith(EXTENSIONS)


def _some(words: Sequence[str], most: int = 5) -> str:
    """Return the first words and the number of others; names that are not UTF-8 become printable."""
    shown = [word.encode(errors="backslashreplace").decode() for word in words[:most]]
    return ", ".join(shown) + (f" and {len(words) - most} more" if len(words) > most else "")


@cache
def _note(text: str) -> None:
    """Print the text on stderr once per command: a set may be opened several times, by several processes."""
    if rank() == 0:
        print(f"note: {text}", file=sys.stderr, flush=True)


@contextmanager
def readable(path: Path, what: str = "image", *, remedy: str, missing: str = "restore the data set") -> Iterator[None]:
    """Turn any error of Pillow in the block into a UserError that names the file and `remedy`, or `missing`.

    On a damaged file its decoders may raise anything: OSError, SyntaxError, struct.error, MemoryError and others.
    """
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{what} {path} is missing; {missing}") from None
    except Exception as error:
        reason = " ".join(str(error).split()).split(str(path))[0].strip(" '") or type(error).__name__
        if isinstance(error, Image.DecompressionBombError):
            raise UserError(f"{what} {path} is too large ({reason}); make it smaller, or {remedy}") from None
        compression = _tiff_compression(path) if path.is_file() else None
        if isinstance(compression, int):
            raise UserError(
                f"{what} {path} is a TIFF of compression {compression}, which Pillow does not read; "
                f"convert it, or {remedy}"
            ) from None
        if compression:
            reason = f"TIFF compression {compression}: {reason}"
        unknown = compression or isinstance(error, UnidentifiedImageError)
        kind = ", or of a kind that Pillow does not read" if unknown else ""
        raise UserError(f"{what} {path} is truncated or corrupt{kind} ({reason}); {remedy}") from None


def _tiff_compression(path: Path) -> str | int | None:
    """Return Pillow's name of a TIFF's compression, or its number where Pillow has none; None for other files."""
    try:
        with open(path, "rb") as stream:
            tags = ImageFileDirectory_v2(stream.read(8))
            stream.seek(tags.next)
            tags.load(stream)
        number = tags.get(COMPRESSION, 1)
        return COMPRESSION_INFO.get(number, number)
    except Exception:  # a damaged table of tags may raise anything
        return None
