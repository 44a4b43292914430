"""Damaged annotations: they are read or refused in one line, and what passes the check can be read for training."""

import json
from pathlib import Path

from common.config import join_data, load_config
from common.mmlab.finetune import datasets
from detection.annotations import check, read_voc
from detection.datasets import COCO
from tests.fuzzing import fuzz


def test_voc_annotations(official: Path) -> None:
    path = official / "VOCdevkit/VOC2012/Annotations/2008_000001.xml"
    fuzz(path, lambda: read_voc(path, ("aeroplane", "bicycle", "bird")), 100)


def test_voc_data_sets(official: Path) -> None:
    part = list(datasets(join_data(load_config(Path("detection/configs/imagenet/voc.py")), official)))[1]
    for name in ("Annotations/2008_000001.xml", "ImageSets/Main/trainval.txt", "JPEGImages/2008_000001.jpg"):
        path = official / "VOCdevkit/VOC2012" / name
        fuzz(path, lambda: check(part, official / "checked"), 25, named=official)


def test_coco_data_sets(official: Path) -> None:
    part = next(datasets(join_data(load_config(Path("detection/configs/imagenet/coco.py")), official)))
    path = official / "coco/annotations/instances_train2017.json"
    content = json.loads(path.read_text())  # of few classes, so that objects are damaged too
    content["categories"] = content["categories"][:10]
    content["annotations"] = [thing for thing in content["annotations"] if thing["category_id"] <= 10]
    path.write_text(json.dumps(content))
    part.metainfo = {"classes": [category["name"] for category in content["categories"]]}

    def read() -> None:
        check(part, official / "checked")
        COCO(ann_file=str(path), data_prefix={"img": ""}, metainfo=part.metainfo)

    fuzz(path, read, 120, named=official)
