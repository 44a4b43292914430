"""make clean-cache: what it removes, and what it keeps."""

import os

import pytest

from common.errors import UserError
from tools.clean_cache import main


def test_it_lists_and_removes_features_that_no_pass_is_writing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    features, study = tmp_path / "runs/demo/features", tmp_path / "runs/study/cpu/byol-seed0/cifar10/features"
    kept = [features / ".a.lock", features / ".running.part", tmp_path / "runs/demo/pretrain/a.npy"]
    gone = [features / "it's a $(touch X).npy", study / "b.npy", features / ".stopped.part", features / ".stopped.sums"]
    for path in (*kept, *gone):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"1234")
    for path in gone[2:]:
        os.utime(path, (0, 0))
    (tmp_path / "runs").rename(tmp_path / "elsewhere")
    main([])
    assert capsys.readouterr().out == ""
    (tmp_path / "elsewhere").rename(tmp_path / "runs")
    main([])
    assert sorted(capsys.readouterr().out.splitlines()) == sorted(
        f"removed: {path.relative_to(tmp_path)}, 4 bytes" for path in gone
    )
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(kept)
    main([])
    assert capsys.readouterr().out == ""


def test_runs_elsewhere_are_found(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / "scratch/runs/demo/features/a.npy"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"1234")
    main(["--runs", "~/scratch/runs"])
    assert capsys.readouterr().out == f"removed: {path}, 4 bytes\n"
    assert not path.exists()
    with pytest.raises(UserError, match=r"--runs /nowhere/scratch is not a folder; correct it"):
        main(["--runs", "/nowhere/scratch"])
