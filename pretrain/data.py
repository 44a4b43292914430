"""The images that pretraining and its evaluation read, by name."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.cifar import cifar10
from common.embedded import digits
from common.errors import UserError
from common.images import LabelledImages, check_classes, image_folder

if TYPE_CHECKING:
    from mmengine.config import Config


def _imagefolder(root: Path, split: str, name: str) -> LabelledImages:
    sub = {"train": "train", "test": "val"}[split]
    hint = f"place one folder per class, with its images, in {root / 'train'} and {root / 'val'}"
    images = image_folder(root / sub, name=f"{name}-{split}", hint=hint)
    if split == "test" and (root / "train").is_dir():
        check_classes(root / "train", images)
    return images


# Name -> reader of (root, split). The root is the data root; for `folder`, the ImageFolder itself.
READERS: dict[str, Callable[[Path, str], LabelledImages]] = {
    "digits": digits,
    "cifar10": cifar10,
    "imagenet": lambda root, split: _imagefolder(root / "imagenet", split, "imagenet"),
    "folder": lambda root, split: _imagefolder(root, split, root.name),
}


def open_images(name: str, root: str, split: str) -> LabelledImages:
    """Return the labelled images of `split` ("train" or "test") of a data set.

    `digits`: embedded. `cifar10`: the official `cifar-10-batches-py` or `-bin` under the root. `imagenet`:
    `<root>/imagenet/{train,val}` with a folder per class. `folder`: any ImageFolder, `<root>/{train,val}`.
    Raises UserError naming what is missing and what to place there, or the classes in which the test split's folders
    differ from the training split's.
    """
    if name not in READERS:
        raise UserError(f"config: unknown data set '{name}'; known: {', '.join(READERS)}")
    return READERS[name](Path(root), split)


def label(images: Mapping[str, Any]) -> str:
    """Return the data set's name in records and checkpoints; `images` are a config's arguments of `open_images`."""
    return Path(images["root"]).resolve().name if images["name"] == "folder" else str(images["name"])


def use_folder(config: "Config", root: Path) -> None:
    """Make every part of `config` read the ImageFolder `root` instead of its own data set.

    Raises UserError when `root` has no `train` folder. One without `val` can be pretrained on, but not tested on.
    """
    if not (root / "train").is_dir():
        raise UserError(f"--data-root {root} has no folder 'train'; place one folder per class in {root / 'train'}")
    images = dict(name="folder", root=str(root))
    tested = (root / "val").is_dir()
    if "train_dataloader" in config:
        config.train_dataloader.dataset.images = dict(images, split="train")
    if "val_dataloader" in config:
        config.val_dataloader.dataset.images = dict(images, split="test")
        config.model.num_classes = len(open_images(**images, split="train").classes)
    if "evaluation" in config:
        config.evaluation.images = images
    hooks = config.get("custom_hooks", [])
    config.custom_hooks = [hook for hook in hooks if tested or hook["type"] != "KnnMonitor"]
    for hook in config.custom_hooks:
        if hook["type"] == "KnnMonitor":
            hook["evaluation"]["images"] = images
