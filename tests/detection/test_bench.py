"""What the benchmarks of detection measure, on small sizes."""

import json
from types import SimpleNamespace

import pytest
from PIL import Image

from common import bench as table
from common import embedded
from common.config import join_data, load_config
from common.mmlab import ops as openmmlab
from detection import bench

BUILT = bench.compiled_ops() is not None


@pytest.mark.parametrize(
    ("name", "device"),
    [("detection_data_wait_percent", []), ("gpu_detection_wait_percent", ["--device", "cpu"])],
    ids=["cpu", "rehearsal"],
)
def test_the_share_of_waiting_and_the_seconds_of_a_step(monkeypatch, tmp_path, capsys, name, device):
    if not device:
        monkeypatch.setattr(table, "pick_bench_device", lambda: None)
    monkeypatch.setattr(embedded, "SCENES", {"train": 4, "val": 0, "test": 1})
    monkeypatch.setitem(bench.STEPS, "cpu", 2)
    monkeypatch.chdir(tmp_path)
    bench.main(["--only", name, *device, "--json", "out.json"])
    [entry] = json.loads((tmp_path / "out.json").read_text())
    assert (entry["id"], entry["target"], entry["better"]) == (name, 5.0, "lower")
    assert 0 < entry["value"] < 100
    assert "seconds per iteration" in entry["what"]
    assert entry["command"] in capsys.readouterr().out


def test_the_gpus_data_set_is_a_sound_voc(monkeypatch, tmp_path):
    bench.register()
    from detection.annotations import check

    monkeypatch.setattr(bench, "IMAGES", 3)
    bench.write_voc(tmp_path / "VOCdevkit")
    config = join_data(load_config(bench.CONFIGS / "imagenet" / "voc.py"), tmp_path)
    for part in config.train_dataloader.dataset.datasets:
        check(part, tmp_path / "checked")
        with Image.open(next((tmp_path / "VOCdevkit" / part.data_prefix.sub_data_root).glob("JPEGImages/*"))) as image:
            assert image.size == (500, 375)
    assert len(list((tmp_path / "checked").glob("*.json"))) == 2


@pytest.mark.skipif(BUILT, reason="mmcv's compiled operators are here")
def test_without_compiled_operators_their_benchmarks_are_skipped_and_say_so(capsys, monkeypatch):
    monkeypatch.setattr(table, "pick_bench_device", lambda: None)
    names = "detection_nms_ratio", "detection_roi_align_ratio"
    bench.main(["--only", *names])
    shown = capsys.readouterr().out
    for name in names:
        assert f"skipped {name}: mmcv's compiled operators are not installed" in shown


@pytest.mark.parametrize("name", ["nms", "roi_align"])
def test_operators_are_timed_against_the_compiled_ones(monkeypatch, name):
    calls = []

    def spy(op):
        def call(*args, **kwargs):
            calls.append(op)
            return getattr(openmmlab, op)(*args, **kwargs)

        return call

    names = ("nms", "roi_align_forward", "roi_align_backward")
    monkeypatch.setattr(bench, "compiled_ops", lambda: SimpleNamespace(**{op: spy(op) for op in names}))
    value, said = bench.op_ratio(name, repeats=3, size=20)
    assert 0.05 < value < 20  # of the same operator
    assert said.endswith(" ms")
    assert set(calls) == {op for op in names if op.startswith(name)}
    assert len(calls) == 4 * len(set(calls))
