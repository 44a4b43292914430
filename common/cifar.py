"""The readers of CIFAR-10 and CIFAR-100, from their official files."""

import hashlib
import io
import pickle
import pickletools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from common.errors import UserError
from common.files import read_bytes, sha256_of_text
from common.sources import make_data

PIXELS = 3 * 32 * 32  # bytes of an image: its red, green and blue planes, each row by row
# What a pickle of arrays and plain Python types refers to, in today's NumPy and in the one that wrote the files.
_PICKLED = {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")} | {
    (f"numpy.{core}.{module}", name)
    for core in ("core", "_core")
    for module, name in (("multiarray", "_reconstruct"), ("multiarray", "scalar"), ("numeric", "_frombuffer"))
}


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


@dataclass(frozen=True)
class _Layout:
    """The official "python version": files of pickled batches with their sizes in bytes, and the file of names."""

    name: str
    folder: str
    train: dict[str, int]
    test: dict[str, int]
    labels: str
    meta: str
    classes: str


_CIFAR10 = _Layout(
    "cifar10",
    "cifar-10-batches-py",
    train={
        "data_batch_1": 31035704,
        "data_batch_2": 31035320,
        "data_batch_3": 31035999,
        "data_batch_4": 31035696,
        "data_batch_5": 31035623,
    },
    test={"test_batch": 31035526},
    labels="labels",
    meta="batches.meta",
    classes="label_names",
)
_CIFAR100 = _Layout(
    "cifar100",
    "cifar-100-python",
    train={"train": 155249918},
    test={"test": 31049908},
    labels="fine_labels",
    meta="meta",
    classes="fine_label_names",
)
CIFAR10_BINARY = "cifar-10-batches-bin"
# Copies of CIFAR-10 whose pixels are not the published ones, by what `copy_of_cifar10` hashes.
COPIES = {"542573b74f4a949c293896878dbd639a42a906830f77c95b7009a2ef15fdfc57": "CIFAR-10 (JPEG 75)"}


def cifar10(data: Path, split: str) -> ArrayImages:
    """Return the 50,000 images of "train" or the 10,000 of "test" of CIFAR-10.

    Read from `<data>/cifar-10-batches-py` (the official "python version") or, without it, from
    `<data>/cifar-10-batches-bin` (the "binary version"). Files of the same form with other images are read too, but
    a file of exactly the official size must have the official MD5. Raises UserError naming a file that is missing or
    does not fit. Only arrays and plain types are unpickled.
    """
    if not (data / _CIFAR10.folder).is_dir() and (data / CIFAR10_BINARY).is_dir():
        return _read_binary(data, split)
    return _read_python(_CIFAR10, data, split)


def copy_of_cifar10(data: Path) -> str:
    """Return the name of the copy under `data`: "CIFAR-10" is the published one, whose MD5s the reader compared."""
    folder = data / _CIFAR10.folder
    sizes = _CIFAR10.train | _CIFAR10.test
    if folder.is_dir() and all((folder / name).stat().st_size == size for name, size in sizes.items()):
        return "CIFAR-10"
    hashed = sha256_of_text(*(cifar10(data, split).fingerprint for split in ("train", "test")))
    return COPIES.get(hashed, f"CIFAR-10 (unknown copy {hashed[:8]})")


def cifar100(data: Path, split: str) -> ArrayImages:
    """Return the 50,000 images of "train" or the 10,000 of "test" of CIFAR-100 with its 100 fine labels.

    Read from `<data>/cifar-100-python`; otherwise as `cifar10`.
    """
    return _read_python(_CIFAR100, data, split)


