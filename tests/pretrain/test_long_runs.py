"""What long runs hold: memory, open files, logs."""

import os
import re
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from tests.pretrain.tiny import ROOT, TINY, log, run_train


def held(process: int) -> tuple[int, int]:
    """Return a process's resident memory in KiB and how many files it has open."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]), len(list(Path(f"/proc/{process}/fd").iterdir()))


def last_step(space: Path) -> int:
    """Return the last step that the run has logged."""
    there = (space / "runs/demo/pretrain/simsiam/log.jsonl").is_file()
    return max((line["step"] for line in log(space)), default=0) if there else 0


GROWTH = 64 * 1024  # KiB, which is 36 a step: less than the images and features of a batch
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
A_LINE = 300  # bytes in log.jsonl, of a step or an epoch; TensorBoard's events take about as many


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_memory_and_open_files_are_flat_over_2000_steps_and_logs_are_bounded(space):
    steps, early, late = 2100, 200, 2000
    options = (
        f"train_cfg.max_epochs={steps // 6}",
        "train_dataloader.batch_size=2",
        "default_hooks.progress.interval=10",
        "default_hooks.checkpoint.interval=50",
    )
    command = [sys.executable, "-m", "pretrain.train", "--method", "simsiam", "--cfg-options", *TINY, *options]
    with open(space / "said", "w") as said:  # more than a pipe holds
        process = subprocess.Popen(command, cwd=space, env=ENVIRONMENT, stdout=said, stderr=said)
    seen = {}
    for wanted in (early, late):
        while last_step(space) < wanted:
            assert process.poll() is None, (space / "said").read_text()
            time.sleep(0.1)
        seen[wanted] = held(process.pid)
    assert process.wait(200) == 0, (space / "said").read_text()
    (memory, files), (memory_later, files_later) = seen.values()
    assert memory_later - memory < GROWTH, seen
    assert abs(files_later - files) <= 2, seen  # a checkpoint that is being written
    lines = steps // 10 + steps // 6
    run = space / "runs/demo/pretrain/simsiam"
    assert (run / "log.jsonl").stat().st_size < A_LINE * lines
    assert sum(f.stat().st_size for f in run.rglob("events.out*")) < 2 * A_LINE * lines
    assert sum(f.stat().st_size for f in run.rglob("*.log")) < 2**16
    assert len(list(run.glob("iter_*.pth"))) == 2


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_memory_and_open_files_are_flat_over_50_evaluations(space):
    run_train(options=("train_cfg.max_epochs=1",))
    script = """
    import os
    import shutil
    import torch
    from pretrain import knn
    from tests.pretrain.test_long_runs import held
    torch.set_num_threads(1)
    for number in range(50):
        options = ["--data-root", "data", "--cfg-options", "evaluation.k=3"]
        knn.main(["--checkpoint", "checkpoints/demo/simsiam.pth", "--name", f"run{number}", *options])
        shutil.rmtree("runs/demo/features")  # else all but the first would only read them
        if number in (9, 49):
            print("held", *held(os.getpid()))
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, cwd=space, env=ENVIRONMENT, capture_output=True, text=True, check=True)
    (memory, files), (memory_later, files_later) = (
        map(int, line.split()[1:]) for line in done.stdout.splitlines() if line.startswith("held")
    )
    assert memory_later - memory < GROWTH
    assert files_later == files
