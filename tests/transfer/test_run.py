import json
import os
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

import transfer.suite
from common import embedded, files
from common.backbones import build_backbone, feature_dim
from common.checkpoint import META_KEYS, save_checkpoint
from common.errors import UserError
from common.files import sha256_of_file
from common.images import ImageFiles
from common.records import RecordKey, read_records
from common.run import Folders
from common.sources import SOURCES, suite
from tests.transfer import small as small_copies
from transfer import run
from transfer.datasets import load
from transfer.job import Transfer


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
    def read(data, split):
        return some(embedded.digits(data, split), {"train": 120, "test": 60}[split])

    small = replace(SOURCES["digits"], reader=read, splits={"train": 131, "test": 60})
    monkeypatch.setitem(SOURCES, "digits", small)


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
    assert (protocol["feature_dim"], protocol["image_size"], protocol["grid"]) == (2048, 32, 45)
    assert 46 <= protocol["fits"] <= 90  # the refit follows the path where the winner is weak
    assert protocol["C"] == pytest.approx(1 / protocol["weight_decay"])
    assert 0 <= protocol["unconverged"] <= protocol["fits"]
    shown = capsys.readouterr().out
    assert shown.startswith("[transfer.run] profile=demo")
    assert str(path) in shown
    assert list((house / "runs/demo/features").glob("digits-*.npy"))
    written = path.stat().st_mtime_ns
    run.main(command(house, tmp_path, "--dataset", "digits"))
    assert "already done" in capsys.readouterr().out
    assert path.stat().st_mtime_ns == written


def test_a_folder_of_the_users_is_a_data_set_under_its_name(house, tmp_path):
    for split, count in (("train", 10), ("val", 4)):
        for label, word in enumerate(("dark", "light")):
            for k in range(count):
                small_copies.picture(tmp_path / "shades" / split / word / f"{k}.png", label, k)
    run.main(command(house, tmp_path, "--data-root", str(tmp_path / "shades")))
    [record], _ = read_records(tmp_path, "demo")
    assert (record["dataset"], record["variant"]) == ("shades", None)
    wanted = {"n_train": 16, "n_val": 4, "n_test": 8, "classes": 2, "image_size": 32}
    assert record["protocol"].items() >= {**wanted, "splits": "folders train, val; val: 20 % of train"}.items()
    small_copies.picture(tmp_path / "shades/val/light/9.png", 1, 9)
    run.main(command(house, tmp_path, "--data-root", str(tmp_path / "shades")))  # not "already done"
    [record], _ = read_records(tmp_path, "demo")
    assert record["protocol"]["n_test"] == 9
    (tmp_path / "shades" / "val" / "light").rename(tmp_path / "shades" / "val" / "bright")
    with pytest.raises(UserError, match=r"the class folders of .* differ: only .*train has light"):
        run.main(command(house, tmp_path / "other", "--data-root", str(tmp_path / "shades")))
    (tmp_path / "shades").rename(tmp_path / "digits")
    with pytest.raises(UserError, match="is named like the data set digits; rename it"):
        run.main(command(house, tmp_path, "--data-root", str(tmp_path / "digits")))


def test_one_failure_leaves_the_others_records(house, small, tmp_path, monkeypatch, capsys):
    def broken(data, split):
        raise UserError("data set folder gone is missing")

    monkeypatch.setitem(SOURCES, "scenes", replace(SOURCES["scenes"], reader=broken))
    monkeypatch.setitem(SOURCES, "buggy", replace(SOURCES["digits"], reader=lambda data, split: 1 / 0))
    with pytest.raises(UserError, match=r"failed: byol on scenes, byol on buggy; the other 1 of 3"):
        run.main(command(house, tmp_path))
    assert (tmp_path / "demo/recognition/byol/digits-seed0.json").is_file()
    err = capsys.readouterr().err
    assert "error: byol on scenes: data set folder gone is missing" in err
    assert "ZeroDivisionError" in err


