from pathlib import Path

import pytest

from common.cli import UserError
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


def test_difficult_objects_are_trained_on(folder: Path) -> None:
    instances = voc(folder, test_mode=False).get_data_info(0)["instances"]
    assert [i["ignore_flag"] for i in instances] == [0, 0]


def test_difficult_objects_are_ignored_in_the_test(folder: Path) -> None:
    instances = voc(folder, test_mode=True).get_data_info(0)["instances"]
    assert [i["ignore_flag"] for i in instances] == [1, 0]


def test_boxes_count_from_zero(folder: Path) -> None:
    [dog, cat] = voc(folder, test_mode=True).get_data_info(0)["instances"]
    assert (dog["bbox"], dog["bbox_label"]) == ([1, 2, 11, 8], 1)
    assert (cat["bbox"], cat["bbox_label"]) == ([0, 0, 19, 9], 0)


def test_an_unknown_class_is_named(folder: Path) -> None:
    (folder / "Annotations" / "one.xml").write_text(XML.format(name="unicorn"))
    with pytest.raises(UserError, match=r"one\.xml .*unknown class 'unicorn'; known: cat, dog"):
        voc(folder, test_mode=False)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (XML.format(name="dog")[:100], "truncated"),
        (XML.format(name="dog").replace("<xmin>2</xmin>", ""), "not in VOC's format"),
        (XML.format(name="dog").replace("<xmin>2", "<xmin>two"), "not in VOC's format"),
    ],
)
def test_a_broken_annotation_is_named(folder: Path, content: str, message: str) -> None:
    (folder / "Annotations" / "one.xml").write_text(content)
    with pytest.raises(UserError, match=rf"one\.xml is .*{message}"):
        voc(folder, test_mode=False)


def test_a_missing_annotation_is_named(folder: Path) -> None:
    (folder / "Annotations" / "one.xml").unlink()
    with pytest.raises(UserError, match=r"one\.xml is missing"):
        voc(folder, test_mode=False)
