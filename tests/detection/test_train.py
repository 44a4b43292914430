import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from common import embedded
from common.engine import runner as engine
from common.errors import UserError
from common.records import read_record
from detection import predictions
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
    assert "tiny: batch 2, learning rate 0.01 = 0.02 x 2 / 4, 2 iterations as asked for" in shown.out
    classes = record["details"]["AP_per_class"]
    assert "three" in classes
    assert all(0 <= ap <= 100 for ap in classes.values())
    work_dir = place.root / "runs" / "demo" / f"detection-{dataset}" / "tiny-seed0"
    saved = json.loads((work_dir / "predictions.json").read_text())
    assert [Path(one["path"]).is_absolute() for one in saved["images"]] == [False] * 4
    assert all((place.data / one["path"]).is_file() and one["truth"] for one in saved["images"])
    assert list(work_dir.rglob("events.out.tfevents*"))
    assert (work_dir / "config.py").read_text().count("RPNHead") == 1
    weights = torch.load(work_dir / "final.pth", weights_only=True)
    assert weights["meta"]["dataset_meta"]["classes"][0] == "zero"
    assert "backbone.layer4.2.conv3.weight" in weights["state_dict"]
    place.run(main, f"--dataset={dataset}", *_same(place), arch=None, options=SMALL)
    assert "already done" in capsys.readouterr().out
    (work_dir / "final.pth").unlink()
    place.run(main, f"--dataset={dataset}", *_same(place), arch=None, options=SMALL)
    assert (work_dir / "final.pth").is_file()


def _same(place: Place) -> tuple[str, str]:
    return f"--checkpoint={place.root / 'checkpoints' / 'resnet50.pth'}", "--name=tiny"


# The paper's settings on small copies of the data sets, with images small enough for a CPU


def paper_options(dataset: str, iterations: int = 20, workers: int = 2) -> tuple[str, ...]:
    """What makes the paper's config fit a CPU: small images, the smallest of which is the shorter side's range."""
    places = ["datasets.0.", "datasets.1."] if dataset == "voc" else [""]
    return (
        f"train_cfg.max_iters={iterations}",
        *(f"train_dataloader.dataset.{place}pipeline.2.scales=[(96,48),(96,64)]" for place in places),
        "test_dataloader.dataset.pipeline.1.scale=(96,64)",
        *(f"{split}_dataloader.num_workers={workers}" for split in ("train", "test")),
        "default_hooks.progress.interval=1",
    )


# Narrow heads, few proposals and RoIs: what costs most on a CPU.
NARROW = (
    *("model.neck.out_channels=32", "model.rpn_head.in_channels=32", "model.rpn_head.feat_channels=32"),
    *("model.roi_head.bbox_roi_extractor.out_channels=32", "model.roi_head.bbox_head.in_channels=32"),
    "model.roi_head.bbox_head.fc_out_channels=64",
    "model.train_cfg.rpn_proposal.max_per_img=40",
    "model.train_cfg.rpn_proposal.nms_pre=40",
    "model.train_cfg.rcnn.sampler.num=16",
    "model.test_cfg.rpn.max_per_img=40",
    "model.test_cfg.rpn.nms_pre=40",
)


@pytest.fixture
def paper(official: Path) -> Place:
    return Place(official, official.parent)


@pytest.mark.slow
@pytest.mark.parametrize("dataset", ["voc", "coco"])
def test_a_dry_run_of_the_papers_settings_with_resnet50(paper: Place, dataset: str) -> None:
    options = (*paper_options(dataset), "train_dataloader.batch_size=2")  # COCO's 16 would take minutes
    results = paper.run(main, "--profile=imagenet", f"--dataset={dataset}", arch="resnet50", options=options)
    record = read_record(results / "imagenet" / "detection" / "tiny" / f"{dataset}-seed0.json")
    wanted = {"iterations": 20, "batch": 2, "lr": 0.0025, "backbone_depth": 50, "frozen_stages": -1}
    assert record["protocol"].items() >= wanted.items()
    assert set(record["metrics"]) == {"AP", "AP50", "AP75"}
    work_dir = paper.root / "runs" / "imagenet" / f"detection-{dataset}" / "tiny-seed0"
    lines = [json.loads(line) for line in (work_dir / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 21))
    assert all(line["loss"] < 100 for line in lines)


