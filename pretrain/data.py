"""The images that pretraining and its evaluation read, by name."""

from collections.abc import Callable
from pathlib import Path

from common.cifar import cifar10
from common.cli import UserError
from common.data import LabelledImages, image_folder
from common.embedded import digits


def _imagefolder(root: Path, split: str, name: str) -> LabelledImages:
    sub = {"train": "train", "test": "val"}[split]
    hint = f"place one folder a class, with its images, in {root / 'train'} and {root / 'val'}"
    return image_folder(root / sub, name=f"{name}-{split}", hint=hint)


# Name -> reader of (root, split). The root is the data root; for `folder`, the ImageFolder itself.
READERS: dict[str, Callable[[Path, str], LabelledImages]] = {
    "digits": digits,
    "cifar10": cifar10,
    "imagenet": lambda root, split: _imagefolder(root / "imagenet", split, "imagenet"),
    "folder": lambda root, split: _imagefolder(root, split, root.name),
}


def open_images(name: str, root: str, split: str) -> LabelledImages:
    """Return the labelled images of `split` ("train" or "test") of a data set.

    `digits`: embedded. `cifar10`: the official `cifar-10-batches-py` under the root. `imagenet`:
    `<root>/imagenet/{train,val}` with a folder a class. `folder`: any ImageFolder, `<root>/{train,val}`.
    Raises UserError naming what is missing and what to place there.
    """
    if name not in READERS:
        raise UserError(f"config: unknown data set '{name}'; known: {', '.join(READERS)}")
    return READERS[name](Path(root), split)
