"""The detection figures: one per data set, with objects and detections; wrong files are named."""

import json

import numpy as np
import pytest
from PIL import Image
from PIL.ImageColor import getrgb

from analysis import detection, figures
from analysis.detection import Box, Shown, class_colour, find
from common.errors import UserError
from tests.analysis.conftest import folders


@pytest.fixture
def saved(scope):
    """Return a function that writes what a model's run leaves: two classes, a wide and a tall image."""
    (scope.data / "images").mkdir(parents=True)
    for k, size in enumerate([(60, 40), (40, 60)]):
        Image.new("RGB", size, (40, 40, 40)).save(scope.data / "images" / f"{k}.png")

    def write(model, dataset="voc", seed=0, **changes):
        path = scope.runs / "demo" / f"detection-{dataset}" / f"{model}-seed{seed}" / "predictions.json"
        path.parent.mkdir(parents=True)
        truth = [
            {"box": [2, 4, 30, 35], "label": 0, "ignored": False},
            {"box": [20, 20, 39, 38], "label": 1, "ignored": True},
        ]
        found = [{"box": [3, 4, 30, 34], "label": 0, "score": 0.91}]
        images = [{"path": f"images/{k}.png", "truth": truth, "detections": found} for k in (0, 1)]
        content = {"classes": ["cat", "dog"], "score": 0.5, "images": images} | changes
        path.write_text(json.dumps(content))
        return path

    return write


def test_one_figure_per_data_set_in_the_order_of_the_models(scope, saved, capsys):
    for model in ("byol", "simsiam_gsg", "mine"):
        saved(model)
    saved("simsiam", dataset="coco")
    saved("simsiam", seed=1)
    found, _ = find(scope)
    assert {name: [one.model for one in ones] for name, ones in found.items()} == {
        "coco": ["simsiam"],
        "voc": ["simsiam_gsg", "byol", "mine"],
    }
    coco, voc = detection.build(scope)
    assert (coco.name, voc.name) == ("detection-coco.png", "detection-voc.png")
    pixels = np.asarray(Image.open(voc).convert("RGB")).astype(int)
    for wanted in (getrgb(class_colour(0)), getrgb(class_colour(1)), (40, 40, 40)):
        assert (np.abs(pixels - wanted).max(-1) <= 2).any(), wanted
    assert pixels.shape[1] > np.asarray(Image.open(coco)).shape[1] * 1.8  # four columns and two
    assert voc.with_suffix(".pdf").read_bytes().startswith(b"%PDF")
    assert capsys.readouterr().out.count("written") == 2
    detection.build(scope)
    assert capsys.readouterr().out.count("up to date") == 2


def test_as_many_detections_as_objects_the_best_last():
    boxes = [Box((0, 0, 1, 1), 0, score) for score in (0.2, 0.9, 0.1, 0.4)]
    shown = Shown("x", [Box((0, 0, 1, 1), 0)] * 2, boxes)
    assert [box.score for box in shown.best] == [0.4, 0.9]
    assert Shown("x", [], boxes).best == []


def test_without_detections_the_command_is_named(scope):
    with pytest.raises(UserError, match=r"no detections in .*make detection-voc PROFILE=demo"):
        detection.build(scope)


def test_files_of_another_form_are_named(scope, saved):
    path = saved("byol")
    good = json.loads(path.read_text())
    for spoilt in (
        "{",
        "[]",
        "{}",
        '{"classes": [], "score": 0.5, "images": []}',
        "[" * 100_000,
        json.dumps(good | {"classes": ["a"]}),
        json.dumps(good | {"classes": ["\ud800"] * 3}),
        json.dumps(good | {"images": [good["images"][0] | {"path": 5}]}),
        json.dumps(good | {"score": 10**400}),
    ):
        path.write_text(spoilt)
        with pytest.raises(UserError, match=r"predictions\.json holds no predictions .*run the detection again"):
            detection.build(scope)


def test_a_broken_model_is_left_out_and_named(scope, saved):
    saved("byol")
    other, broken = saved("simsiam"), saved("mine")
    content = json.loads(other.read_text())
    content["images"].pop()
    saved("byol_gsg").write_text(json.dumps(content))
    broken.write_bytes(broken.read_bytes()[:-30])
    found, (other_images, no_predictions) = find(scope)
    assert [one.model for one in found["voc"]] == ["simsiam", "byol"]
    assert "byol_gsg-seed0/predictions.json is of other images than" in other_images
    assert "mine-seed0/predictions.json holds no predictions" in no_predictions
    with pytest.raises(UserError, match="skipped 2 files"):
        figures.main(folders(scope.data.parent))
    assert (scope.folder / "detection-voc.png").is_file()


@pytest.mark.parametrize("damage", ["is missing", "is truncated or corrupt"])
def test_a_bad_photo_costs_its_own_data_set_alone(scope, saved, capsys, damage):
    path = saved("byol")
    photo = scope.data / "images" / "1.png"
    if damage == "is missing":
        photo.unlink()
    else:
        photo.write_bytes(photo.read_bytes()[:-30])
    with pytest.raises(UserError, match=rf"1\.png.* {damage}"):
        detection.build(scope)
    content = json.loads(path.read_text())
    saved("byol", dataset="coco").write_text(json.dumps(content | {"images": content["images"][:1]}))
    assert [png.name for png in detection.build(scope)] == ["detection-coco.png"]
    assert damage in capsys.readouterr().out
    assert len(figures.compare_detection(scope)) == 1


def test_figures_draws_what_there_is(tmp_path, saved, capsys):
    with pytest.raises(UserError, match=r"no segmentation predictions .*no detections"):
        figures.main(folders(tmp_path))
    saved("byol")
    figures.main(folders(tmp_path))
    shown = capsys.readouterr().out
    assert "written" in shown
    assert "left out: no segmentation predictions" in shown
