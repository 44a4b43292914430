"""The test images that t-SNE and the geometry read, and the checkpoints' features of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL.Image import Image

from analysis.scope import SIZES, Scope
from common.cifar import cifar10, cifar100
from common.embedded import digits
from common.errors import UserError
from common.features import evaluation_transform, extract_features, pick_workers
from common.files import sha256_of_text
from common.images import LabelledImages, image_folder
from common.run import Subject
from common.sources import remedy


@dataclass(frozen=True)
class Part:
    """Some images of a data set, themselves a data set of labelled images."""

    whole: LabelledImages
    indices: np.ndarray

    @property
    def name(self) -> str:
        """The data set's name and the number of images."""
        return f"{self.whole.name}-{len(self.indices)}"

    @property
    def classes(self) -> Sequence[str]:
        """The class names of the whole."""
        return self.whole.classes

    @property
    def labels(self) -> np.ndarray:
        """The labels (N,) of the part."""
        return self.whole.labels[self.indices]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the whole's fingerprint and the indices."""
        return sha256_of_text(self.whole.fingerprint, str(self.indices.tolist()))

    def image(self, index: int) -> Image:
        """Return the part's image `index` in RGB."""
        return self.whole.image(int(self.indices[index]))


def open_images(scope: Scope, least: int = 1) -> tuple[LabelledImages, Callable[[Image], Any]]:
    """Return the labelled test images of the scope, at most its limit, and their transform.

    Raises UserError naming what is missing, and for fewer than `least` images.
    """
    if scope.data_root is not None:
        root = scope.data_root / "val" if (scope.data_root / "val").is_dir() else scope.data_root
        hint = "place one folder per class, with its images, there"
        images: LabelledImages = image_folder(root, name=f"{scope.images}-{root.name}", hint=hint)
        size = scope.size or 224
        resize: int | None = size
    else:
        images = _READERS[scope.images](scope.data, "test")
        size, resize = SIZES[scope.images]
    if len(images.labels) > scope.limit:
        drawn = np.random.default_rng(0).choice(len(images.labels), scope.limit, replace=False)
        images = Part(images, np.sort(drawn))
    if len(images.labels) < least:
        found = f"{scope.data_root or scope.images} has {len(images.labels)} and --limit is {scope.limit}"
        raise UserError(f"at least {least} images are needed, and {found}; choose more images or a larger limit")
    return images, evaluation_transform(size, resize=resize)


def extract(subject: Subject, images: LabelledImages, transform: Callable[[Image], Any], cache: Path) -> np.ndarray:
    """Return the checkpoint's features (N, D) of the images, float32, in memory."""
    checkpoint = subject.load()
    workers = pick_workers(len(images.labels))
    return np.array(extract_features(checkpoint, images, transform, cache, workers=workers).x)


def _imagenet(data: Path, split: str) -> LabelledImages:
    return image_folder(data / "imagenet" / "val", name=f"imagenet-{split}", hint=remedy("imagenet", data))


_READERS: dict[str, Callable[[Path, str], LabelledImages]] = {
    "digits": digits,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "imagenet": _imagenet,
}
