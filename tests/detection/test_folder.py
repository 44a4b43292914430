"""Detection on a folder of the user's: classes from its files or by name, records under its own name, tests again."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from common.errors import UserError
from common.records import read_record
from detection.train import main
from tests.dense import Place
from tests.detection.layouts import write_coco, write_voc
from tests.detection.test_train import SMALL


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    """Folders voc and coco of two classes; coco's have gaps in their ids."""
    write_voc(tmp_path / "years", ("square", "round"))
    write_coco(tmp_path / "shapes" / "coco", ("square", "round"))
    (tmp_path / "years" / "VOC2007").rename(tmp_path / "shapes" / "voc")
    return tmp_path / "shapes"


@pytest.mark.parametrize(("layout", "classes"), [("voc", ["round", "square"]), ("coco", ["square", "round"])])
def test_a_folder_is_trained_on_recorded_under_its_name_and_tested_again(
    place: Place, shapes: Path, layout: str, classes: list[str], capsys: pytest.CaptureFixture
) -> None:
    mine = shapes.parent / "mine"
    (shapes / layout).rename(mine)
    options = (*SMALL, "train_cfg.max_iters=1")
    results = place.run(main, f"--dataset={layout}", f"--data-root={mine}", options=options)
    path = results / "demo/detection/tiny/mine-seed0.json"
    record = read_record(path)
    assert sorted(record["details"]["AP_per_class"]) == ["round", "square"]
    assert record["protocol"].items() >= {"n_train": 4 if layout == "voc" else 6, "n_test": 3}.items()
    shown = json.loads((place.root / "runs/demo/detection-mine/tiny-seed0/predictions.json").read_text())
    assert shown["classes"] == classes
    assert all(Path(image["path"]).is_file() for image in shown["images"])
    again = shapes.parent / "elsewhere" / "mine"
    shutil.copytree(mine, again)
    subject = (f"--checkpoint={place.root / 'checkpoints/resnet18.pth'}", "--name=tiny")
    place.run(main, f"--dataset={layout}", f"--data-root={again}", "--test-only", *subject, arch=None, options=options)
    assert "testing the weights trained before" in capsys.readouterr().out
    for name in ("metrics", "protocol", "details"):
        assert read_record(path)[name] == record[name]
    assert read_record(path)["provenance"]["data_fingerprint"] == record["provenance"]["data_fingerprint"]
    Image.new("RGB", (9, 9)).save(next(again.rglob("*.jpg")))  # other data under the same name
    with pytest.raises(UserError, match="other data or other settings; add OVERWRITE=1"):
        place.run(main, f"--dataset={layout}", f"--data-root={again}", *subject, arch=None, options=options)


@pytest.mark.parametrize(
    ("layout", "change", "arguments", "said"),
    [
        ("voc", None, ["--classes=square"], "unknown class 'round'; known: square"),
        ("coco", None, ["--classes=square"], "unknown class 'round'; known: square"),
        ("voc", None, ["--classes=a,,b"], "CLASSES is 'a,,b'; choose names that differ"),
        ("voc", "ImageSets", [], "has no lists to train and test on: place there ImageSets/Main/trainval.txt and"),
        ("coco", "annotations/instances_val2017.json", [], "no lists to train and test on: place there annotations/"),
        ("coco", "val2017", [], "val2017 is missing"),
        ("coco", "../coco", [], r"--data-root \S+coco \(DATA_ROOT\) is not a folder"),
    ],
)
def test_what_is_wrong_with_a_folder_is_one_line(
    place: Place, shapes: Path, layout: str, change: str | None, arguments: list[str], said: str
) -> None:
    mine = shapes / layout
    if change is not None and (mine / change).is_dir():
        shutil.rmtree(mine / change)
    elif change is not None:
        (mine / change).unlink()
    if "is not a folder" not in said:
        mine = mine.rename(shapes / "mine")
    with pytest.raises(UserError, match=said):
        place.run(main, f"--dataset={layout}", f"--data-root={mine}", *arguments, options=SMALL)


def test_a_folder_named_like_a_data_set_and_classes_without_a_folder_are_refused(place: Place, shapes: Path) -> None:
    with pytest.raises(UserError, match="is named like the data set voc; rename it"):
        place.run(main, "--dataset=voc", f"--data-root={shapes / 'voc'}")
    with pytest.raises(UserError, match="add DATA_ROOT=folder"):
        place.run(main, "--dataset=voc", "--classes=a")