def test_user_errors(house, tmp_path):
    with pytest.raises(UserError, match=r"unknown DATASET 'dtdd'; known: digits, scenes, all"):
        run.main(command(house, tmp_path, "--dataset", "dtdd"))
    with pytest.raises(UserError, match=r"^DATASET Digits is not in the profile imagenet; add PROFILE=demo$"):
        run.main(command(house, tmp_path, "--dataset", "digits", "--profile", "imagenet"))
    with pytest.raises(UserError, match=r"^DATASET DTD is not in the profile demo; add PROFILE=cifar10 or imagenet$"):
        run.main(command(house, tmp_path, "--dataset", "digits dtd"))
    with pytest.raises(UserError, match=r"simsiam\.pth is missing; make it with `make pretrain"):
        run.main(command(house, tmp_path, "--dataset", "digits", "--method", "simsiam"))
    assert not list(tmp_path.rglob("*.json"))


def test_a_class_missing_from_test_is_named(house, small, tmp_path, monkeypatch):
    def read(data, split):
        images = some(embedded.digits(data, split), 60)
        kept = np.flatnonzero((images.labels != 4) | (split == "train"))
        return replace(images, paths=[images.paths[k] for k in kept], labels=images.labels[kept])

    sizes = {split: len(read(house / "data", split).labels) for split in ("train", "test")}
    monkeypatch.setitem(SOURCES, "digits", replace(SOURCES["digits"], reader=read, splits=sizes))
    missing = sorted(embedded.CLASSES)[4]
    with pytest.raises(UserError, match=f"test set has no image of {missing}"):
        run.main(command(house, tmp_path, "--dataset", "digits"))


def test_the_command_starts_without_torch():
    code = "import sys, transfer.run; print([m for m in ('torch', 'sklearn', 'scipy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.fixture
def caltech(tiny, tmp_path, monkeypatch):
    """Let the demo profile know the tiny Caltech-101, in a data root of its own."""
    tiny("caltech101")
    demo = replace(SOURCES["caltech101"], size=32, resize=32, profiles=("demo",))
    monkeypatch.setitem(SOURCES, "caltech101", demo)
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
    assert [r["dataset"] for r in read_records(results, "demo")[0]] == ["caltech101"]  # the lists are not a record

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
        assert record["variant"] == variant
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


@pytest.fixture(scope="module")
def small_house(tmp_path_factory):
    """Return a folder with small copies of the eleven data sets and a checkpoint of a tiny network."""
    root = tmp_path_factory.mktemp("small")
    small_copies.write(root / "data")
    torch.manual_seed(0)
    meta = dict.fromkeys(META_KEYS, 0) | {"arch": "test_resnet"}
    save_checkpoint(root / "tiny.pth", build_backbone("test_resnet").state_dict(), meta)
    return root


def words(house, results, *more):
    folders = {"data": house / "data", "runs": house / "runs", "results": results}
    return [
        *(text for name, path in folders.items() for text in (f"--{name}", str(path))),
        *("--checkpoint", str(house / "tiny.pth"), "--name", "tiny", "--profile", "imagenet", *more),
    ]


def test_all_eleven_data_sets_go_through_the_command(small_house, tmp_path, monkeypatch, capsys):
    for name in suite("imagenet"):
        monkeypatch.setitem(SOURCES, name, replace(SOURCES[name], size=32, resize=32))
    run.main(words(small_house, tmp_path, "--workers", "0"))
    records = {r["dataset"]: r for r in read_records(tmp_path, "imagenet")[0]}
    assert list(records) == suite("imagenet")
    for name, record in records.items():
        assert record["variant"] == "any-size"  # no table shows it as the real one
        assert list(record["metrics"]) == [SOURCES[name].metric]
        details = record["details"]
        curve = details["sweep"]
        assert curve["weight_decay"] == pytest.approx(np.logspace(-6, 5, 45))
        assert curve["C"] == pytest.approx((2 if name == "voc2007" else 1) / np.logspace(-6, 5, 45))
        assert [len(curve[key]) for key in ("val", "iterations", "converged")] == [45, 45, 45]
        assert max(curve["val"]) == record["protocol"]["validation"]
        assert curve["seconds"] > 0
        assert ("calibration" in details) == (name != "voc2007")
    assert set(records["dtd"]["details"]["calibration"]) == {"ece", "ece_scaled", "temperature"}
    assert records["caltech101"]["metrics"]["mean_per_class_accuracy"] > 60  # colours tell the classes
    shown = capsys.readouterr().out
    assert "[11/11] tiny on voc2007; " in shown
    header, row = [line.split() for line in shown.splitlines()[-2:]]
    assert header == suite("imagenet")
    assert row[0] == "tiny"
    assert [float(cell) for cell in row[1:]] == pytest.approx(
        [records[name]["metrics"][SOURCES[name].metric] for name in header], abs=0.01
    )


