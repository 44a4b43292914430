"""Runs under a real Slurm: ranks by srun, arrays by sbatch, signals, a time limit, requeueing."""

import json
import re
import shlex
import signal
import sys
import time

import pytest

from common.backbones import build_backbone
from common.checkpoint import META_KEYS, save_checkpoint
from common.records import read_records
from tests.pretrain.tiny import ROOT, TINY, outcome, start, write_images
from tests.slurm.conftest import text
from tests.transfer import small

pytestmark = pytest.mark.slurm


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    write_images(root / "data")
    return root / "data"


def tiny(data, folder, **options):
    """Return the variables of a tiny pretraining, all of whose files lie in `folder`."""
    words = ["--runs", folder / "runs", "--checkpoints", folder / "checkpoints", "--results", folder / "results"]
    config = [*TINY, *(f"{name}={value}" for name, value in options.items())]
    return {"METHOD": "simsiam", "DATA": data, "ARGS": shlex.join(map(str, [*words, "--cfg-options", *config]))}


def logged(folder):
    path = folder / "runs/demo/pretrain/simsiam/log.jsonl"
    return path.read_text().splitlines() if path.is_file() else []


def wait_for(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.fixture(scope="module")
def limited(cluster, data, tmp_path_factory):
    """Start, before all else, a run that its time limit will interrupt, and which asked for a signal before."""
    folder = tmp_path_factory.mktemp("limited")
    options = {"train_cfg.max_epochs": 100000, "default_hooks.checkpoint.interval": 10**6}
    arguments = "--time=1 --signal=USR1@1 --comment='two words'"
    return folder, cluster.make("pretrain", SRUN_ARGS=arguments, **tiny(data, folder, **options))


@pytest.mark.usefixtures("limited")
def test_two_jobs_of_two_processes_share_a_node(cluster, data, tmp_path):
    folders = [tmp_path / name for name in "ab"]
    jobs = [cluster.make("pretrain", GPUS=2, **tiny(data, folder)) for folder in folders]
    for folder, job in zip(folders, jobs, strict=True):
        code, said, errors = job.ended()
        assert code == 0, errors
        assert "batch 4 = 2 x 1 x 2" in said
        assert said.count("[pretrain.train]") == 1
        assert [json.loads(line)["step"] for line in logged(folder)] == [1, 2, 3, 3, 4, 5, 6, 6]
        assert (folder / "checkpoints/demo/simsiam.pth").is_file()


@pytest.fixture(scope="module")
def array(cluster, tmp_path_factory):
    """Start an array of two transfer runs, which goes on beside the next test."""
    folder = tmp_path_factory.mktemp("array")
    small.write(folder / "data")
    meta = dict.fromkeys(META_KEYS, 0) | {"arch": "test_resnet"}
    save_checkpoint(folder / "tiny.pth", build_backbone("test_resnet").state_dict(), meta)
    variables = {"PROFILE": "imagenet", "CHECKPOINT": folder / "tiny.pth", "NAME": "it's", "DATA": folder / "data"}
    words = shlex.join(["--results", f"{folder}/results", "--runs", f"{folder}/50%j runs", "--workers", "0"])
    arguments = "--comment='two words'"
    return folder, cluster.make("transfer", DATASET="dtd pets", ARGS=words, SRUN_ARGS=arguments, **variables)


@pytest.mark.timeout(600)
@pytest.mark.usefixtures("array")
def test_a_job_that_a_signal_stopped_resumes_when_requeued_to_the_same_bits(cluster, data, tmp_path):
    alone, folder = tmp_path / "alone", tmp_path / "job"
    options = {"train_cfg.max_epochs": 40}
    alone.mkdir()
    undisturbed = start("--data", str(data), space=alone, options=("train_cfg.max_epochs=40",))
    words = [f"{name}={value}" for name, value in tiny(data, folder, **options).items()]
    command = ["make", "-C", ROOT, "pretrain", "LAUNCHER=slurm", "RESUME=1", f"PYTHON={sys.executable}", *words]
    output = tmp_path / "job.log"
    batch = ["sbatch", "--parsable", "--requeue", "--open-mode=append", f"--output={output}"]
    job = cluster.call(*batch, f"--wrap={shlex.join(map(str, command))}")
    wait_for(lambda: len(logged(folder)) > 5)
    cluster.call("scancel", "--signal=USR1", f"{job}.0")  # as the README says
    wait_for(lambda: cluster.state(job) == "FAILED")
    assert re.search("stopped by SIGUSR1 after step [0-9]+, which is saved; ", text(output))
    cluster.call("scontrol", "requeue", job)
    wait_for(lambda: cluster.state(job) == "PENDING")
    # Else it waits for two minutes; at once would be too early, since slurmd still refuses the job that has just ended.
    cluster.call("scontrol", "update", f"JobId={job}", "StartTime=now+5")
    wait_for(lambda: cluster.state(job) not in ("PENDING", "RUNNING", "COMPLETING"))
    assert cluster.state(job) == "COMPLETED", cluster.call("scontrol", "show", "job", job)
    undisturbed.communicate(timeout=120)
    assert undisturbed.returncode == 0
    assert outcome(folder, "simsiam") == outcome(alone, "simsiam")


def test_an_array_does_every_job_of_a_suite(array):
    folder, run = array
    code, said, errors = run.ended()
    assert code == 0, errors
    assert re.search(r"^Submitted batch job \d+$", said, re.M)
    assert [record["dataset"] for record in read_records(folder / "results", "imagenet")[0]] == ["dtd", "pets"]
    assert len(list((folder / "50%j runs/imagenet/transfer").glob("slurm-*_[01].log"))) == 2


def test_a_run_is_saved_before_its_time_limit(limited):
    folder, run = limited
    code, _, errors = run.ended()
    assert (code, f"Error {128 + signal.SIGUSR1}" in errors) == (2, True), errors  # 2 is make's
    stopped = re.search(r"stopped by SIGUSR1 after step (\d+), which is saved; ", errors)
    assert stopped, errors
    assert (folder / f"runs/demo/pretrain/simsiam/iter_{stopped[1]}.pth").is_file()
