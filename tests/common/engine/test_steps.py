"""The loop over iterations: batches without end, exact positions, parts of a step."""

import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import InfiniteSampler
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, MODELS
from PIL import Image
from torch import nn
from torch.utils.data import Dataset

import common.engine.steps
from common.engine.draws import Draw, Drawn, EndlessBatches, seeded
from common.engine.runner import build_runner, set_run, train

ROOT = Path(common.engine.steps.__file__).parents[2]
TALL = (1, 4, 5, 6)


@DATASETS.register_module()
class Shapes(Dataset):
    """Ten images, four of them tall; an item is a value and two random numbers."""

    metainfo: ClassVar[dict] = {}

    def full_init(self) -> None:
        pass

    def __len__(self) -> int:
        return 10

    def get_data_info(self, place: int) -> dict[str, Any]:
        return {"width": 4, "height": 5 if place in TALL else 4}

    def __getitem__(self, place: int) -> torch.Tensor:
        return torch.tensor([place, np.random.rand(), torch.rand(1).item()])


@MODELS.register_module()
class Sum(BaseModel):
    def __init__(self, noise: float = 0.1) -> None:
        super().__init__()
        self.noise = noise  # the model's own randomness
        self.layer = nn.Linear(3, 1)
        nn.init.constant_(self.layer.weight, 0.1)
        self.seen: list[list[float]] = []

    def forward(self, inputs: Any, mode: str = "loss") -> dict[str, torch.Tensor]:
        self.seen.append(inputs[:, 0].tolist())
        return {"loss": (self.layer(inputs) - 1 + self.noise * torch.rand(1)).square().mean()}

    def train_step(self, data: torch.Tensor, optim_wrapper: Any) -> dict[str, torch.Tensor]:
        with optim_wrapper.optim_context(self):
            losses = self(data)
        optim_wrapper.update_params(losses["loss"])
        return losses


def batches(seed: int = 3, **options: Any) -> EndlessBatches:
    return EndlessBatches(InfiniteSampler(Shapes(), seed=seed), batch_size=2, **options)


def first(sampler: EndlessBatches, count: int) -> list[list[Draw]]:
    return list(itertools.islice(sampler, count))


def test_batches_visit_every_image_a_pass_in_an_order_that_the_seed_fixes() -> None:
    found = first(batches(), 10)
    assert found == first(batches(), 10)
    assert found != first(batches(seed=4), 10)
    places = [draw.place for batch in found for draw in batch]
    assert sorted(places[:10]) == sorted(places[10:]) == list(range(10))
    assert len({draw.seed for batch in found for draw in batch}) == 20


def test_by_shape_tall_images_and_others_share_no_batch() -> None:
    found = first(batches(by_shape=True), 50)
    assert {len({draw.place in TALL for draw in batch}) for batch in found} == {1}
    assert {len(batch) for batch in found} == {2}


@pytest.mark.parametrize("by_shape", [False, True])
def test_skipped_batches_are_those_that_came_first(by_shape: bool) -> None:
    later = batches(by_shape=by_shape)
    later.skip = 7
    assert first(later, 5) == first(batches(by_shape=by_shape), 12)[7:]


def test_shapes_come_from_the_files_where_annotations_do_not_say(tmp_path: Path) -> None:
    Image.new("RGB", (3, 9)).save(tmp_path / "tall.png")
    data = Shapes()
    data.get_data_info = lambda place: {"img_path": str(tmp_path / "tall.png")}  # type: ignore[method-assign]
    assert EndlessBatches(InfiniteSampler(data, seed=0), 1, by_shape=True)._is_tall(0)


def test_known_sizes_spare_opening_the_files() -> None:
    data = Shapes()
    data.get_data_info = lambda place: {"img_path": f"nowhere//{place}.png"}  # type: ignore[method-assign]
    sampler = EndlessBatches(InfiniteSampler(data, seed=0), 2, by_shape=True)
    sampler.sizes = {f"nowhere/{place}.png": (4, 5 if place in TALL else 4) for place in range(10)}
    assert {len({draw.place in TALL for draw in batch}) for batch in first(sampler, 50)} == {1}


