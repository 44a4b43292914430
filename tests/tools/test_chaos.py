"""The harness of faults: a short run of it, and what it takes for a loss."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tools import chaos

ROOT = Path(chaos.__file__).parents[1]


def test_a_dozen_faults_lose_nothing(tmp_path):
    command = [sys.executable, "-m", "tools.chaos", "--seed", "4", "--faults", "12", "--work", str(tmp_path)]
    done = subprocess.run([*command, "--stages", "pretrain", "knn"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "12 faults, seed 4, 0 lost" in done.stdout
    results = chaos.read_results(tmp_path / "seed4" / "results.jsonl")
    assert sorted(results) == list(range(12))
    assert {result["stage"] for result in results.values()} == {"pretrain", "knn"}
    assert list((tmp_path / "seed4" / "losses").iterdir()) == []


def test_the_full_plan_gives_every_stage_every_fault_and_is_the_seed_s():
    faults = chaos.plan(0, 224, chaos.STAGES)
    met = Counter((fault.stage.name, fault.kind) for fault in faults)
    assert set(met) == {(stage.name, kind) for stage in chaos.STAGES for kind in chaos.FAULTS}
    assert faults == chaos.plan(0, 224, chaos.STAGES)
    assert faults != chaos.plan(1, 224, chaos.STAGES)


# A stage writes ten parts, and their sum at the end. What it must not do is put in by each test.
STAGE = """
import json, os, sys
from pathlib import Path

def main():
    parts = Path("results/parts")
    parts.mkdir(parents=True, exist_ok=True)
    for number in range(10):
        {write}
    total = sum(int(file.read_text()) for file in parts.iterdir())
    Path("results/total.txt").write_text(str(total))

{run}
"""
WHOLE = """
        part = Path(f"results/.{number}.part")
        part.write_text("1".ljust(3_000_000) if number == 9 else "1")
        os.replace(part, parts / str(number))
"""
NO_TRACEBACK = """
try:
    main()
except OSError as error:
    sys.exit(f"error: {error}")
"""
SOUND = (WHOLE, NO_TRACEBACK)


def lost(folder, monkeypatch, kind, write, run, share=0.5) -> list[str]:
    """Return what a stage of this code loses by a fault."""
    (folder / "staged.py").write_text(STAGE.format(write=write.strip(), run=run))
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(chaos, "LIMIT", 5.0)
    stage = chaos.Stage("stage", "staged", ())
    (folder / "before" / "stage" / "results").mkdir(parents=True)

    def work(number):
        disk = chaos.Disk(folder / "disk")
        disk.start(folder / "before" / "stage")
        ended = chaos.Running(stage, disk, folder / "log").end()
        assert ended.code == 0, ended.said
        wanted = chaos.Undisturbed(chaos.products(disk.root), [], ended.operations, ended.seconds)
        fault = chaos.Fault(0, stage, kind, kind != "twice", share, "0")
        found = chaos.run_fault(fault, disk, folder, wanted, folder / "logs")
        (folder / "found.json").write_text(json.dumps(found))

    chaos.in_processes(1, work)
    return json.loads((folder / "found.json").read_text())[1]


@pytest.mark.parametrize("kind", ["kill", "term", "full", "unreadable"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_sound_stage_loses_nothing(tmp_path, monkeypatch, kind, share):
    assert lost(tmp_path, monkeypatch, kind, *SOUND, share=share) == []


def test_a_stage_that_goes_on_otherwise_is_found(tmp_path, monkeypatch):
    write = "parts.joinpath(str(number)).exists() or parts.joinpath(str(number)).write_text(str(len(started)))"
    run = f"started = [*Path('results').rglob('*')]\n{NO_TRACEBACK}"
    said = lost(tmp_path, monkeypatch, "kill", write, run, share=0.2)
    assert "results/total.txt differs" in said


def test_a_traceback_is_a_loss(tmp_path, monkeypatch):
    assert "ends in a traceback" in lost(tmp_path, monkeypatch, "full", WHOLE, "main()")


def test_an_error_that_nobody_is_told_is_a_loss(tmp_path, monkeypatch):
    silent = "try:\n    main()\nexcept OSError:\n    sys.exit(1)"
    (said,) = lost(tmp_path, monkeypatch, "full", WHOLE, silent)
    assert said.startswith("ends with 1, and no error's line")


def test_a_stage_that_hangs_is_a_loss(tmp_path, monkeypatch):
    waits = "import time, signal\nsignal.signal(signal.SIGTERM, lambda *_: time.sleep(60))\nmain()"
    assert "hangs for more than 5 s" in lost(tmp_path, monkeypatch, "term", WHOLE, waits)


def test_a_file_that_is_left_over_is_a_loss(tmp_path, monkeypatch):
    write = 'Path(f"results/{os.getpid()}.tmp").touch(); parts.joinpath(str(number)).write_text("1")'
    run = f'{NO_TRACEBACK}\nPath(f"results/{{os.getpid()}}.tmp").unlink()'
    (said,) = lost(tmp_path, monkeypatch, "kill", write, run)
    assert said.endswith(".tmp is left over")
