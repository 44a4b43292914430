"""A data set of the user's: images, and class maps with their own labels, instead of the one that a config names."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config

from common.errors import UserError
from common.images import EXTENSIONS, open_image, readable
from common.preflight import check_once

# The first pair that a folder has below images/ and annotations/: the parts to train on and to test on.
SPLITS = (("training", "validation"), ("train", "val"), ("train", "test"))
MOST = 254  # classes, so that 8 bits hold their indices and what is ignored


def use_folder(config: Config, root: Path, classes: Sequence[str] | None, cache: Path, *, ignored: int) -> None:
    """Make `config` train and test on `root`, which holds images/<split> and annotations/<split> (8-bit PNG).

    Every label of the maps but `ignored` is a class, in increasing order, named by `classes` or by its number. `cache`
    keeps which labels there are. Padding is ignored, too. Raises UserError naming what is missing or broken.
    """
    kinds = ("images", "annotations")
    splits = next((pair for pair in SPLITS if all((root / kind / s).is_dir() for kind in kinds for s in pair)), None)
    if splits is None:
        known = "; ".join(f"{{images,annotations}}/{{{one},{other}}}" for one, other in SPLITS)
        raise UserError(f"--data-root {root} (DATA_ROOT) has no folders to train and test on: place there {known}")
    maps = sorted(path for split in splits for path in (root / "annotations" / split).rglob("*.png"))
    found = check_once(f"{root.resolve().name}-labels", lambda: maps, _labels_of, files=maps, settings="", cache=cache)
    values = sorted({label for labels in found for label in labels} - {ignored})
    if not 2 <= len(values) <= MOST:
        raise UserError(f"the class maps in {root / 'annotations'} have {len(values)} classes; choose 2 to {MOST}")
    if classes is not None and len(classes) != len(values):
        shown = ", ".join(map(str, values))
        raise UserError(
            f"CLASSES names {len(classes)} classes, but the maps have the labels {shown}; name each of them"
        )
    names = tuple(classes or map(str, values))
    for part, split in zip(("train", "test"), splits, strict=True):
        loader: Any = config[f"{part}_dataloader"]
        loader.dataset = {
            **loader.dataset,
            "type": "ClassMaps",
            "data_root": ".",
            "data_prefix": {"img_path": f"images/{split}", "seg_map_path": f"annotations/{split}"},
            "img_suffix": _ending(root / "images" / split),
            "metainfo": {"classes": names, "palette": _palette(len(names))},
            "values": values,
            "ignored": ignored,
        }
    config.model.data_preprocessor.seg_pad_val = 255
    config.model.decode_head.num_classes = len(names)
    config.model.decode_head.loss_decode.pop("class_weight", None)  # of other classes


def _labels_of(path: Path) -> list[int]:
    with readable(path, "class map", remedy="restore it"), open_image(path) as image:
        if image.mode not in ("L", "P"):
            raise UserError(f"class map {path} does not hold 8-bit labels (Pillow's mode {image.mode}); convert it")
        return np.unique(np.asarray(image)).tolist()


def _ending(folder: Path) -> str:
    """Return the ending that all images in the folder have."""
    endings = sorted({path.suffix for path in folder.rglob("*") if path.suffix.lower() in EXTENSIONS})
    if len(endings) != 1:
        raise UserError(f"the images in {folder} end in {', '.join(endings) or 'nothing known'}; give all one ending")
    return endings[0]


def _palette(classes: int) -> list[list[int]]:
    """Return a colour per class; neighbours in the list differ clearly."""
    steps = np.arange(classes)[:, None] * np.array([67, 151, 211]) + np.array([40, 90, 160])
    return (steps % 256).tolist()
