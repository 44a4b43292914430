"""A data set of the user's in VOC's or COCO's layout, with its own classes, instead of the one that a config names."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config

from common.errors import UserError
from common.preflight import check_once, read_json, read_list

# The first pair that a folder has: the parts to train on and to test on.
SPLITS = {
    "voc": (("trainval", "test"), ("train", "test"), ("train", "val")),
    "coco": (("train2017", "val2017"), ("train", "val"), ("train", "test")),
}
ANN_FILES = {"voc": "ImageSets/Main/{}.txt", "coco": "annotations/instances_{}.json"}


def use_folder(config: Config, root: Path, classes: Sequence[str] | None, cache: Path, *, layout: str) -> None:
    """Make `config` train and test on `root`, in the layout "voc" or "coco".

    `root` is like VOC2007, with JPEGImages, Annotations and ImageSets/Main, or like coco, with annotations and one
    folder of images per split. Without `classes` they are read from the files, and `cache` keeps what VOC's say. Raises
    UserError naming what is missing or broken.
    """
    files = ANN_FILES[layout]
    splits = next((pair for pair in SPLITS[layout] if all((root / files.format(s)).is_file() for s in pair)), None)
    if splits is None:
        known = "; ".join(" and ".join(files.format(split) for split in pair) for pair in SPLITS[layout])
        raise UserError(f"--data-root {root} (DATA_ROOT) has no lists to train and test on: place there {known}")
    listed = [files.format(split) for split in splits]
    classes = classes or (
        _classes_of_voc(root, listed, cache) if layout == "voc" else _classes_of_coco(root / listed[0])
    )
    if not classes:
        raise UserError(f"--data-root {root} (DATA_ROOT) has no object in {' or '.join(listed)}; annotate some")
    for part, split, ann_file in zip(("train", "test"), splits, listed, strict=True):
        loader: Any = config[f"{part}_dataloader"]
        first = loader.dataset.datasets[0] if "datasets" in loader.dataset else loader.dataset
        prefix = {"sub_data_root": ""} if layout == "voc" else {"img": f"{split}/"}
        about = dict(data_root=".", ann_file=ann_file, data_prefix=prefix, metainfo=dict(classes=tuple(classes)))
        loader.dataset = {**first, **about}
    if layout == "coco":
        config.test_evaluator.ann_file = listed[1]
    config.model.roi_head.bbox_head.num_classes = len(classes)


def _classes_of_voc(root: Path, listed: Sequence[str], cache: Path) -> list[str]:
    from detection.annotations import read_voc

    names = {name for file in listed for name in read_list(root / file)}
    files = [root / "Annotations" / f"{name}.xml" for name in sorted(names)]
    found = check_once(
        f"{root.resolve().name}-classes",
        lambda: files,
        lambda file: sorted({thing.name for thing in read_voc(file).objects}),
        files=files,
        settings="",
        cache=cache,
    )
    return sorted({name for those in found for name in those})


def _classes_of_coco(path: Path) -> list[str]:
    try:
        categories = sorted(read_json(path)["categories"], key=lambda category: category["id"])
        return [str(category["name"]) for category in categories]
    except (KeyError, TypeError) as error:
        raise UserError(f"annotation {path} is not in COCO's format ({error!r}); restore it") from None