def test_a_visit_draws_from_its_seed_alone() -> None:
    data = Drawn({"type": "Shapes"})
    np.random.seed(1)
    torch.manual_seed(1)
    before = np.random.get_state()[1].tolist(), torch.get_rng_state()
    one = data[Draw(3, 99)]
    assert np.random.get_state()[1].tolist() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    assert torch.equal(one, data[Draw(3, 99)])
    assert not torch.equal(one[1:], data[Draw(3, 100)][1:])


def test_an_error_inside_leaves_the_streams_alone() -> None:
    before = np.random.get_state()[1].tolist()
    with pytest.raises(ZeroDivisionError), seeded(5):
        raise ZeroDivisionError
    assert np.random.get_state()[1].tolist() == before


@pytest.fixture
def run(tmp_path: Path):
    def run(name: str = "run", *, stop: int | None = None, resume: bool = False, **changes: Any) -> Any:
        config = Config(
            {
                "model": {"type": "Sum"},
                "train_dataloader": {
                    "dataset": {"type": "Shapes"},
                    "batch_size": 4,
                    "num_workers": 0,
                    "sampler": {"type": "InfiniteSampler", "shuffle": True},
                    "batch_sampler": {"type": "EndlessBatches", "by_shape": True},
                    "collate_fn": {"type": "default_collate"},
                },
                "train_cfg": {"type": "ResumableIterLoop", "max_iters": 7},
                "optim_wrapper": {
                    "type": "StepOptimWrapper",
                    "optimizer": {"type": "SGD", "lr": 0.01, "momentum": 0.9},
                },
                "default_scope": "mmengine",
                "default_hooks": {"checkpoint": {"type": "CheckpointHook", "interval": 2, "by_epoch": False}},
                "visualizer": {"type": "Visualizer", "vis_backends": [{"type": "LocalVisBackend"}]},
            }
        )
        config.merge_from_dict(changes)
        set_run(config, work_dir=tmp_path / name, seed=0)
        runner = build_runner(config, settings="s", resume=resume)
        if stop is not None:
            original = runner.call_hook

            def call_hook(name: str, **kwargs: Any) -> None:
                original(name, **kwargs)
                if name == "after_train_iter" and runner.iter + 1 == stop:
                    raise KeyboardInterrupt

            runner.call_hook = call_hook
        train(runner)
        return runner

    return run


@pytest.mark.parametrize(("workers", "parts"), [(0, 1), (2, 1), (0, 2)])
@pytest.mark.parametrize("stop", [1, 2, 5])
def test_an_interrupted_run_ends_with_the_same_bits(run, stop: int, workers: int, parts: int) -> None:
    whole = run("whole", **{"train_cfg.accumulate": parts}).model
    changes = {"train_dataloader.num_workers": workers, "train_cfg.accumulate": parts}
    with pytest.raises(KeyboardInterrupt):
        run(stop=stop, **changes)
    resumed = run(resume=True, **changes).model
    begun = (stop - stop % 2) * parts
    assert resumed.seen == whole.seen[begun:]
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name])


def test_parts_add_up_to_the_whole_batch(run) -> None:
    """By shape, a part holds images of one shape; without, two parts of 2 are the batch of 4."""
    flat = {"train_dataloader.batch_sampler.by_shape": False, "model.noise": 0.0}
    whole = run("whole", **flat).model
    parts = run("parts", **flat, **{"train_dataloader.batch_size": 2, "train_cfg.accumulate": 2}).model
    assert [a + b for a, b in zip(parts.seen[::2], parts.seen[1::2], strict=True)] == whole.seen
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(value, parts.state_dict()[name])


def test_a_process_ends_though_its_loaders_workers_outlive_signals(tmp_path: Path) -> None:
    """Python ends its children by SIGTERM as it exits, and waits for them; other processes' they do not hear."""
    script = """
import os, signal, time
from torch.utils.data import DataLoader
from common.engine.runner import Runner
loader = Runner.build_dataloader(dict(dataset=list(range(40)), batch_size=1, num_workers=1, persistent_workers=True,
                                      sampler=range(40), collate_fn=dict(type="default_collate")), seed=0)
batches = iter(loader)
next(batches)
worker = loader._iterator._workers[0].pid
stranger = os.fork()
if not stranger:
    os.kill(worker, signal.SIGTERM)
    os._exit(0)
os.waitpid(stranger, 0)
print(sum(1 for _ in batches), flush=True)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert (done.stdout, done.returncode) == ("39\n", 0), done.stderr