def test_a_copy_of_another_size_is_reported_and_the_published_one_is_not_mistaken_for_it(
    small_house, tmp_path, monkeypatch, capsys
):
    arguments = words(small_house, tmp_path, "--dataset", "dtd", "--workers", "0")
    run.main(arguments)
    said = capsys.readouterr().out
    assert "classes, not 47: it is not the published one; " in said
    assert "; until then its records are of the variant any-size\n" in said
    run.main(arguments)
    assert "already done" in capsys.readouterr().out
    images = load("dtd", small_house / "data", any_size=True)
    splits = {"train": len(images.train), "val": len(images.val), "test": len(images.test.labels)}
    restored = replace(SOURCES["dtd"], classes=len(images.both.classes), splits=splits)
    monkeypatch.setitem(SOURCES, "dtd", restored)
    run.main(arguments)
    said = capsys.readouterr().out
    assert "already done" not in said
    assert "warning: data set" not in said
    assert {r["variant"] for r in read_records(tmp_path, "imagenet")[0]} == {"any-size", None}


def test_what_is_missing_is_told_from_what_failed(small_house, tmp_path, capsys):
    data = tmp_path / "data"
    data.mkdir()
    (data / "dtd").symlink_to(small_house / "data" / "dtd")
    (data / "oxford-iiit-pet").mkdir()
    arguments = words(small_house, tmp_path / "results", "--dataset", "dtd pets cars", "--workers", "0")
    with pytest.raises(
        UserError, match=r"^missing: tiny on cars; failed: tiny on pets; the other 1 of 3 are recorded$"
    ):
        run.main([*arguments, "--data", str(data)])
    header, row = [line.split() for line in capsys.readouterr().out.splitlines()[-2:]]
    assert header == ["dtd", "pets", "cars"]
    assert row[2:] == ["failed", "missing"]


def other_process(house, results, name):
    """Claim a job as another process of the suite does, and hold it."""
    key = RecordKey("imagenet", "recognition", "tiny", name, 0, transfer.suite.ANY_SIZE)
    path = transfer.suite._claim(Transfer(key=key, subject=None, settings="", folders=Folders(results=results)))
    path.parent.mkdir(parents=True)
    code = (
        "import sys, time, filelock\n"
        f"lease = filelock.SoftFileLease(sys.argv[1], lease_duration={files.LEASE})\n"
        "lease.acquire()\nprint('held', flush=True)\n"
        "time.sleep(float(sys.argv[2]))"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(path), "60"], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def test_a_job_of_another_process_is_left_to_it_and_done_when_that_dies(small_house, tmp_path, monkeypatch, capsys):
    process = other_process(small_house, tmp_path, "dtd")
    naps = []

    def sleep(seconds):
        naps.append([record["dataset"] for record in read_records(tmp_path, "imagenet")[0]])
        process.kill()
        process.wait()

    monkeypatch.setattr(transfer.suite.time, "sleep", sleep)
    run.main(words(small_house, tmp_path, "--dataset", "dtd pets", "--workers", "0"))
    assert naps == [["pets"]]  # it did not wait
    assert "waiting for other processes, which are at: tiny on dtd\n" in capsys.readouterr().out
    assert [record["dataset"] for record in read_records(tmp_path, "imagenet")[0]] == ["dtd", "pets"]
    assert not list(tmp_path.rglob("*.claim"))


def test_an_empty_claim_as_a_crashed_machine_leaves_it_is_named_and_its_job_done(
    small_house, tmp_path, monkeypatch, capsys
):
    key = RecordKey("imagenet", "recognition", "tiny", "dtd", 0, transfer.suite.ANY_SIZE)
    claim = transfer.suite._claim(Transfer(key=key, subject=None, settings="", folders=Folders(results=tmp_path)))
    claim.parent.mkdir(parents=True)
    claim.touch()
    monkeypatch.setattr(files, "LEASE", 1.0)
    monkeypatch.setattr(transfer.suite, "POLL", 0.3)
    run.main(words(small_house, tmp_path, "--dataset", "dtd pets", "--workers", "0"))
    said = capsys.readouterr().out.splitlines()
    assert f"{claim} is empty, as a crash of its machine leaves it, and is removed" in said
    assert [record["dataset"] for record in read_records(tmp_path, "imagenet")[0]] == ["dtd", "pets"]
    assert not list(tmp_path.rglob("*.claim"))


