"""The images that pretraining and its evaluation read, by name."""

from pathlib import Path

from common.cli import UserError
from common.data import LabelledImages, image_folder
from common.embedded import digits

DATASETS = ("digits", "folder")


def open_images(name: str, root: str, split: str) -> LabelledImages:
    """Return the labelled images of `split` ("train" or "test") of a data set.

    `digits`: the embedded digits, `root` being the data root. `folder`: an ImageFolder, `<root>/train` and
    `<root>/val` with a folder a class. Raises UserError naming the folder that is missing.
    """
    if name == "digits":
        return digits(Path(root), split)
    if name == "folder":
        sub = {"train": "train", "test": "val"}[split]
        hint = f"place class folders with images in {Path(root) / 'train'} and {Path(root) / 'val'}"
        return image_folder(Path(root) / sub, name=f"{Path(root).name}-{split}", hint=hint)
    raise UserError(f"config: unknown data set '{name}'; known: {', '.join(DATASETS)}")