def test_cocos_batch_of_16_in_parts_on_one_process(paper: Place, capsys: pytest.CaptureFixture) -> None:
    options = (*paper_options("coco", iterations=1, workers=0), *NARROW)
    arguments = ("--profile=imagenet", "--dataset=coco", "--accumulate=8")
    results = paper.run(main, *arguments, options=options)
    protocol = read_record(results / "imagenet" / "detection" / "tiny" / "coco-seed0.json")["protocol"]
    assert protocol.items() >= {"iterations": 1, "batch": 16, "lr": 0.02, "n_train": 6}.items()
    assert "tiny: batch 16 = 1 x 8 x 2, learning rate 0.02 = 0.02 x 16 / 16, 1 iterations" in capsys.readouterr().out


def of_run(place: Place) -> tuple[dict, list, dict, dict]:
    """What a run of the paper's VOC settings leaves: weights, log but for the speeds, metrics and details."""
    work_dir = place.root / "runs" / "imagenet" / "detection-voc" / "tiny-seed0"
    weights = torch.load(work_dir / "final.pth", weights_only=True)["state_dict"]
    lines = [json.loads(line) for line in (work_dir / "log.jsonl").read_text().splitlines()]
    [path] = (place.root / "results").rglob("voc-seed0.json")
    record = read_record(path)
    for line in lines:
        del line["images_per_s"], line["seconds"]
    return weights, lines, record["metrics"], record["details"]


