"""The check of a whole data set: every fault named, once passed not repeated."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import ConfigDict
from mmengine.registry import TRANSFORMS
from PIL import ExifTags, Image

from common.config import join_data, load_config
from common.errors import UserError
from common.mmlab.finetune import datasets
from detection.annotations import PUBLISHED_EMPTY, check
from detection.train import register


def check_all(data: Path, dataset: str) -> None:
    for part in datasets(join_data(load_config(Path(f"detection/configs/imagenet/{dataset}.py")), data)):
        check(part, data / "checked")


def refusal(data: Path, dataset: str) -> str:
    with pytest.raises(UserError) as caught:
        check_all(data, dataset)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def kept(data: Path) -> list[str]:
    """The names of the checks that have passed."""
    return sorted(path.name.rpartition("-")[0] for path in (data / "checked").glob("*.json"))


def test_a_sound_voc_passes_once_and_its_changed_part_again(official: Path, capsys: pytest.CaptureFixture) -> None:
    check_all(official, "voc")
    assert "checking VOC2012-trainval: 100%" in capsys.readouterr().err
    assert kept(official) == ["VOC2007-test", "VOC2007-trainval", "VOC2012-trainval"]
    check_all(official, "voc")
    assert "checking" not in capsys.readouterr().err
    os.utime(official / "VOCdevkit/VOC2012/Annotations/2008_000002.xml", ns=(1, 1))
    check_all(official, "voc")
    shown = capsys.readouterr().err
    assert "VOC2012-trainval" in shown
    assert "VOC2007" not in shown


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("<xmax>", "<xmax>9", r"box \(\d+, \d+, 9\d+, \d+\) lies outside its image of 75 x 100 pixels"),
        ("<ymin>", "<ymin>-9", "lies outside its image"),
        ("<xmin>", "<xmin>9", "is empty"),
        ("<name>", "<name>un", r"unknown class 'un\w+'; known: aeroplane, bicycle"),
        ("<width>75", "<width>80", r"000001\.jpg is \(75, 100\) pixels, not \(80, 100\)"),
        ("<xmin>", "<xmin>one", "not in VOC's format"),
        ("<ymax>", "<ymux>", "truncated or corrupt"),
        ("<width>75</width>", "", "no size/width in <annotation>"),
        ("<object><name>", "<object><name/><name>", "no name in <object>"),
    ],
)
def test_a_fault_of_voc_is_named(official: Path, old: str, new: str, says: str) -> None:
    path = official / "VOCdevkit/VOC2012/Annotations/2008_000001.xml"
    path.write_text(path.read_text().replace(old, new, 1))
    said = refusal(official, "voc")
    assert str(path) in said
    assert re.search(says, said)
    assert kept(official) == ["VOC2007-trainval"]  # what passed stays passed


def test_missing_and_corrupt_files_of_voc_are_named(official: Path) -> None:
    folder = official / "VOCdevkit/VOC2007"
    image = folder / "JPEGImages/000002.jpg"
    content = image.read_bytes()
    image.unlink()
    assert f"{image} is listed but missing" in refusal(official, "voc")
    for size in (10, -100):  # of the header, of the pixels
        image.write_bytes(content[:size])
        assert f"image {image} is truncated or corrupt" in refusal(official, "voc")
    image.write_bytes(content)
    (folder / "Annotations/000002.xml").unlink()
    assert "000002.xml is listed but missing" in refusal(official, "voc")
    (folder / "ImageSets/Main/trainval.txt").write_text("")
    assert "trainval.txt lists no image" in refusal(official, "voc")


LISTS = {
    "blank lines": lambda names: ("\n" + "\n\n".join(names) + "\n \n").encode(),
    "blanks": lambda names: "".join(f" {name} \t\n" for name in names).encode(),
    "no end": lambda names: "\n".join(names).encode(),
    "CRLF": lambda names: "".join(f"{name}\r\n" for name in names).encode(),
    "BOM": lambda names: "".join(f"{name}\n" for name in names).encode("utf-8-sig"),
    "UTF-16": lambda names: "".join(f"{name}\n" for name in names).encode("utf-16"),
    "UTF-16, CRLF": lambda names: b"\xfe\xff" + "".join(f"{name}\r\n" for name in names).encode("utf-16-be"),
}


@pytest.mark.parametrize("kind", LISTS)
def test_the_check_and_the_reader_read_a_list_of_voc_alike(official: Path, kind: str) -> None:
    from detection.datasets import VOC

    root = official / "VOCdevkit"
    listed = root / "VOC2007/ImageSets/Main/trainval.txt"
    names = listed.read_text().split()
    renamed = root / "VOC2007/JPEGImages/a photo.jpg"
    (root / "VOC2007/JPEGImages" / f"{names[1]}.jpg").rename(renamed)
    (root / "VOC2007/Annotations" / f"{names[1]}.xml").rename(root / "VOC2007/Annotations/a photo.xml")
    names[1] = "a photo"
    listed.write_bytes(LISTS[kind](names))
    check_all(official, "voc")
    data = VOC(data_root=str(root), ann_file=str(listed), data_prefix={"sub_data_root": "VOC2007"}, test_mode=True)
    assert [data.get_data_info(k)["img_id"] for k in range(len(data))] == names
    assert data.get_data_info(1)["img_path"] == str(renamed)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"000001\n000002\n000001\n", "names 000001 2 times; leave one"),
        (b"000001\n../000002\n", "names '../000002', which cannot be an image's name"),
        (b"000001\x00\n", "which cannot be an image's name"),
        ("000001\n".encode("utf-16-le"), "which cannot be an image's name"),
        (b"000001 1\n", "000001 1.jpg is listed but missing"),
        (b"x" * 999, "which cannot be an image's name"),
        (b"caf\xe9\n", "is not text in UTF-8"),
        (b"\xff\xfe0", "is not text in UTF-8"),
        (b" \n\n", "lists no image"),
    ],
)
def test_a_list_of_voc_that_names_no_images_is_named(official: Path, content: bytes, says: str) -> None:
    listed = official / "VOCdevkit/VOC2007/ImageSets/Main/trainval.txt"
    listed.write_bytes(content)
    said = refusal(official, "voc")
    assert says in said
    assert str(listed) in said or "missing" in says


@pytest.mark.parametrize("orientation", [3, 6])
def test_annotations_are_of_the_image_turned_upright_as_in_detectron2(official: Path, orientation: int) -> None:
    folder = official / "VOCdevkit/VOC2007"
    path = folder / "JPEGImages/000001.jpg"
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    upright = Image.open(path)
    back = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90}[orientation]
    upright.transpose(back).save(path, exif=exif, quality=100)
    check_all(official, "voc")
    [load] = [
        step
        for step in load_config(Path("detection/configs/imagenet/voc.py")).test_dataloader.dataset.pipeline
        if step.type == "LoadImage"
    ]
    loaded = TRANSFORMS.build(load)({"img_path": str(path)})
    assert loaded["ori_shape"] == (upright.height, upright.width)
    assert np.abs(loaded["img"][..., ::-1].astype(int) - np.asarray(upright)).mean() < 5
    path.write_bytes((folder / "JPEGImages/000002.jpg").read_bytes())
    assert "000001.jpg is (90, 90) pixels, not (75, 100)" in refusal(official, "voc")
    upright.rotate(90, expand=True).save(path, exif=exif)
    if orientation == 3:
        assert "000001.jpg is (100, 75) pixels, not" in refusal(official, "voc")
    else:
        upright.save(path, exif=exif)
        assert "000001.jpg, turned as its EXIF orientation says, is (100, 75)" in refusal(official, "voc")


def test_voc_images_without_any_object_are_refused(official: Path) -> None:
    for path in (official / "VOCdevkit/VOC2012/Annotations").iterdir():
        path.write_text(re.sub("<object>.*</object>", "", path.read_text(), flags=re.DOTALL))
    listed = official / "VOCdevkit/VOC2012/ImageSets/Main/trainval.txt"
    assert f"no image of {listed} has an object" in refusal(official, "voc")


def test_a_pixel_beyond_the_border_is_drawing_and_not_a_fault(official: Path) -> None:
    path = official / "VOCdevkit/VOC2012/Annotations/2008_000001.xml"
    text = path.read_text()
    x0 = text.split("<xmin>")[1].split("<")[0]
    path.write_text(text.replace(f"<xmin>{x0}<", "<xmin>0<", 1))
    check_all(official, "voc")


def test_a_sound_coco_passes_once(official: Path, capsys: pytest.CaptureFixture) -> None:
    check_all(official, "coco")
    assert "checking coco-instances_train2017: 100%" in capsys.readouterr().err
    check_all(official, "coco")
    assert "checking" not in capsys.readouterr().err


def change(official: Path, kind: str, **fields) -> Path:
    """Change the second entry of a kind in the training annotations; a None removes the field."""
    path = official / "coco/annotations/instances_train2017.json"
    content = json.loads(path.read_text())
    entry = content[kind][1]
    entry.update(fields)
    content[kind][1] = {key: value for key, value in entry.items() if value is not None}
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("kind", "fields", "says"),
    [
        ("annotations", {"bbox": [5, 5, 500, 5]}, "box (5, 5, 505, 10) lies outside its image of 75 x 100 pixels"),
        ("annotations", {"bbox": [5, 5, 0, 5]}, "box (5, 5, 5, 10) is empty"),
        ("annotations", {"category_id": 1000}, "is of unknown class 1000; known: person"),
        ("annotations", {"image_id": 99}, "is of image 99, which is not listed"),
        ("annotations", {"bbox": None}, "not in COCO's format"),
        ("annotations", {"bbox": [1, 2, "a", 3]}, "not in COCO's format"),
        ("images", {"width": 101}, "is (90, 90) pixels, not (101, 90)"),
        ("categories", {"name": "unicorn"}, "unknown class 'unicorn'; known: person"),
        ("categories", {"id": None}, "not in COCO's format"),
        ("annotations", {"bbox": ["3", "5", "20", "20"]}, "bbox ['3', '5', '20', '20'] is not four numbers"),
        ("annotations", {"bbox": [3, 5, 20]}, "bbox [3, 5, 20] is not four numbers"),
        ("annotations", {"bbox": [3, 5, float("nan"), 20]}, "bbox [3, 5, nan, 20] is not four numbers"),
        ("annotations", {"bbox": [3, True, 20, 20]}, "bbox [3, True, 20, 20] is not four numbers"),
        ("annotations", {"area": "750"}, "object 2: area '750' is not a number of pixels"),
        ("annotations", {"area": -1}, "object 2: area -1 is not a number of pixels"),
        ("annotations", {"iscrowd": 2}, "object 2: iscrowd 2 is neither 0 nor 1"),
        ("annotations", {"iscrowd": "0"}, "object 2: iscrowd '0' is neither 0 nor 1"),
        ("annotations", {"id": 1}, "id 1 occurs twice among its annotations"),
        ("annotations", {"id": [1]}, "not in COCO's format"),
        ("images", {"id": 1}, "id 1 occurs twice among its images"),
        ("categories", {"id": 1}, "id 1 occurs twice among its categories"),
        ("categories", {"name": "person"}, "name 'person' occurs twice among its categories"),
        ("categories", {"name": 5}, "the name 5 of a category is not a text"),
        ("annotations", {"category_id": "1"}, "is of unknown class '1'; known: person"),
        ("images", {"file_name": 2}, "not in COCO's format"),
        ("images", {"file_name": "\ud800.jpg"}, "not in COCO's format"),
    ],
)
def test_a_fault_of_coco_is_named(official: Path, kind: str, fields: dict, says: str) -> None:
    path = change(official, kind, **fields)
    said = refusal(official, "coco")
    assert str(path) in said
    assert says in said


@pytest.mark.parametrize("crowds", [True, False])
def test_a_coco_file_without_an_object_to_find_is_refused(official: Path, crowds: bool) -> None:
    path = official / "coco/annotations/instances_val2017.json"
    content = json.loads(path.read_text())
    content["annotations"] = [thing | {"iscrowd": 1} for thing in content["annotations"]] if crowds else []
    path.write_text(json.dumps(content))
    assert refusal(official, "coco") == f"annotation {path} lists no object{' but crowds' * crowds}; restore it"


@pytest.mark.parametrize("lacking", ["area", "iscrowd"])
@pytest.mark.parametrize("null", [True, False])
def test_what_a_coco_file_need_not_say_is_its_default(official: Path, lacking: str, null: bool) -> None:
    from detection.datasets import COCO
    from detection.metrics import COCOAP

    plain = official / "coco/annotations/instances_val2017.json"
    content = json.loads(plain.read_text())
    for thing in content["annotations"]:
        thing[lacking] = None
        if not null:
            del thing[lacking]
    path = plain.with_name("lacking.json")
    path.write_text(json.dumps(content))
    said = [
        [{key: thing[key] for key in ("area", "iscrowd")} for thing in COCOAP(ann_file=str(file)).truth.anns.values()]
        for file in (plain, path)
    ]
    assert said[0] == said[1]
    read = [
        COCO(ann_file=str(file), data_prefix={"img": ""}, test_mode=True).load_data_list() for file in (plain, path)
    ]
    assert read[0] == read[1]
    path.replace(plain)
    check_all(official, "coco")


def test_missing_and_corrupt_files_of_coco_are_named(official: Path) -> None:
    image = official / "coco/train2017/000000000002.jpg"
    content = image.read_bytes()
    image.unlink()
    assert f"image {image} is missing" in refusal(official, "coco")
    for size in (10, -100):  # of the header, of the pixels
        image.write_bytes(content[:size])
        assert f"image {image} is truncated or corrupt" in refusal(official, "coco")
    path = official / "coco/annotations/instances_train2017.json"
    text = path.read_text()
    path.write_text(text[:-10])
    assert f"{path} is truncated or corrupt" in refusal(official, "coco")
    path.write_text("[]")
    assert f"{path} holds no JSON object" in refusal(official, "coco")


def test_a_class_that_the_file_lacks_is_named(official: Path) -> None:
    path = official / "coco/annotations/instances_val2017.json"
    content = json.loads(path.read_text())
    content["categories"].pop(0)
    content["annotations"] = [thing for thing in content["annotations"] if thing["category_id"] != 1]
    path.write_text(json.dumps(content))
    assert "lacks the class 'person'" in refusal(official, "coco")


def test_the_two_empty_boxes_that_coco_published_are_known(official: Path) -> None:
    path = official / "coco/annotations/instances_train2017.json"
    content = json.loads(path.read_text())
    first = content["images"][0]["id"]
    content["images"][0]["id"] = PUBLISHED_EMPTY[0]
    for thing in content["annotations"]:
        if thing["image_id"] == first:
            thing["image_id"] = PUBLISHED_EMPTY[0]
            thing["bbox"][3] = 0
    path.write_text(json.dumps(content))
    check_all(official, "coco")


def test_the_check_of_the_demos_data(tiny_data: Path, tmp_path: Path) -> None:
    register()
    for dataset in ("voc", "coco"):
        config = join_data(load_config(Path(f"detection/configs/demo/{dataset}.py")), tiny_data)
        parts = list(datasets(config))
        assert [isinstance(part, ConfigDict) for part in parts] == [True, True]
        for part in parts:
            check(part, tmp_path)
    assert len(list(tmp_path.glob("*.json"))) == 4
    assert Image.open(next((tiny_data / "demo/coco/val2017").iterdir())).size == (160, 160)
