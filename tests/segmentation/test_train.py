import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from analysis import figures
from common.engine import runner as engine
from common.engine.progress import Progress
from common.engine.resume import read_resume_file
from common.errors import UserError
from common.records import read_record
from segmentation.train import main
from tests.dense import Place

RECORD = "demo/segmentation/tiny/ade20k-seed0.json"
WORK_DIR = "runs/demo/segmentation-ade20k/tiny-seed0"
SMALL = ("train_cfg.max_iters=2", "train_dataloader.batch_size=2", "model.decode_head.channels=16")


def test_two_steps_of_resnet50_leave_a_record_and_predictions(
    place: Place, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(
        "common.engine.draws.image_size"
    )  # the check knows all sizes: batches are grouped without the files
    results = place.run(main, arch="resnet50", options=SMALL)
    record = read_record(results / RECORD)
    assert set(record["metrics"]) == {"mIoU", "aAcc"}
    wanted = {
        "iterations": 2,
        "batch": 2,
        "backbone_depth": 50,
        "n_train": 6,
        "n_test": 4,
        "evaluation": "single-scale",
    }
    assert record["protocol"].items() >= wanted.items()
    shown = capsys.readouterr()
    assert "loaded 318 of 318 backbone tensors" in shown.out
    assert "Warning" not in shown.out + shown.err

    predictions = place.root / WORK_DIR / "predictions"
    index = json.loads((predictions / "index.json").read_text())
    assert len(index["classes"]) == len(index["palette"]) == 11
    assert index["images"] == [f"demo/ADEChallengeData2016/images/validation/ADE_val_{k:08d}.jpg" for k in (1, 2, 3, 4)]
    for image, annotation in zip(index["images"], index["annotations"], strict=True):
        classes = Image.open(predictions / f"{Path(image).stem}.png")
        assert (classes.mode, classes.size) == ("L", Image.open(place.data / image).size)
        assert np.asarray(classes).max() <= 10
        assert (place.data / annotation).is_file()


@pytest.mark.slow
def test_a_finished_run_is_repeated_only_if_a_prediction_is_gone(place: Place, capsys: pytest.CaptureFixture) -> None:
    subject = (f"--checkpoint={place.checkpoint('resnet18')}", "--name=tiny")
    place.run(main, *subject, arch=None, options=SMALL)
    capsys.readouterr()
    place.run(main, *subject, arch=None, options=SMALL)
    assert "already done" in capsys.readouterr().out
    image = place.root / WORK_DIR / "predictions" / "ADE_val_00000002.png"
    image.unlink()
    place.run(main, *subject, arch=None, options=SMALL)
    assert "already done" not in capsys.readouterr().out
    assert image.is_file()


@pytest.mark.slow
def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(
    small_ade20k: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, with the paper's random scales and flips, drawn in workers."""
    scales = "[(160,48),(160,60),(160,72)]"
    options = [*SMALL, "train_cfg.max_iters=5", "default_hooks.checkpoint.interval=2", "train_dataloader.num_workers=2"]
    options += [
        f"train_dataloader.batch_sampler.scales={scales}",
        "test_dataloader.dataset.pipeline.2.scales=[(96,48)]",
    ]
    arguments = (
        "--profile=imagenet",
        f"--checkpoint={Place(small_ade20k, tmp_path).checkpoint('resnet18')}",
        "--name=tiny",
    )
    whole, broken = Place(small_ade20k, tmp_path / "whole"), Place(small_ade20k, tmp_path / "broken")
    whole.run(main, *arguments, arch=None, options=tuple(options))
    with monkeypatch.context() as patch:
        patch.setattr(Progress, "after_train_iter", _interrupt_after(3))
        with pytest.raises(KeyboardInterrupt):
            broken.run(main, *arguments, arch=None, options=tuple(options))
    broken.run(main, *arguments, "--resume", arch=None, options=tuple(options))
    folder = WORK_DIR.replace("demo", "imagenet")
    expected, found = (read_resume_file(place.root / folder / "iter_5.pth")["state_dict"] for place in (whole, broken))
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    records = [place.root / "results" / RECORD.replace("demo", "imagenet") for place in (whole, broken)]
    assert read_record(records[0])["metrics"] == read_record(records[1])["metrics"]


def _interrupt_after(steps: int):
    original = Progress.after_train_iter

    def after_train_iter(self, runner, *args, **kwargs) -> None:
        original(self, runner, *args, **kwargs)
        if runner.iter + 1 == steps:
            raise KeyboardInterrupt

    return after_train_iter


@pytest.mark.slow
@pytest.mark.parametrize("single_scale", [False, True])
def test_the_papers_settings_from_data_to_figure(small_ade20k: Path, tmp_path: Path, single_scale: bool) -> None:
    """20 iterations of ResNet-50 and the whole UPerNet, the test and the figure; images a tenth of the size."""
    place = Place(small_ade20k, tmp_path)
    scales = "[(160,48),(160,60),(160,72),(160,84),(160,96)]"
    options = ["train_cfg.max_iters=20", f"train_dataloader.batch_sampler.scales={scales}"]
    if single_scale:
        options += ["train_cfg.max_iters=1", "test_dataloader.dataset.pipeline.2.scales=[(160,72)]"]
    else:
        options.append(f"test_dataloader.dataset.pipeline.2.scales={scales}")
    flags = ["--single-scale"] if single_scale else []
    results = place.run(main, "--profile=imagenet", *flags, arch="resnet50", options=tuple(options))
    name = "ade20k-single-scale" if single_scale else "ade20k"
    record = read_record(results / f"imagenet/segmentation/tiny/{name}-seed0.json")
    wanted = {
        "iterations": 1 if single_scale else 20,
        "batch": 2,
        "lr": 0.02,
        "n_train": 6,
        "n_test": 3,
        "evaluation": "single-scale" if single_scale else "multi-scale",
        "padding_label": 0,
    }
    assert record["protocol"].items() >= wanted.items()
    assert len(record["protocol"]["test_scales"]) == (1 if single_scale else 5)
    each = record["details"]["IoU_per_class"]
    assert len(each) == 150
    assert [list(each)[k] for k in (0, 7, 149)] == ["wall", "bed", "flag"]
    assert record["metrics"]["mIoU"] == pytest.approx(sum(value or 0 for value in each.values()) / 150, abs=1e-3)
    if single_scale:
        return
    folders = [f"--{kind}={tmp_path / kind}" for kind in ("data", "runs", "reports")]
    figures.main(["--profile=imagenet", *folders])
    assert Image.open(tmp_path / "reports/imagenet/segmentation.png").size[0] > 400
    assert (tmp_path / "reports/imagenet/segmentation.pdf").is_file()
    log = [json.loads(line) for line in (tmp_path / "runs/imagenet/segmentation-ade20k/tiny-seed0/log.jsonl").open()]
    assert [line["step"] for line in log] == [10, 20]
    assert {line["lr"] for line in log} == {0.02}


def test_one_scale_is_tested_without_training_again_and_several_after_one(
    small_ade20k: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place(small_ade20k, tmp_path)
    scales = "[(160,48),(160,60)]"
    options = (*SMALL, "train_cfg.max_iters=1", f"train_dataloader.batch_sampler.scales={scales}")
    several = (*options, f"test_dataloader.dataset.pipeline.2.scales={scales}")
    one = (*options, "test_dataloader.dataset.pipeline.2.scales=[(160,72)]")
    subject = ("--profile=imagenet", f"--checkpoint={place.checkpoint('resnet18')}", "--name=tiny")
    place.run(main, *subject, arch=None, options=several)
    monkeypatch.setattr(engine.Runner, "train", None)
    folder = tmp_path / "runs/imagenet/segmentation-ade20k/tiny-seed0"
    before = {file: file.read_bytes() for file in folder.glob("*.*")}
    place.run(main, *subject, "--single-scale", arch=None, options=one)
    record = read_record(tmp_path / "results/imagenet/segmentation/tiny/ade20k-single-scale-seed0.json")
    assert record["protocol"]["test_scales"] == [[160, 72]]
    copy = tmp_path / "runs/imagenet/segmentation-ade20k-single-scale/tiny-seed0"
    assert (copy / "final.pth").read_bytes() == before[folder / "final.pth"]
    assert {file: file.read_bytes() for file in folder.glob("*.*")} == before
    shutil.rmtree(folder)
    shutil.rmtree(tmp_path / "results")
    place.run(main, *subject, arch=None, options=several)
    assert (folder / "final.pth").read_bytes() == before[folder / "final.pth"]


def test_a_missing_data_set_says_what_to_place_where(place: Place, tmp_path: Path) -> None:
    empty = Place(tmp_path / "empty", tmp_path)
    with pytest.raises(UserError, match=r"empty/ADEChallengeData2016 is missing; .*ADEChallengeData2016\.zip"):
        empty.run(main, "--profile=imagenet", arch="resnet50")


def test_class_maps_are_checked_before_training(broken: Place) -> None:
    path = broken.data / "demo/ADEChallengeData2016/annotations/training/ADE_train_00000003.png"
    Image.fromarray(np.full((160, 160), 12, np.uint8)).save(path)
    with pytest.raises(UserError, match=r"ADE_train_00000003\.png has label 12, beyond 11"):
        broken.run(main, options=SMALL)
    assert not (broken.root / "runs" / "demo").exists()
