"""The whole performance table: several rooms in one run."""

import json
import sys

import pytest

from common.errors import UserError
from tools import bench

ROOM = """
import json, sys
entries = [dict(id="{name}", what="w", value={value}, target=1.0, better="lower", command="c")]
open(sys.argv[sys.argv.index("--json") + 1], "w").write(json.dumps(entries))
"""


def test_every_room_is_measured_and_one_that_fails_loses_nothing(tmp_path, monkeypatch, capsys):
    for name, value in (("one", 0.5), ("two", 1.5)):
        (tmp_path / f"{name}.py").write_text(ROOM.format(name=name, value=value))
    (tmp_path / "three.py").write_text("raise SystemExit(1)")
    monkeypatch.chdir(tmp_path)  # where `python -m` finds them
    assert sys.executable
    monkeypatch.setattr(bench, "ROOMS", ("one", "two"))
    bench.main([])
    assert [e["id"] for e in json.loads((tmp_path / "reports/bench.json").read_text())] == ["one", "two"]
    assert "2 measured, 1 missed their target: two" in capsys.readouterr().out
    monkeypatch.setattr(bench, "ROOMS", ("two", "three"))
    with pytest.raises(UserError, match="three failed"):
        bench.main([])
    assert [e["id"] for e in json.loads((tmp_path / "reports/bench.json").read_text())] == ["two"]
