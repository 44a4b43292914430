import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from common import embedded
from common.backbones import build_backbone, feature_dim
from common.checkpoint import META_KEYS, save_checkpoint
from common.cli import UserError
from common.data import ImageFiles
from common.files import sha256_of_file
from common.records import read_records
from transfer import run
from transfer.datasets import DATASETS, Recognition, Spec, fifth


def some(images, count):
    """Return every k-th image, so that all classes stay."""
    step = len(images.paths) // count
    return ImageFiles(images.name, images.root, images.paths[::step], images.labels[::step], images.classes)


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """Return a folder with the demo's data and a ResNet-50 of random weights."""
    root = tmp_path_factory.mktemp("house")
    torch.manual_seed(0)
    network = build_backbone("resnet50")
    meta = dict.fromkeys(META_KEYS, 0) | {"arch": "resnet50", "feature_dim": feature_dim(network)}
    save_checkpoint(root / "checkpoints/demo/byol.pth", network.state_dict(), meta)
    embedded.ensure_embedded(root / "data")
    return root


@pytest.fixture
def small(monkeypatch):
    def read(data):
        both = some(embedded.digits(data, "train"), 120)
        return Recognition(both, fifth(len(both.labels)), some(embedded.digits(data, "test"), 60))

    monkeypatch.setitem(DATASETS, "digits", Spec(read, "accuracy", size=32, resize=None, profiles=("demo",)))


def command(house, results, *more):
    folders = {"data": house / "data", "checkpoints": house / "checkpoints", "runs": house / "runs", "results": results}
    return [*(text for name, path in folders.items() for text in (f"--{name}", str(path))), "--method", "byol", *more]


def test_a_run_leaves_its_record_and_is_not_repeated(house, small, tmp_path, capsys):
    run.main(command(house, tmp_path, "--dataset", "digits"))
    path = tmp_path / "demo/recognition/byol/digits-seed0.json"
    record = json.loads(path.read_text())
    assert record["metrics"]["accuracy"] > 15  # chance is 10
    protocol = record["protocol"]
    assert protocol["n_train"] + protocol["n_val"] == 131
    assert protocol["n_val"] == 26
    assert (protocol["feature_dim"], protocol["image_size"], protocol["grid"], protocol["fits"]) == (2048, 32, 45, 46)
    assert protocol["C"] == pytest.approx(1 / protocol["weight_decay"])
    assert 0 <= protocol["unconverged"] <= 46
    shown = capsys.readouterr().out
    assert shown.startswith("[transfer.run] profile=demo")
    assert str(path) in shown
    assert list((house / "runs/demo/features").glob("digits-*.npy"))
    written = path.stat().st_mtime_ns
    run.main(command(house, tmp_path, "--dataset", "digits"))
    assert "already done" in capsys.readouterr().out
    assert path.stat().st_mtime_ns == written


def test_one_failure_leaves_the_others_records(house, small, tmp_path, monkeypatch, capsys):
    def broken(data):
        raise UserError("data set folder gone is missing")

    monkeypatch.setitem(DATASETS, "scenes", Spec(broken, "mAP11", profiles=("demo",)))
    monkeypatch.setattr(DATASETS["digits"].__class__, "settings", "x")
    monkeypatch.setitem(DATASETS, "buggy", Spec(lambda data: 1 / 0, "accuracy", profiles=("demo",)))
    with pytest.raises(UserError, match=r"failed: byol on scenes, byol on buggy; the other 1 of 3"):
        run.main(command(house, tmp_path))
    assert (tmp_path / "demo/recognition/byol/digits-seed0.json").is_file()
    err = capsys.readouterr().err
    assert "error: byol on scenes: data set folder gone is missing" in err
    assert "ZeroDivisionError" in err


