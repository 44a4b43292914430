"""The performance table: targets, both directions, and a run of several rooms."""

import json

import pytest

from common import bench
from common.bench import Benchmark, DeviceBenchmark, Entry, Found, Skipped, met, run_room, table
from common.errors import UserError


def entry(value, target=1.05, better="lower", name="a_ratio") -> Entry:
    return Entry(id=name, what="ours / theirs", value=value, target=target, better=better, command="python -m x")


@pytest.mark.parametrize(
    ("value", "better", "expected"),
    [(1.05, "lower", True), (1.06, "lower", False), (1.05, "higher", True), (1.04, "higher", False)],
)
def test_a_target_is_met_in_its_direction(value, better, expected):
    assert met(entry(value, better=better)) == expected


def test_the_table_shows_value_target_verdict_and_command():
    lines = table([entry(1.0), entry(1.2), entry(2.0, 1.5, "higher")]).splitlines()
    assert [line.split()[:4] for line in lines[1:]] == [
        ["1.000", "<=", "1.05", "met"],
        ["1.200", "<=", "1.05", "MISSED"],
        ["2.000", ">=", "1.5", "met"],
    ]
    assert all(line.endswith("python -m x") for line in lines[1:])


def test_a_room_measures_what_is_asked_for_and_says_what_cannot_be(tmp_path, capsys):
    def skip():
        raise Skipped("there is no such thing here")

    benchmarks = {
        "a": Benchmark("plain", 1.0, "lower", lambda: 0.5),
        "b": Benchmark("with words", 2.0, "higher", lambda: (3.0, "6 / 2 ms")),
        "c": Benchmark("none", 1.0, "lower", skip),
    }
    run_room("room.bench", "d", benchmarks, ["--json", str(tmp_path / "all.json")])
    assert json.loads((tmp_path / "all.json").read_text()) == [
        dict(id="a", what="plain", value=0.5, target=1.0, better="lower", command="python -m room.bench --only a"),
        dict(
            id="b",
            what="with words; 6 / 2 ms",
            value=3.0,
            target=2.0,
            better="higher",
            command="python -m room.bench --only b",
        ),
    ]
    assert "skipped c: there is no such thing here" in capsys.readouterr().out
    run_room("room.bench", "d", benchmarks, ["--only", "b"])
    assert "measuring a" not in capsys.readouterr().out
    with pytest.raises(UserError, match="unknown benchmark 'z'; known: a, b, c"):
        run_room("room.bench", "d", benchmarks, ["--only", "z"])


def test_rows_of_a_device_replace_those_of_the_cpu_where_there_is_a_gpu(tmp_path, capsys, monkeypatch):
    benchmarks = {"a": Benchmark("plain", 1.0, "lower", lambda: 0.5)}
    device = {"gpu_a": DeviceBenchmark("on it", 1.0, "lower", lambda name: Found(0.25, name, 3.0))}

    def measured(*argv) -> list[dict]:
        run_room("room.bench", "d", benchmarks, ["--json", str(tmp_path / "x.json"), *argv], device)
        return json.loads((tmp_path / "x.json").read_text())

    monkeypatch.setattr(bench, "pick_bench_device", lambda: None)
    assert [e["id"] for e in measured()] == ["a"]
    (rehearsed,) = measured("--device", "cpu")
    assert (rehearsed["what"], rehearsed["memory_mib"], rehearsed["rehearsal"]) == ("on it; cpu", 3.0, True)
    assert "rehearsed" in capsys.readouterr().out
    with pytest.raises(UserError, match="gpu_a is measured on a GPU, and there is none; add --device cpu"):
        measured("--only", "gpu_a")
    monkeypatch.setattr(bench, "pick_bench_device", lambda: "cuda")
    (entry,) = measured()
    assert (entry["what"], entry["command"]) == ("on it; cuda", "python -m room.bench --only gpu_a --device cuda")
    assert "rehearsal" not in entry
    with pytest.raises(UserError, match="a is measured on the CPU; set CUDA_VISIBLE_DEVICES= to nothing"):
        measured("--only", "a")