@pytest.fixture
def one_thread():
    """Sums depend on how many threads share them: the process that is killed has one, and so have the others."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_a_run_killed_at_any_moment_resumes_to_the_same_bits(paper: Place, tmp_path: Path) -> None:
    """SIGKILL, with two workers, random flips and sizes, batches by shape, and random samples of anchors and RoIs."""
    options = (*paper_options("voc", iterations=5), "default_hooks.checkpoint.interval=2", *NARROW)
    checkpoint = paper.checkpoint("resnet18")
    arguments = ("--profile=imagenet", f"--checkpoint={checkpoint}", "--name=tiny")
    paper.run(main, *arguments, arch=None, options=options)
    killed = Place(paper.data, tmp_path / "killed")
    argv = [f"--{kind}={killed.root / kind}" for kind in ("checkpoints", "results", "runs")]
    command = [sys.executable, "-m", "detection.train", *argv, f"--data={paper.data}", *arguments]
    process = subprocess.Popen(
        [*command, "--cfg-options", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    log = killed.root / "runs" / "imagenet" / "detection-voc" / "tiny-seed0" / "log.jsonl"
    while not (log.is_file() and len(log.read_text().splitlines()) >= 3):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    process.kill()
    process.communicate()
    assert not list(killed.root.glob("results/**/*.json"))
    killed.run(main, *arguments, "--resume", arch=None, options=options)
    whole, resumed = of_run(paper), of_run(killed)
    assert whole[0].keys() == resumed[0].keys()
    assert [name for name, value in whole[0].items() if not torch.equal(value, resumed[0][name])] == []
    assert whole[1:] == resumed[1:]


# A CPU without bfloat16 in hardware takes 20 seconds.
@pytest.mark.parametrize("dtype", [pytest.param("bf16", marks=pytest.mark.slow), "fp16"])
def test_mixed_precision_trains_and_is_recorded(place: Place, dtype: str) -> None:
    results = place.run(main, "--amp", dtype, options=SMALL)
    protocol = read_record(results / "demo" / "detection" / "tiny" / "voc-seed0.json")["protocol"]
    assert protocol["precision"] == {"bf16": "bfloat16", "fp16": "float16"}[dtype]
    weights = torch.load(place.root / "runs/demo/detection-voc/tiny-seed0/final.pth", weights_only=True)["state_dict"]
    assert {value.dtype for value in weights.values() if value.is_floating_point()} == {torch.float32}


@pytest.mark.slow
def test_two_processes_share_a_batch_and_leave_one_record(paper: Place) -> None:
    checkpoint = paper.checkpoint("resnet18")
    argv = [f"--{kind}={paper.root / kind}" for kind in ("checkpoints", "results", "runs")]
    argv += [f"--data={paper.data}", f"--checkpoint={checkpoint}", "--name=tiny", "--profile=imagenet"]
    launch = [sys.executable, "-m", "tools.launch", "--standalone", "--nproc_per_node", "2", "-m", "detection.train"]
    done = subprocess.run(
        [*launch, "--launcher", "pytorch", *argv, "--cfg-options", *paper_options("voc", iterations=3), *NARROW],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert "tiny: batch 2 = 2 x 1 x 1, learning rate 0.0025" in done.stdout
    assert done.stdout.count("[detection.train]") == 1
    record = read_record(paper.root / "results/imagenet/detection/tiny/voc-seed0.json")
    assert record["protocol"].items() >= {"batch": 2, "iterations": 3, "n_test": 3}.items()


@pytest.mark.slow
def test_the_final_weights_serve_mmdets_own_interface(place: Place) -> None:
    from mmdet.apis import inference_detector, init_detector

    place.run(main, options=SMALL)
    work_dir = place.root / "runs/demo/detection-voc/tiny-seed0"
    model = init_detector(str(work_dir / "config.py"), str(work_dir / "final.pth"), device="cpu")
    assert model.dataset_meta["classes"][:2] == ["zero", "one"]
    saved = json.loads((work_dir / "predictions.json").read_text())
    found = inference_detector(model, str(place.data / saved["images"][0]["path"])).pred_instances
    kept = found[found.scores >= saved["score"]]
    assert len(kept) == len(saved["images"][0]["detections"])


def files_of(place: Place) -> dict[Path, bytes]:
    return {p: p.read_bytes() for part in ("results", "runs") for p in (place.root / part).rglob("*") if p.is_file()}


def test_a_dry_run_of_other_settings_does_not_touch_a_finished_run(place: Place) -> None:
    subject = (f"--checkpoint={place.checkpoint('resnet18')}", "--name=tiny")
    results = place.run(main, *subject, arch=None, options=SMALL)
    before = files_of(place)
    dry = (*SMALL, "train_cfg.max_iters=1")
    with pytest.raises(UserError, match=r"voc-seed0\.json is the record of .* other settings; add OVERWRITE=1"):
        place.run(main, *subject, arch=None, options=dry)
    record = results / "demo/detection/tiny/voc-seed0.json"
    record.unlink()
    with pytest.raises(UserError, match=r"detection-voc/tiny-seed0 holds a finished run of other settings"):
        place.run(main, *subject, arch=None, options=dry)
    assert files_of(place) == {path: content for path, content in before.items() if path != record}
    record.write_bytes(before[record])
    place.run(main, *subject, "--overwrite", arch=None, options=dry)
    assert read_record(record)["protocol"]["iterations"] == 1
    assert record.with_name("voc-seed0.json.replaced-1").read_bytes() == before[record]


def no_training(self) -> None:
    raise AssertionError("it trains")


def test_what_a_finished_run_has_lost_is_made_again_without_training(place: Place, monkeypatch) -> None:
    subject = (f"--checkpoint={place.checkpoint('resnet18')}", "--name=tiny", "--resume")
    options = (*SMALL, "default_hooks.progress.interval=1")
    results = place.run(main, *subject, arch=None, options=options)
    monkeypatch.setattr(engine.Runner, "train", no_training)
    save, tested = predictions.save, []
    monkeypatch.setattr(
        predictions, "save", lambda runner, data: (tested.append(runner.model.state_dict()), save(runner, data))
    )
    path = results / "demo/detection/tiny/voc-seed0.json"
    work_dir = place.root / "runs/demo/detection-voc/tiny-seed0"
    kept = {work_dir / name for name in ("final.pth", "iter_2.pth", "log.jsonl", "run.json")}
    kept = {file: file.read_bytes() for file in kept}
    record, drawn = read_record(path), (work_dir / "predictions.json").read_text()
    path.unlink()
    (work_dir / "predictions.json").unlink()
    place.run(main, *subject, arch=None, options=options)
    weights = torch.load(work_dir / "final.pth", weights_only=True)["state_dict"]
    assert all(torch.equal(value, tested[0][key]) for key, value in weights.items())
    for part in ("metrics", "details", "protocol"):
        assert read_record(path)[part] == record[part]
    assert (work_dir / "predictions.json").read_text() == drawn
    path.unlink()
    (work_dir / "run.json").unlink()
    place.run(main, *subject, "--test-only", arch=None, options=options)
    assert read_record(path)["metrics"] == record["metrics"]
    assert {file: file.read_bytes() for file in kept} == kept


def test_other_settings_of_the_test_are_tested_without_training(place: Place, monkeypatch) -> None:
    subject = (f"--checkpoint={place.checkpoint('resnet18')}", "--name=tiny")
    with pytest.raises(UserError, match=r"no .*tiny-seed0/final\.pth of these settings to test; leave --test-only out"):
        place.run(main, *subject, "--test-only", arch=None, options=SMALL)
    results = place.run(main, *subject, arch=None, options=SMALL)
    monkeypatch.setattr(engine.Runner, "train", no_training)
    path = results / "demo/detection/tiny/voc-seed0.json"
    first = path.read_bytes()
    options = (*SMALL, "test_dataloader.dataset.pipeline.1.scale=(96,96)")
    place.run(main, *subject, "--overwrite", arch=None, options=options)
    assert path.with_name("voc-seed0.json.replaced-1").read_bytes() == first
    assert path.read_bytes() != first
    place.run(main, *subject, "--test-only", arch=None, options=options)
    path.unlink()
    with pytest.raises(UserError, match=r"no .*final\.pth of these settings to test"):
        place.run(main, *subject, "--test-only", arch=None, options=(*options, "train_cfg.max_iters=1"))


def test_a_data_set_outside_data_and_a_record_before_the_extras(place: Place, tmp_path: Path, monkeypatch) -> None:
    root = tmp_path / "elsewhere" / "VOCdevkit"
    shutil.copytree(place.data / "demo" / "VOCdevkit", root)
    options = (*SMALL, *(f"{split}_dataloader.dataset.data_root={root}" for split in ("train", "test")))
    subject = (f"--checkpoint={place.checkpoint('resnet18')}", "--name=tiny")
    with monkeypatch.context() as patch:
        patch.setattr(predictions, "save", lambda runner, data: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            place.run(main, *subject, arch=None, options=options)
    assert read_record(tmp_path / "results/demo/detection/tiny/voc-seed0.json")
    monkeypatch.setattr(engine.Runner, "train", no_training)
    place.run(main, *subject, arch=None, options=options)
    saved = json.loads((tmp_path / "runs/demo/detection-voc/tiny-seed0/predictions.json").read_text())
    assert [Path(one["path"]).parent for one in saved["images"]] == [root / "VOC2007" / "JPEGImages"] * 4


def test_final_weights_that_are_damaged_are_made_again_from_the_last_step(place: Place) -> None:
    subject = (f"--checkpoint={place.checkpoint('resnet18')}", "--name=tiny")
    options = (*SMALL, "default_hooks.progress.interval=1")
    results = place.run(main, *subject, arch=None, options=options)
    path, record = place.root / "runs/demo/detection-voc/tiny-seed0/final.pth", results.rglob("voc-seed0.json")
    next(record).unlink()
    whole, log = torch.load(path, weights_only=True)["state_dict"], path.with_name("log.jsonl").read_text()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    place.run(main, *subject, arch=None, options=options)
    again = torch.load(path, weights_only=True)["state_dict"]
    assert all(torch.equal(value, again[key]) for key, value in whole.items())
    assert path.with_name("log.jsonl").read_text() == log


@pytest.mark.parametrize(
    ("name", "damage", "says"),
    [
        ("Annotations/000003.xml", lambda content: content.replace(b"<xmax>", b"<xmax>9", 1),
         r"000003\.xml: box .* lies outside its image of 160 x 160 pixels"),
        ("JPEGImages/000001.jpg", lambda content: content[:2000], r"000001\.jpg is truncated"),
        ("JPEGImages/000002.jpg", None, r"000002\.jpg is listed but missing"),
    ],
)  # fmt: skip
def test_images_and_annotations_are_checked_before_training(broken: Place, name: str, damage, says: str) -> None:
    path = broken.data / "demo" / "VOCdevkit" / "VOC2007" / name
    path.unlink() if damage is None else path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=says):
        broken.run(main, options=SMALL)
    assert not (broken.root / "runs" / "demo").exists()


@pytest.mark.slow
def test_frozen_is_a_variant_of_its_own(place: Place) -> None:
    results = place.run(main, "--frozen", options=SMALL)
    record = read_record(results / "demo" / "detection" / "tiny" / "voc-frozen-seed0.json")
    assert record["protocol"]["frozen_stages"] == 3
    assert record["variant"] == "frozen"


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


@pytest.mark.slow
def test_demo_data_is_made_on_demand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "SCENES", {"train": 2, "val": 0, "test": 1})
    results = Place(tmp_path / "data", tmp_path).run(main, options=SMALL)
    assert list(results.rglob("voc-seed0.json"))
