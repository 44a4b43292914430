"""The check of a GPU: what it keeps, when it fails, and what it says where there is no GPU."""

import importlib
import json
import multiprocessing
import sys
from pathlib import Path

import pytest
import torch

from common.errors import UserError
from tools import gpu_check
from tools.gpu_check import Report, main, run_tests, summary

ABOUT = {"device": "cpu", "card": "none", "driver": None, "commit": "abc", "dirty": False, "versions": {}}
ROOM = """
from common.bench import DeviceBenchmark, Found

def fails(device):
    raise RuntimeError("out of memory")

DEVICE_BENCHMARKS = {
    "gpu_one": DeviceBenchmark("ours / theirs", 1.05, "lower", lambda device: Found(1.0, "1 / 1 ms", 12.0)),
    "gpu_bad": DeviceBenchmark("fails", 1.0, "lower", fails),
    "gpu_two": DeviceBenchmark("more", 2.0, "higher", lambda device: Found(1.5)),
}
"""
TESTS = """
import pytest

@pytest.mark.gpu
def test_right():
    assert True

@pytest.mark.gpu
def test_wrong():
    assert 1 == 2

def test_of_the_cpu():
    assert False
"""


@pytest.fixture
def room(tmp_path, monkeypatch):
    """A room of three benchmarks, the second of which fails."""
    (tmp_path / "a_room.py").write_text(ROOM)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(gpu_check, "ROOMS", ("a_room",))
    yield tmp_path / "gpu-rehearsal.json"
    sys.modules.pop("a_room", None)


def check(path, *argv) -> None:
    main(["--device", "cpu", "--reports", str(path.parent), *argv])


def test_a_benchmark_that_fails_is_named_and_the_others_are_kept(room, capfd):
    with pytest.raises(UserError, match="a test or a benchmark failed"):
        check(room, "--only", "bench")
    found = json.loads(room.read_text())
    assert list(found["bench"]) == ["gpu_one", "gpu_bad", "gpu_two"]
    assert found["bench"]["gpu_bad"] == {"error": "RuntimeError: out of memory"}
    assert (found["bench"]["gpu_one"]["value"], found["bench"]["gpu_one"]["memory_mib"]) == (1.0, 12.0)
    assert {"card", "driver", "commit", "versions"} <= found.keys()
    said = capfd.readouterr().out
    assert "gpu_bad: RuntimeError: out of memory" in said
    assert "rehearsed" in said
    assert "missed" not in said  # a rehearsal's values say nothing


def test_one_row_is_measured_again_and_the_others_stay(room):
    check(room, "--only", "gpu_two")
    check(room, "--only", "gpu_one")
    assert list(json.loads(room.read_text())["bench"]) == ["gpu_two", "gpu_one"]


def test_what_another_card_or_commit_showed_is_left_behind(tmp_path):
    path = tmp_path / "gpu.json"
    Report(path, ABOUT).add("bench", "one", {"value": 1})
    Report(path, ABOUT).add("bench", "two", {"value": 2})
    assert json.loads(path.read_text())["bench"].keys() == {"one", "two"}
    Report(path, {**ABOUT, "commit": "def"}).add("bench", "two", {"value": 3})
    assert json.loads(path.read_text())["bench"] == {"two": {"value": 3}}


def test_tests_marked_gpu_run_and_their_outcomes_are_kept(tmp_path):
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_some.py").write_text(TESTS)
    (tmp_path / "tests" / "test_other.py").write_text("import no_such_module  # pytest.mark.gpu")
    path = tmp_path / "gpu.json"
    process = multiprocessing.get_context("spawn").Process(target=run_tests, args=(path, ABOUT, tmp_path / "tests"))
    process.start()  # afresh: pytest is running in this one
    process.join()
    assert process.exitcode == 1
    found = {name.split("::")[-1]: result for name, result in json.loads(path.read_text())["tests"].items()}
    (unread,) = (result for name, result in found.items() if name.endswith("test_other.py"))
    assert "no_such_module" in unread["error"]
    assert [found[name]["outcome"] for name in ("test_right", "test_wrong")] == ["passed", "failed"]
    assert "1 == 2" in found["test_wrong"]["error"]
    assert "1 tests passed, 2 tests failed" in summary(json.loads(path.read_text()))


def test_without_a_gpu_one_line_says_how_to_rehearse(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="torch sees no CUDA device here; DEVICE=cpu"):
        main(["--reports", str(tmp_path)])
    assert not list(tmp_path.iterdir())


def test_an_unknown_part_is_named_with_the_known_ones(room):
    with pytest.raises(UserError, match="unknown part 'gpu_three'; known: all, tests, bench, gpu_one"):
        check(room, "--only", "gpu_three")


def test_every_row_stands_in_the_document_of_what_was_seen():
    seen = (Path(gpu_check.__file__).parents[1] / "docs" / "gpu.md").read_text()
    rows = [name for module in gpu_check.ROOMS for name in importlib.import_module(module).DEVICE_BENCHMARKS]
    assert len(rows) == 11
    assert [name for name in rows if f"| `{name}` |" not in seen] == []
