"""Pictures and boxes of a finished detector."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.structures import InstanceData
from PIL import Image

from common.errors import UserError
from detection import detect
from detection.train import main
from tests.dense import Place
from tests.detection.test_train import SMALL


class Sample:
    """What mmdet returns of an image: three boxes, the weakest first."""

    pred_instances = InstanceData(
        bboxes=torch.tensor([[1.0, 2, 9, 8], [4, 4, 12, 30], [20, 10, 39, 29]]),
        labels=torch.tensor([0, 1, 1]),
        scores=torch.tensor([0.2, 0.5, 0.75]),
    )


def test_boxes_from_the_threshold_on_are_listed_and_drawn_on_the_upright_image(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    Image.new("RGB", (32, 40), "white").save(tmp_path / "a.jpg", exif=exif)
    pictures, found = detect.picture(tmp_path / "a.jpg", Sample(), ("cat", "dog"), 0.5)
    assert found == {
        "width": 40,
        "height": 32,
        "detections": [
            {"box": [20, 10, 39, 29], "class": "dog", "score": 0.75},
            {"box": [4, 4, 12, 30], "class": "dog", "score": 0.5},
        ],
    }
    pixels = np.asarray(pictures[".png"])
    assert pixels.shape == (32, 40, 3)
    assert (pixels[28, 30] < 250).any()  # the lower edge
    assert (pixels[4, 1:4] > 250).all()  # the weak box is not there


def test_a_finished_run_draws_a_folder_of_images(place: Place, capsys: pytest.CaptureFixture) -> None:
    for dataset in ("voc", "coco"):
        place.run(main, f"--dataset={dataset}", options=(*SMALL, "train_cfg.max_iters=1"))
    photos = place.root / "photos"
    (photos / "more").mkdir(parents=True)
    for name, size in (("a.png", (60, 40)), ("more/b.jpg", (40, 60))):
        Image.new("RGB", size, "gray").save(photos / name)
    (photos / "more" / "broken.jpg").write_bytes(b"no image")
    (photos / "notes.txt").touch()
    command = [f"--runs={place.root / 'runs'}", f"--images={photos}", f"--reports={place.root / 'out'}"]
    with pytest.raises(UserError, match=r"tiny has finished detection on coco, voc; choose one by DATASET"):
        detect.main([*command, "--name=tiny"])
    with pytest.raises(UserError, match="has no finished detection of byol with seed 0; train it first"):
        detect.main([*command, "--method=byol"])
    with pytest.raises(UserError, match="1 of 3 images could not be read"):
        detect.main([*command, "--name=tiny", "--dataset=voc", "--score-threshold=0"])
    out = place.root / "out/demo/detection-voc/tiny-seed0"
    assert sorted(path.name for path in out.rglob("*.png")) == ["a.png.png", "b.jpg.png"]
    content = json.loads((out / "predictions.json").read_text())
    assert content["classes"][:2] == ["zero", "one"]
    assert [(one["path"], one["width"], one["height"]) for one in content["images"]] == [
        ("a.png", 60, 40),
        ("more/b.jpg", 40, 60),
    ]
    boxes = content["images"][0]["detections"]
    assert boxes
    assert all(0 <= box["box"][0] <= box["box"][2] <= 60 and box["class"] in content["classes"] for box in boxes)
    assert [box["score"] for box in boxes] == sorted((box["score"] for box in boxes), reverse=True)
    (photos / "more" / "broken.jpg").unlink()
    detect.main([*command, "--name=tiny", "--dataset=voc", "--score-threshold=1"])
    assert all(one["detections"] == [] for one in json.loads((out / "predictions.json").read_text())["images"])
    with pytest.raises(UserError, match="--score-threshold is '2'; choose a number from 0 to 1"):
        detect.main([*command, "--name=tiny", "--score-threshold=2"])
    with pytest.raises(UserError, match="holds no images"):
        detect.main([*command, "--name=tiny", "--dataset=voc", f"--images={place.root / 'runs'}"])
    (place.root / "runs/demo/detection-voc/tiny-seed0/final.pth").write_bytes(b"half")
    with pytest.raises(UserError, match=r"final.pth is damaged"):
        detect.main([*command, "--name=tiny", "--dataset=voc"])