def _read_python(layout: _Layout, data: Path, split: str) -> ArrayImages:
    folder = data / layout.folder
    remedy = make_data(layout.name, data, folder)
    if not folder.is_dir():
        raise UserError(f"data set folder {folder} is missing; {remedy}")
    meta = folder / layout.meta
    classes = _unpickle(meta, read_bytes(meta, "data set file", remedy), remedy).get(layout.classes)
    if not isinstance(classes, list) or not classes or not all(isinstance(word, str) for word in classes):
        raise UserError(f"data set file {meta} holds no list '{layout.classes}' of class names; {remedy}")
    pixels, labels = [], []
    for name, size in (layout.train if split == "train" else layout.test).items():
        path = folder / name
        content = read_bytes(path, "data set file", remedy)
        if len(content) == size:
            _check_md5(layout, path, content, remedy)
        batch = _unpickle(path, content, remedy)
        x, y = batch.get("data"), batch.get(layout.labels)
        if not isinstance(x, np.ndarray) or x.dtype != np.uint8 or x.shape != (len(x) or 1, PIXELS):
            raise UserError(f"data set file {path} holds no array 'data' of N x {PIXELS} bytes; {remedy}")
        pixels.append(x)
        labels.append(_labels(y, len(x), len(classes), path, remedy))
    return _images(f"{layout.name}-{split}", pixels, labels, classes)


def _read_binary(data: Path, split: str) -> ArrayImages:
    """Read records of one byte for the label and 3,072 for the pixels."""
    folder = data / CIFAR10_BINARY
    remedy = make_data("cifar10", data, folder)
    meta = folder / "batches.meta.txt"
    classes = read_bytes(meta, "data set file", remedy).decode("utf-8", "replace").split()
    if not classes:
        raise UserError(f"data set file {meta} holds no class names; {remedy}")
    pixels, labels = [], []
    for name in _CIFAR10.train if split == "train" else _CIFAR10.test:
        path = folder / f"{name}.bin"
        content = np.frombuffer(read_bytes(path, "data set file", remedy), np.uint8)
        if len(content) == 0 or len(content) % (1 + PIXELS):
            raise UserError(
                f"data set file {path} of {len(content)} bytes does not hold whole records of {1 + PIXELS}; {remedy}"
            )
        records = content.reshape(-1, 1 + PIXELS)
        pixels.append(records[:, 1:])
        labels.append(_labels(records[:, 0], len(records), len(classes), path, remedy))
    return _images(f"cifar10-{split}", pixels, labels, classes)


def _images(name: str, pixels: list[np.ndarray], labels: list[np.ndarray], classes: list[str]) -> ArrayImages:
    planes = np.concatenate(pixels).reshape(-1, 3, 32, 32)
    return ArrayImages(name, np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), np.concatenate(labels), classes)


def _labels(values: Any, count: int, classes: int, path: Path, remedy: str) -> np.ndarray:
    try:
        labels = np.asarray(values)
    except ValueError:  # lists of different lengths
        labels = np.empty(0)
    if labels.shape != (count,) or labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= classes:
        raise UserError(f"data set file {path} must have one label of 0 ... {classes - 1} per image; {remedy}")
    return labels.astype(np.int64)


def _check_md5(layout: _Layout, path: Path, content: bytes, remedy: str) -> None:
    from torchvision.datasets import CIFAR10, CIFAR100

    source = {"cifar10": CIFAR10, "cifar100": CIFAR100}[layout.name]
    official = dict(source.train_list + source.test_list)[path.name]
    actual = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if actual != official:
        raise UserError(f"data set file {path} is damaged: its MD5 is {actual}, not {official}; {remedy}")


class _Unpickler(pickle.Unpickler):
    """Builds arrays and plain types, and refuses anything else that a pickle asks for and might run."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _PICKLED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


def _unpickle(path: Path, content: bytes, remedy: str) -> dict[str, Any]:
    try:
        for code, number, _ in pickletools.genops(content):
            if code.name in ("PUT", "LONG_BINPUT") and int(number or 0) > len(content):
                raise ValueError("it numbers more objects than it holds")  # pickle would reserve memory for all
        # Python 2 wrote the official files: its byte strings become text.
        result = _Unpickler(io.BytesIO(content), encoding="latin1").load()
    except Exception as error:  # a pickle of wrong bytes may raise anything
        reason = " ".join(str(error).split())
        raise UserError(f"data set file {path} is not a pickle of arrays ({reason}); {remedy}") from None
    if not isinstance(result, dict):
        raise UserError(f"data set file {path} holds no dictionary; {remedy}")
    return result