def test_user_errors(house, tmp_path):
    with pytest.raises(UserError, match=r"unknown DATASET 'dtdd'; known: digits, scenes, all"):
        run.main(command(house, tmp_path, "--dataset", "dtdd"))
    with pytest.raises(
        UserError, match=r"unknown DATASET 'digits'; known: aircraft, caltech101, caltech101-sst, .*, all"
    ):
        run.main(command(house, tmp_path, "--dataset", "digits", "--profile", "imagenet"))
    with pytest.raises(UserError, match=r"simsiam\.pth is missing; make it with `make pretrain"):
        run.main(command(house, tmp_path, "--dataset", "digits", "--method", "simsiam"))
    assert not list(tmp_path.rglob("*.json"))


def test_a_class_missing_from_test_is_named(house, small, tmp_path, monkeypatch):
    def read(data):
        found = Recognition(*(lambda d: (d, fifth(len(d.labels))))(embedded.digits(data, "train")), None)
        test = some(embedded.digits(data, "test"), 60)
        kept = np.flatnonzero(test.labels != 4)
        test = ImageFiles("t", test.root, [test.paths[k] for k in kept], test.labels[kept], test.classes)
        return Recognition(found.both, found.val, test)

    monkeypatch.setitem(DATASETS, "digits", Spec(read, "accuracy", size=32, resize=None, profiles=("demo",)))
    missing = sorted(embedded.CLASSES)[4]
    with pytest.raises(UserError, match=f"test set has no image of {missing}"):
        run.main(command(house, tmp_path, "--dataset", "digits"))


def test_the_command_starts_without_torch():
    code = "import sys, transfer.run; print([m for m in ('torch', 'sklearn', 'scipy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.fixture
def caltech(tiny, tmp_path, monkeypatch):
    """Let the demo know the tiny Caltech-101, in a place of its own."""
    copy = tiny("caltech101")
    monkeypatch.setitem(
        DATASETS,
        "caltech101",
        replace(DATASETS["caltech101"], size=32, resize=32, profiles=("demo",), sizes=copy.sizes),
    )
    return ["--dataset", "caltech101", "--data", str(tmp_path)]


def test_a_drawn_split_is_written_beside_the_records_and_can_be_used_again(house, caltech, tmp_path, capsys):
    results = tmp_path / "results"
    run.main(command(house, results, *caltech))
    written = results / "splits/caltech101.json"
    lists = json.loads(written.read_text())
    assert (len(lists["train"]), len(lists["test"])) == (9, 9)
    record = json.loads((results / "demo/recognition/byol/caltech101-seed0.json").read_text())
    assert record["protocol"]["split_file"] == "splits/caltech101.json"
    assert record["protocol"]["split_sha256"] == sha256_of_file(written)
    assert [r["dataset"] for r in read_records(results, "demo")] == ["caltech101"]  # the lists are no record

    lists["train"][0], lists["test"][0] = lists["test"][0], lists["train"][0]
    for number, path in enumerate((tmp_path / "a.json", tmp_path / "b.json")):
        path.write_text(json.dumps(lists, indent=number))
        run.main(command(house, results, *caltech, "--split-file", str(path)))
        assert "already done" not in capsys.readouterr().out
        run.main(command(house, results, *caltech, "--split-file", str(path)))
        assert "already done" in capsys.readouterr().out
        variant = f"split-{sha256_of_file(path)[:8]}"
        assert json.loads((results / f"splits/caltech101-{variant}.json").read_text()) == lists
        record = json.loads((results / f"demo/recognition/byol/caltech101-{variant}-seed0.json").read_text())
        assert record["protocol"]["variant"] == variant
    run.main(command(house, results, *caltech))
    assert "already done" in capsys.readouterr().out


def test_a_split_file_that_cannot_serve(house, tmp_path):
    path = tmp_path / "a.json"
    with pytest.raises(UserError, match=r"a\.json lists images of caltech101: use it with DATASET=caltech101 alone"):
        run.main(command(house, tmp_path, "--dataset", "digits", "--split-file", str(path)))
    with pytest.raises(UserError, match=r"a\.json cannot be read"):
        run.main(
            command(house, tmp_path, "--dataset", "caltech101", "--profile", "imagenet", "--split-file", str(path))
        )
