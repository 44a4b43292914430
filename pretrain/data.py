"""The images that pretraining and its evaluation read, by name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.errors import UserError
from common.files import sha256_of_text
from common.images import LabelledImages, has_classes, image_split, image_tree
from common.sources import MAP11, SOURCES, own_name

if TYPE_CHECKING:
    from mmengine.config import Config
    from PIL.Image import Image


@dataclass(frozen=True)
class First:
    """The first images of a set; the others do not exist for whoever reads it."""

    images: LabelledImages
    count: int

    @property
    def name(self) -> str:
        """The set's name, and how many."""
        return f"{self.images.name}-first{self.count}"

    @property
    def classes(self) -> Sequence[str]:
        """All classes of the set."""
        return self.images.classes

    @property
    def labels(self) -> np.ndarray:
        """The labels, (count,) int64."""
        return self.images.labels[: self.count]

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the whole set's and how many."""
        return sha256_of_text(self.images.fingerprint, str(self.count))

    def image(self, index: int) -> "Image":
        """Return image `index` in RGB."""
        return self.images.image(index)


def open_images(name: str, root: str, split: str, first: int | None = None, labelled: bool = True) -> LabelledImages:
    """Return the labelled images of `split` ("train" or "test") of a data set.

    `name` is a data set of `common.sources` with these splits and one label per image, under the data root `root`, or
    "folder": any ImageFolder, `<root>/{train,val}`. `first` keeps only so many images of the split, in the data set's
    order. With `labelled` False, all images under the folder `<root>/train`, or `root` without one, are of one class.
    Raises UserError for another name, and naming what is missing and what to place there, or the classes in which the
    two splits differ.
    """
    if first is not None:
        images = open_images(name, root, split, labelled=labelled)
        return First(images, first) if first < len(images.labels) else images
    if not labelled:
        train = Path(root) / "train"
        return image_tree(train if train.is_dir() else Path(root), name=f"{Path(root).name}-{split}")
    if name == "folder":
        return image_split(Path(root), split, Path(root).name)
    known = [n for n, source in SOURCES.items() if {"train", "test"} <= {*source.splits} and source.metric != MAP11]
    if name not in known:
        raise UserError(f"config: unknown data set '{name}'; known: {', '.join(known)}, folder")
    return SOURCES[name].read(Path(root), split)


def label(images: Mapping[str, Any]) -> str:
    """Return the data set's name in records and checkpoints; `images` are a config's arguments of `open_images`.

    Raises UserError as `common.sources.own_name` does.
    """
    return own_name(Path(images["root"])) if images["name"] == "folder" else str(images["name"])


def use_folder(config: "Config", root: Path) -> None:
    """Make every part of `config` read the ImageFolder `root`, as its data root, instead of its own data set.

    Pretraining takes any tree of images as it is; without several classes in `train`, or without a folder per class in
    `val`, it is not monitored by kNN. Raises UserError for another command when it has no `train` folder.
    """
    pretraining = "train_dataloader" in config and "val_dataloader" not in config
    if not pretraining and not (root / "train").is_dir():
        raise UserError(f"--data-root {root} has no folder 'train'; place one folder per class in {root / 'train'}")
    images: dict[str, Any] = dict(name="folder", root=".")
    labelled = not pretraining or has_classes(root / "train", 2)
    tested = labelled and has_classes(root / "val")
    if "train_dataloader" in config:
        config.train_dataloader.dataset.images = dict(
            images, split="train", **({} if labelled else {"labelled": False})
        )
    if "val_dataloader" in config:
        config.val_dataloader.dataset.images = dict(images, split="test")
        config.model.num_classes = len(open_images("folder", str(root), "train").classes)
    if "evaluation" in config:
        config.evaluation.images = images
    hooks = config.get("custom_hooks", [])
    config.custom_hooks = [hook for hook in hooks if tested or hook["type"] != "KnnMonitor"]