def test_two_processes_share_a_suite_and_repeat_nothing(small_house, tmp_path):
    command = [sys.executable, "-m", "transfer.run", *words(small_house, tmp_path, "--workers", "0")]
    command += ["--dataset", "dtd pets food aircraft"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    for name in ("dtd", "pets", "food", "aircraft"):
        assert sum(f"tiny on {name}: " in text for text in said) == 1
    assert said[0].splitlines()[-2:] == said[1].splitlines()[-2:]  # both end with the whole table


SBATCH = """#!{python}
import os, subprocess, sys
options = dict(word.split("=", 1) for word in sys.argv[1:] if "=" in word)
first, last = options["--array"].split("-")
open("{seen}", "w").write("\\n".join(sys.argv[1:]))
for task in range(int(first), int(last) + 1):
    subprocess.run(options["--wrap"], shell=True, env=os.environ | {{"SLURM_ARRAY_TASK_ID": str(task)}})
"""


def test_slurm_gets_an_array_of_all_jobs(small_house, tmp_path, monkeypatch, capsys):
    fake, seen = tmp_path / "bin" / "sbatch", tmp_path / "seen"
    fake.parent.mkdir()
    fake.write_text(SBATCH.format(python=sys.executable, seen=seen))
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    (tmp_path / "data").mkdir()
    for folder in ("dtd", "stanford_cars"):
        (tmp_path / "data" / folder).symlink_to(small_house / "data" / folder)
    arguments = words(small_house, tmp_path / "results", "--workers", "0", "--dataset", "dtd cars pets")
    arguments += ["--data", str(tmp_path / "data")]
    with pytest.raises(UserError, match=r"^missing: tiny on pets; the other 2 of 3 are recorded"):
        run.main([*arguments, "--launcher", "slurm", "--sbatch-args=--gres=gpu:1 --comment='a b'"])
    given = seen.read_text().splitlines()
    assert {"--wait", "--array=0-2", "--gres=gpu:1", "--comment=a b"} <= set(given)
    assert "--launcher" not in given[-1]
    assert [record["dataset"] for record in read_records(tmp_path / "results", "imagenet")[0]] == ["cars", "dtd"]
    fake.unlink()
    monkeypatch.setenv("PATH", str(fake.parent))
    with pytest.raises(UserError, match="needs sbatch, which is not on PATH"):
        run.main([*arguments, "--launcher", "slurm"])


def test_ctrl_c_on_an_array_names_the_job_and_how_to_cancel_it(small_house, tmp_path):
    fake = tmp_path / "bin" / "sbatch"
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\necho Submitted batch job 4711\nexec sleep 60\n")
    fake.chmod(0o755)
    command = [sys.executable, "-m", "transfer.run", *words(small_house, tmp_path, "--dataset", "dtd")]
    process = subprocess.Popen(
        [*command, "--launcher", "slurm"],
        env=os.environ | {"PATH": f"{fake.parent}:{os.environ['PATH']}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while process.stdout.readline() != "Submitted batch job 4711\n":
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors.split("\n")[-4:] == [
        "array job 4711 goes on; `scancel 4711` cancels it",
        "",
        "interrupted; the same command continues",
        "",
    ]


def test_options_of_sbatch_with_an_open_quote_are_refused(small_house, tmp_path):
    arguments = words(small_house, tmp_path, "--dataset", "dtd", "--launcher", "slurm", "--sbatch-args=--comment='a")
    with pytest.raises(UserError, match=r"^--sbatch-args --comment='a \(SRUN_ARGS\): No closing quotation$"):
        run.main(arguments)


@pytest.mark.slow
def test_make_transfer_all_on_small_copies(small_house, tmp_path):
    command = ["make", "--no-print-directory", "transfer-all", "PROFILE=imagenet", f"PYTHON={sys.executable}"]
    command += [f"DATA={small_house / 'data'}", f"CHECKPOINT={small_house / 'tiny.pth'}", "NAME=tiny"]
    command += [f"ARGS=--results {tmp_path} --runs {small_house / 'runs'}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(read_records(tmp_path, "imagenet")[0]) == 11
