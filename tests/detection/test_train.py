import json
import shutil
from pathlib import Path

import pytest

from common import embedded, engine
from common.cli import UserError
from common.records import read_record
from detection.train import main
from tests.dense import Place

SMALL = (
    "train_cfg.max_iters=2",
    "train_dataloader.batch_size=2",
    "train_dataloader.dataset.pipeline.2.scale=(64,64)",
    "test_dataloader.dataset.pipeline.1.scale=(64,64)",
)


@pytest.mark.parametrize("dataset", ["voc", "coco"])
def test_two_steps_of_resnet50_leave_a_record_and_are_not_repeated(
    place: Place, capsys: pytest.CaptureFixture, dataset: str
) -> None:
    results = place.run(main, f"--dataset={dataset}", arch="resnet50", options=SMALL)
    path = results / "demo" / "detection" / "tiny" / f"{dataset}-seed0.json"
    record = read_record(path)
    assert set(record["metrics"]) == {"AP", "AP50", "AP75"}
    wanted = {"iterations": 2, "batch": 2, "frozen_stages": -1, "backbone_depth": 50, "n_train": 6, "n_test": 4}
    assert record["protocol"].items() >= wanted.items()
    shown = capsys.readouterr()
    assert shown.out.startswith("[detection.train] profile=demo")
    assert "loaded 318 of 318 backbone tensors" in shown.out
    assert "INFO" not in shown.out + shown.err
    place.run(main, f"--dataset={dataset}", *_same(place), arch=None, options=SMALL)
    assert "already done" in capsys.readouterr().out


def _same(place: Place) -> tuple[str, str]:
    return f"--checkpoint={place.root / 'checkpoints' / 'resnet50.pth'}", "--name=tiny"


@pytest.mark.slow
def test_a_killed_run_resumes_and_finishes(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    options = (
        *SMALL,
        "train_cfg.max_iters=4",
        "default_hooks.checkpoint.interval=2",
        "default_hooks.progress.interval=1",
    )
    torch_seeded = place.checkpoint("resnet18")
    subject = (f"--checkpoint={torch_seeded}", "--name=tiny")
    with monkeypatch.context() as patch:
        patch.setattr(engine.Progress, "after_train_iter", _interrupt_after(3))
        with pytest.raises(KeyboardInterrupt):
            place.run(main, *subject, arch=None, options=options)
    assert not list(place.root.glob("results/**/*.json"))
    results = place.run(main, *subject, "--resume", arch=None, options=options)
    assert read_record(results / "demo" / "detection" / "tiny" / "voc-seed0.json")["protocol"]["iterations"] == 4
    log = place.root / "runs" / "demo" / "detection-voc" / "tiny-seed0" / "log.jsonl"
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == [1, 2, 3, 4]


def _interrupt_after(steps: int):
    original = engine.Progress.after_train_iter

    def after_train_iter(self, runner, *args, **kwargs) -> None:
        original(self, runner, *args, **kwargs)
        if runner.iter + 1 == steps:
            raise KeyboardInterrupt

    return after_train_iter


@pytest.mark.slow
def test_frozen_is_a_variant_of_its_own(place: Place) -> None:
    results = place.run(main, "--frozen", options=SMALL)
    record = read_record(results / "demo" / "detection" / "tiny" / "voc-frozen-seed0.json")
    assert record["protocol"]["frozen_stages"] == 3
    assert record["protocol"]["variant"] == "frozen"


def test_a_cifar_backbone_is_refused(place: Place) -> None:
    with pytest.raises(UserError, match=r"resnet18_cifar cannot serve a dense task.*resnet50"):
        place.run(main, arch="resnet18_cifar")


def test_a_config_that_fixes_another_backbone_is_refused(place: Place) -> None:
    with pytest.raises(UserError, match=r"fits only .* of .* backbone tensors"):
        place.run(main, options=("model.backbone.deep_stem=True", "model.backbone.stem_channels=64"))


def test_profile_without_detection(place: Place) -> None:
    with pytest.raises(UserError, match="profile cifar10 has no detection; choose PROFILE from demo, imagenet"):
        place.run(main, "--profile=cifar10")


@pytest.mark.parametrize(("dataset", "file"), [("voc", "VOCtrainval_11-May-2012.tar"), ("coco", "train2017.zip")])
def test_a_missing_data_set_says_what_to_place_where(place: Place, tmp_path: Path, dataset: str, file: str) -> None:
    empty = Place(tmp_path / "empty", tmp_path)
    with pytest.raises(UserError, match=rf"{tmp_path}/empty/\w+ is missing; .*{file}"):
        empty.run(main, "--profile=imagenet", f"--dataset={dataset}", arch="resnet50")


def test_a_truncated_image_is_named(place: Place, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(place.data, data)
    image = data / "demo" / "VOCdevkit" / "VOC2007" / "JPEGImages" / "000001.jpg"
    image.write_bytes(image.read_bytes()[:2000])
    with pytest.raises(UserError, match=r"000001\.jpg is truncated"):
        Place(data, tmp_path).run(main, options=(*SMALL, "train_cfg.max_iters=6"))


def test_a_missing_image_is_named_before_training(place: Place, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(place.data, data)
    (data / "demo" / "VOCdevkit" / "VOC2007" / "JPEGImages" / "000002.jpg").unlink()
    with pytest.raises(UserError, match=r"000002\.jpg is listed but missing"):
        Place(data, tmp_path).run(main, options=SMALL)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("modle.backbone.depth=18", "did you mean 'model'"),
        ("model.backbone.frozen_stage=1", "ResNet has no option 'frozen_stage'"),
    ],
)
def test_a_misspelt_key_is_named(place: Place, option: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        place.run(main, options=(option,))


@pytest.mark.slow
def test_demo_data_is_made_on_demand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "SCENES", {"train": 2, "val": 0, "test": 1})
    results = Place(tmp_path / "data", tmp_path).run(main, options=SMALL)
    assert list(results.rglob("voc-seed0.json"))
