"""What t-SNE and the geometry of the features look at: checkpoints, and a data set with labels."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import cli
from common.errors import UserError
from common.files import sha256_of_text
from common.run import Subject

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

    from common.checkpoint import Checkpoint
    from common.images import LabelledImages

LIMIT = 10_000  # images: the paper's figure has CIFAR-10's test set
# Data set -> crop, and what the shorter side is resized to before it, in pixels (PROTOCOLS 3).
SIZES: dict[str, tuple[int, int | None]] = {
    "digits": (32, None),
    "cifar10": (32, None),
    "cifar100": (32, None),
    "imagenet": (224, 256),
}
OF_PROFILE = {"demo": "digits", "cifar10": "cifar10", "imagenet": "imagenet"}


@dataclass(frozen=True)
class Part:
    """Some images of a data set, itself a data set of labelled images."""

    whole: "LabelledImages"
    indices: "np.ndarray"

    @property
    def name(self) -> str:
        """The data set's name and how many images are meant."""
        return f"{self.whole.name}-{len(self.indices)}"

    @property
    def classes(self) -> Sequence[str]:
        """The class names of the whole."""
        return self.whole.classes

    @property
    def labels(self) -> "np.ndarray":
        """The labels (N,) of the part."""
        return self.whole.labels[self.indices]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the whole's and the indices."""
        return sha256_of_text(self.whole.fingerprint, str(self.indices.tolist()))

    def image(self, index: int) -> "Image":
        """Return the part's image `index` in RGB."""
        return self.whole.image(int(self.indices[index]))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what selects the data set."""
    parser.add_argument("--dataset", type=_dataset, help=f"of {', '.join(SIZES)}; none: the profile's own")
    parser.add_argument("--data-root", type=cli.path, help="an image folder with a folder a class, or with such a val/")
    parser.add_argument(
        "--size", type=cli.whole("--size", 1), help="pixels that images of --data-root are resized and cropped to"
    )
    parser.add_argument(
        "--limit", default=LIMIT, type=cli.whole("--limit", 2), help="at most so many images, drawn with a fixed seed"
    )


def found_subjects(args: argparse.Namespace, what: str) -> list[Subject]:
    """Return the checkpoints that are there: CHECKPOINT, or the profile's. Raises UserError when none is."""
    subjects = cli.subjects(args)
    found = [subject for subject in subjects if subject.path.is_file()]
    if args.checkpoint is not None and not found:
        raise UserError(f"checkpoint {args.checkpoint} is missing; correct CHECKPOINT")
    if not found:
        raise UserError(
            f"{what}: no checkpoint in {args.checkpoints / args.profile}; make one with `{subjects[0].make_it}`"
        )
    return found


def label(args: argparse.Namespace) -> str:
    """Return the name of the data set that the arguments select."""
    if args.data_root is not None:
        return args.data_root.resolve().name
    return args.dataset or OF_PROFILE[args.profile]


def stem(args: argparse.Namespace, what: str) -> str:
    """Return the file name of a product without its ending; it tells what is not the profile's own."""
    parts = [what]
    if label(args) != OF_PROFILE[args.profile] or args.data_root is not None:
        parts.append(label(args))
    if args.checkpoint is not None:
        parts.append(args.name)
    return "-".join(parts)


def open_images(args: argparse.Namespace) -> "tuple[LabelledImages, Callable[[Image], Any]]":
    """Return the labelled test images that the arguments select, at most --limit, and their transform.

    Raises UserError naming what is missing.
    """
    import numpy as np

    from common.features import evaluation_transform
    from common.images import image_folder

    if args.data_root is not None:
        root = args.data_root / "val" if (args.data_root / "val").is_dir() else args.data_root
        hint = "place one folder a class, with its images, there"
        images: LabelledImages = image_folder(root, name=f"{label(args)}-{root.name}", hint=hint)
        size = args.size or 224
        resize: int | None = size
    else:
        images = _READERS[label(args)](args.data)
        size, resize = SIZES[label(args)]
    if len(images.labels) > args.limit:
        drawn = np.random.default_rng(0).choice(len(images.labels), args.limit, replace=False)
        images = Part(images, np.sort(drawn))
    return images, evaluation_transform(size, resize=resize)


def extract(
    subject: Subject, images: "LabelledImages", transform: "Callable[[Image], Any]", args: argparse.Namespace
) -> "np.ndarray":
    """Return the checkpoint's features (N, D) of the images, float32, in memory."""
    import numpy as np

    from common.checkpoint import load_checkpoint
    from common.features import extract_features, pick_workers

    checkpoint: Checkpoint = load_checkpoint(subject.path, make_it=subject.make_it)
    cache, workers = args.runs / args.profile / "features", pick_workers(len(images.labels))
    return np.array(extract_features(checkpoint, images, transform, cache, workers=workers).x)


def _dataset(word: str) -> str | None:
    return cli.one_of("DATASET", SIZES)(word) if word else None


def _digits(data: Path) -> "LabelledImages":
    from common.embedded import digits

    return digits(data, "test")


def _cifar(name: str, data: Path) -> "LabelledImages":
    from common import cifar

    return getattr(cifar, name)(data, "test")


def _imagenet(data: Path) -> "LabelledImages":
    from common.images import image_folder

    root = data / "imagenet" / "val"
    return image_folder(root, name="imagenet-test", hint=f"place one folder a class, with its images, in {root}")


_READERS: dict[str, Callable[[Path], "LabelledImages"]] = {
    "digits": _digits,
    "cifar10": partial(_cifar, "cifar10"),
    "cifar100": partial(_cifar, "cifar100"),
    "imagenet": _imagenet,
}
