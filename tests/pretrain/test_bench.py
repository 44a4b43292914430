"""The benchmarks measure what they say, here on networks too small for the numbers to matter."""

import time
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from common.config import load_config
from pretrain import bench
from pretrain.methods import SimSiam
from pretrain.train import CONFIGS


@pytest.fixture
def shape():
    def config():
        settings = load_config(CONFIGS / "demo" / "simsiam.py")
        settings.merge_from_dict({"model.backbone.name": "test_resnet", "train_dataloader.batch_size": 4})
        return settings

    class Tiny(SimpleNamespace):
        config = property(lambda self: config())

    return Tiny(batch=4, profile="demo", said="tiny")


def test_the_ids_are_those_of_the_contract():
    ours = {
        *("gsg_fresh_step_ratio", "gsg_shared_step_ratio", "gsg_shared_memory_ratio", "byol_selected_step_ratio"),
        "loop_overhead_percent",
    }
    assert set(bench.BENCHMARKS) == ours | {f"{name}_demo" for name in ours} | {"views_per_second_ratio"}
    targets = {name: (target, better) for name, (_, target, better, _) in bench.BENCHMARKS.items()}
    assert targets["gsg_fresh_step_ratio"] == (2.05, "lower")
    assert targets["gsg_shared_step_ratio"] == targets["gsg_shared_memory_ratio"] == (1.05, "lower")
    assert targets["byol_selected_step_ratio"] == (0.70, "lower")
    assert targets["loop_overhead_percent"] == (3.0, "lower")
    assert targets["views_per_second_ratio"] == (1.5, "higher")


def naps(lengths, turn):
    for length in lengths:
        turn()
        time.sleep(length)
    turn()


def test_a_ratio_is_the_median_over_turns_and_leaves_the_warm_up_out():
    ours, reference = partial(naps, [0.5, 0.2, 0.2, 0.6]), partial(naps, [0.0, 0.1, 0.4, 0.1])
    assert bench.time_ratio(ours, reference, repeats=3) == pytest.approx(2, rel=0.2)


@pytest.mark.parametrize("changes", [bench.SIMSIAM, bench.FRESH, bench.SHARED, bench.BYOL, bench.CHOSEN], ids=str)
def test_a_step_is_a_step_of_training(shape, changes, monkeypatch):
    original, updates = torch.optim.SGD.step, []
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self, *args: (updates.append(1), original(self, *args))[1])
    step = bench.step_of(shape, changes)
    step()
    step()
    assert len(updates) == 2


def test_both_loops_take_the_same_steps(shape, tmp_path, monkeypatch):
    """The same views in the same order; the weights start from other draws."""
    folder = tmp_path / "images" / "train" / "a"
    folder.mkdir(parents=True)
    for k in range(12):
        Image.effect_noise((32, 32), 60).convert("RGB").save(folder / f"{k}.png")
    original, seen = SimSiam.loss, []
    monkeypatch.setattr(SimSiam, "loss", lambda self, inputs: (seen.append(inputs), original(self, inputs))[1])
    turns = []
    for loop in (bench.our_loop, bench.bare_loop):
        loop(shape, tmp_path, lambda loop=loop: turns.append(loop))
    assert turns == [bench.our_loop] * 4 + [bench.bare_loop] * 4
    for ours, bare in zip(seen[:3], seen[3:], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, bare, strict=True))
