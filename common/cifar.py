"""CIFAR-10 from its official files: transfer trains on it, and t-SNE shows its test set."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from common.cli import UserError
from common.files import sha256_of_text

FOLDER = "cifar-10-batches-py"


@dataclass(frozen=True)
class ArrayImages:
    """Labelled images in memory: `pixels` (N, H, W, 3) uint8, `labels` (N,) int64."""

    name: str
    pixels: np.ndarray
    labels: np.ndarray
    classes: Sequence[str]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the name, the pixels and the labels."""
        return sha256_of_text(self.name, *(hashlib.sha256(a.tobytes()).hexdigest() for a in (self.pixels, self.labels)))

    def image(self, index: int) -> Image.Image:
        """Return image `index` in RGB."""
        return Image.fromarray(self.pixels[index])


def cifar10(data: Path, split: str) -> ArrayImages:
    """Return the 50,000 images of "train" or the 10,000 of "test", read from `<data>/cifar-10-batches-py`.

    torchvision checks the MD5 of every batch. Raises UserError naming the folder when it is not whole.
    """
    from torchvision.datasets import CIFAR10

    try:
        source = CIFAR10(str(data), train=split == "train", download=False)
    except RuntimeError:
        raise UserError(
            f"data set folder {data / FOLDER} is missing or incomplete; "
            "place the extracted cifar-10-python.tar.gz there (data_batch_1 ... data_batch_5, test_batch, batches.meta)"
        ) from None
    return ArrayImages(f"cifar10-{split}", source.data, np.asarray(source.targets, dtype=np.int64), source.classes)
