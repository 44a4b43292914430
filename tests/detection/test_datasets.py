import json
from pathlib import Path

import PIL.Image
import pytest
from mmengine.dataset import Compose
from mmengine.registry import DefaultScope

from common.config import load_config
from common.errors import UserError
from detection.train import register

XML = """<annotation><size><width>20</width><height>10</height><depth>3</depth></size>
<object><name>{name}</name><difficult>1</difficult><part><name>head</name></part>
<bndbox><xmin>2</xmin><ymin>3</ymin><xmax>12</xmax><ymax>9</ymax></bndbox></object>
<object><name>cat</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>20</xmax><ymax>10</ymax></bndbox></object>
</annotation>"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "Annotations" / "one.xml").write_text(XML.format(name="dog"))
    (tmp_path / "list.txt").write_text("one\n")
    return tmp_path


def voc(folder: Path, *, test_mode: bool):
    register()
    from detection.datasets import VOC

    return VOC(
        data_root=str(folder),
        ann_file="list.txt",
        data_prefix={"sub_data_root": ""},
        metainfo={"classes": ("cat", "dog")},
        test_mode=test_mode,
    )


@pytest.mark.parametrize("test_mode", [False, True])
def test_difficult_objects_are_trained_on_and_ignored_in_the_test(folder: Path, test_mode: bool) -> None:
    instances = voc(folder, test_mode=test_mode).get_data_info(0)["instances"]
    assert [i["ignore_flag"] for i in instances] == [int(test_mode), 0]


@pytest.mark.parametrize("profile", ["imagenet", "demo"])
def test_the_evaluation_knows_the_order_of_the_objects(folder: Path, profile: str) -> None:
    """The difficult dog comes before the cat, and mmdet hands the two over apart."""
    data = voc(folder, test_mode=True)
    from mmdet.registry import TRANSFORMS

    pipeline = load_config(Path(f"detection/configs/{profile}/voc.py")).test_dataloader.dataset.pipeline
    (folder / "JPEGImages").mkdir()
    PIL.Image.new("RGB", (20, 10)).save(folder / "JPEGImages" / "one.jpg")
    with DefaultScope.overwrite_default_scope("mmdet"):  # whatever ran before in this process
        data.pipeline = Compose([TRANSFORMS.build(step) for step in pipeline])
    sample = data[0]["data_samples"].to_dict()
    assert list(sample["gt_ignore_flags"]) == [1, 0]
    assert sample["gt_instances"]["labels"].tolist() == [0]
    assert sample["ignored_instances"]["labels"].tolist() == [1]


def test_boxes_are_borders_counted_from_zero(folder: Path) -> None:
    """detectron2's reading: a box of pixels 1 to 20 covers the whole of 20 pixels."""
    [dog, cat] = voc(folder, test_mode=True).get_data_info(0)["instances"]
    assert (dog["bbox"], dog["bbox_label"]) == ([1, 2, 12, 9], 1)
    assert (cat["bbox"], cat["bbox_label"]) == ([0, 0, 20, 10], 0)


def test_a_wrong_or_missing_annotation_is_named(folder: Path) -> None:
    path = folder / "Annotations" / "one.xml"
    path.write_text(XML.format(name="unicorn"))
    with pytest.raises(UserError, match=r"one\.xml: unknown class 'unicorn'; known: cat, dog"):
        voc(folder, test_mode=False)
    path.unlink()
    with pytest.raises(UserError, match=r"one\.xml is missing"):
        voc(folder, test_mode=False)


def coco(tmp_path: Path, annotations: list[dict], categories=((5, "dog"), (2, "cat")), images=(7,)):
    register()
    from detection.datasets import COCO

    content = {
        "images": [{"id": k, "file_name": f"{k}.jpg", "width": 20, "height": 10} for k in images],
        "annotations": [
            {"id": k, "image_id": 7, "iscrowd": 0, "area": 1.0, **annotation}
            for k, annotation in enumerate(annotations)
        ],
        "categories": [{"id": number, "name": name} for number, name in categories],
    }
    (tmp_path / "truth.json").write_text(json.dumps(content))
    return COCO(
        data_root=str(tmp_path),
        ann_file="truth.json",
        data_prefix={"img": ""},
        metainfo={"classes": ("cat", "dog")},
        filter_cfg={"filter_empty_gt": True},
    )


def test_cocos_objects_are_detectron2s(tmp_path: Path) -> None:
    data = coco(
        tmp_path,
        [
            {"bbox": [1, 2, 3, 4], "category_id": 5},
            {"bbox": [18, 8, 4, 4], "category_id": 2},  # clipped to the image
            {"bbox": [1, 2, 0.5, 0.5], "category_id": 2},  # below a pixel: an object, which mmdet leaves out
            {"bbox": [1, 2, 3, 0], "category_id": 2},  # empty: none
            {"bbox": [1, 2, 3, 4], "category_id": 5, "iscrowd": 1},
        ],
    )
    instances = data.get_data_info(0)["instances"]
    assert [(i["bbox"], i["bbox_label"], i["ignore_flag"]) for i in instances] == [
        ([1, 2, 4, 6], 1, 0),
        ([18, 8, 20, 10], 0, 0),
        ([1, 2, 1.5, 2.5], 0, 0),
        ([1, 2, 4, 6], 1, 1),
    ]


def test_images_without_objects_are_left_out_of_training(tmp_path: Path) -> None:
    data = coco(tmp_path, [{"bbox": [1, 2, 3, 4], "category_id": 5}], images=(7, 8))
    assert [data.get_data_info(k)["img_id"] for k in range(len(data))] == [7]
