"""Segmentation on a folder of the user's: labels from its maps, named or not, and what is ignored."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.errors import UserError
from common.records import read_record
from segmentation.labels import Labels, read_indices
from segmentation.train import main
from tests.dense import Place
from tests.segmentation.test_train import SMALL

OPTIONS = (*SMALL, "train_cfg.max_iters=1")


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """Three training and two test images, PNG, with maps of the labels 0, 7 and 200, and 255 where nobody knows."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 3), ("val", 2)):
        for kind in ("images", "annotations"):
            (tmp_path / "mine" / kind / split).mkdir(parents=True)
        for k in range(count):
            image = rng.integers(0, 256, (64, 96, 3), dtype=np.uint8)
            labels = rng.choice(np.array([0, 7, 200, 255], dtype=np.uint8), (64, 96))
            Image.fromarray(image).save(tmp_path / "mine" / "images" / split / f"{k}.png")
            Image.fromarray(labels).save(tmp_path / "mine" / "annotations" / split / f"{k}.png")
    return tmp_path / "mine"


@pytest.mark.parametrize(
    ("arguments", "classes"),
    [([], ["0", "7", "200"]), (["--classes=a, b, c"], ["a", "b", "c"]), (["--ignored=0"], ["7", "200", "255"])],
)
def test_every_label_but_the_ignored_one_is_a_class(
    place: Place, mine: Path, arguments: list[str], classes: list[str], capsys: pytest.CaptureFixture
) -> None:
    results = place.run(main, f"--data-root={mine}", *arguments, options=OPTIONS)
    record = read_record(results / "demo/segmentation/tiny/mine-seed0.json")
    assert list(record["details"]["IoU_per_class"]) == classes
    assert record["protocol"].items() >= {"n_train": 3, "n_test": 2, "padding_label": 255}.items()
    predicted = place.root / "runs/demo/segmentation-mine/tiny-seed0/predictions/0.png"
    assert np.asarray(Image.open(predicted)).max() <= 2
    subject = (f"--checkpoint={place.root / 'checkpoints/resnet18.pth'}", "--name=tiny")
    place.run(main, f"--data-root={mine}", "--test-only", *arguments, *subject, arch=None, options=OPTIONS)
    assert "testing the weights trained before" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "arguments", "said"),
    [
        ("annotations/val", [], r"no folders to train and test on: place there \{images,annotations\}/\{training,"),
        ("images/train/0.png", [], r"annotation \S+0.png has no image \S+images/train/0.png"),
        ("annotations/train/0.png", [], r"image \S+0.png has no annotation"),
        (None, ["--classes=a,b"], "CLASSES names 2 classes, but the maps have the labels 0, 7, 200; name each of them"),
    ],
)
def test_what_is_wrong_with_a_folder_is_one_line(
    place: Place, mine: Path, change: str | None, arguments: list[str], said: str
) -> None:
    if change is not None:
        (shutil.rmtree if (mine / change).is_dir() else Path.unlink)(mine / change)
    with pytest.raises(UserError, match=said):
        place.run(main, f"--data-root={mine}", *arguments, options=OPTIONS)


def test_images_of_two_kinds_are_refused(place: Place, mine: Path) -> None:
    Image.new("RGB", (4, 4)).save(mine / "images/val/9.jpg")
    with pytest.raises(UserError, match=r"end in \.jpg, \.png; give all one ending"):
        place.run(main, f"--data-root={mine}", options=OPTIONS)


def test_labels_become_indices_in_the_order_of_the_classes(tmp_path: Path) -> None:
    Image.fromarray(np.array([[9, 4], [0, 4]], dtype=np.uint8)).save(tmp_path / "a.png")
    found = read_indices(tmp_path / "a.png", (2, 2), Labels((4, 9), 0))
    assert found.tolist() == [[1, 0], [255, 0]]
    with pytest.raises(UserError, match=r"a.png has label 4, which belongs to no class"):
        read_indices(tmp_path / "a.png", (2, 2), Labels((3, 9), 0))
