"""Labelled images: readers that know their classes, their fingerprint and their broken files."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import transforms

from common.cli import UserError
from common.files import sha256_of_text

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".tif", ".tiff", ".webp")


# From an image's (width, height) to the factor by which its reader may reduce it.
Reduction = Callable[[tuple[int, int]], float]


class LabelledImages(Protocol):
    """N images with labels: (N,) int64 class indices, or (N, K) int64 of 0 and 1 for K labels each."""

    @property
    def name(self) -> str:
        """What caches and messages call the set."""
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
        """SHA-256 over what the images and labels are."""
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
        """SHA-256 over when the files were last written, which a cache must know beside `fingerprint`."""
        return sha256_of_text(*(str(stat.st_mtime_ns) for stat in self._stats))

    @cached_property
    def _stats(self) -> list[os.stat_result]:
        try:
            return [(self.root / path).stat() for path in self.paths]
        except FileNotFoundError as error:
            raise UserError(f"image {error.filename} is missing; restore the data set") from None

    def image(self, index: int, reduction: Reduction | None = None) -> Image.Image:
        """Return image `index` in RGB. Raises UserError naming a missing or corrupt file.

        `reduction`: see `read_image`.
        """
        return read_image(self.root / self.paths[index], reduction)


class Transformed(Dataset[tuple[Any, int]]):
    """The images of a `LabelledImages`, each through `transform`, with their indices."""

    def __init__(self, images: LabelledImages, transform: Callable[[Image.Image], Any]) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(self.images.image(index)), index


def read_image(path: Path, reduction: Reduction | None = None) -> Image.Image:
    """Return the image in RGB, grayscale, palette, CMYK and transparent ones too.

    Pixels are as stored: an EXIF tag that asks for a rotation is ignored, as torchvision's loader ignores it.
    With `reduction`, which is called with the stored size, a JPEG is decoded at 1/2, 1/4 or 1/8 of its scale where
    the factor that it returns allows it. Raises UserError naming the file when it is missing or corrupt.
    """
    try:
        with Image.open(path) as image:
            if reduction is not None:
                factor = max(1, int(reduction(image.size)))
                image.draft(None, (max(1, image.width // factor), max(1, image.height // factor)))
            return image.convert("RGB")
    except FileNotFoundError:
        raise UserError(f"image {path} is missing; restore the data set") from None
    except (OSError, SyntaxError, ValueError) as error:
        reason = " ".join(str(error).split()).split(str(path))[0].strip(" '") or type(error).__name__
        raise UserError(f"image {path} is truncated or corrupt ({reason}); restore or remove it") from None


def read_class_map(
    path: Path, size: tuple[int, int], highest: int, *, remedy: str = "restore the data set"
) -> np.ndarray:
    """Return the labels (H, W) uint8, 0 to `highest`, of an 8-bit picture of classes.

    Raises UserError naming a map that is missing or broken, is not of its image's `size` (height, width), or has
    labels beyond.
    """
    try:
        with Image.open(path) as image:
            mode, labels = image.mode, np.asarray(image)
    except FileNotFoundError:
        raise UserError(f"class map {path} is missing; {remedy}") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"class map {path} is truncated or corrupt ({error}); {remedy}") from None
    if mode not in ("L", "P"):
        raise UserError(f"class map {path} does not hold 8-bit labels (Pillow's mode {mode}); {remedy}")
    if labels.shape != size:
        raise UserError(f"class map {path} is {labels.shape}, but its image is {size} pixels; {remedy}")
    if labels.max() > highest:
        raise UserError(f"class map {path} has label {labels.max()}, beyond {highest}; {remedy}")
    return labels


def image_folder(root: Path, *, name: str, hint: str) -> ImageFiles:
    """Read `<root>/<class>/<image>`: classes and files in sorted order, labels = index of the class.

    Raises UserError naming the folder, with `hint` on what to place there, when it holds no such thing.
    """
    if not root.is_dir():
        raise UserError(f"data set folder {root} is missing; {hint}")
    classes = sorted(folder.name for folder in root.iterdir() if folder.is_dir())
    paths, labels = [], []
    for label, folder in enumerate(classes):
        files = sorted(f for f in (root / folder).rglob("*") if f.suffix.lower() in EXTENSIONS)
        paths += [str(f.relative_to(root)) for f in files]
        labels += [label] * len(files)
    if not paths:
        raise UserError(f"data set folder {root} holds no class folders with images; {hint}")
    return ImageFiles(name, root, paths, np.asarray(labels, dtype=np.int64), classes)


def evaluation_transform(
    size: int, *, resize: int | tuple[int, int] | None = None, interpolation: str = "bicubic"
) -> Callable[[Image.Image], Tensor]:
    """Return: resize, centre crop `size`, tensor (3, size, size), normalise by ImageNet's mean and deviation.

    `resize` is the shorter side, or (height, width) at the cost of the aspect ratio, or None for the image's
    own scale; lengths are in pixels.
    """
    steps: list[Callable[[Any], Any]] = []
    if resize is not None:
        target = resize if isinstance(resize, int) else tuple(resize)
        steps.append(transforms.Resize(target, transforms.InterpolationMode(interpolation)))
    steps += [transforms.CenterCrop(size), transforms.ToTensor(), transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
    return transforms.Compose(steps)
