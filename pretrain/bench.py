"""What GSG, the loop and the views cost, as ratios within one run.

`make bench` measures all; `python -m pretrain.bench --only gsg_shared_step_ratio` measures one.
"""

import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS
from PIL import Image
from torch.utils.data import DataLoader
from typing_extensions import override

import pretrain.hooks
import pretrain.loop
import pretrain.methods
import pretrain.optim  # noqa: F401  (these register what the configs name)
from common import cli
from common.bench import Benchmark, peak_memory, run_room, silence
from common.config import load_config
from common.engine.batch import plan_batch
from common.engine.processes import keep_freed_memory
from common.engine.runner import build_runner, set_run
from pretrain.bench_device import BYOL, CHOSEN, DEVICE_BENCHMARKS, FRESH, SHARED, SIMSIAM
from pretrain.bench_views import measure as measure_views
from pretrain.train import CONFIGS
from pretrain.views import EpochSampler, MultiView

REPEATS = 11


class Shape(NamedTuple):
    """A profile's networks and image size, with a batch small enough for a benchmark."""

    profile: str
    batch: int

    @property
    def said(self) -> str:
        """Its name in the table."""
        model = self.config.model
        return f"{self.profile}: {model.backbone.name}, 32x32, batch {self.batch}"

    @property
    def config(self) -> Config:
        """The profile's SimSiam config, with this batch size."""
        config = load_config(CONFIGS / self.profile / "simsiam.py")
        config.train_dataloader.batch_size = self.batch
        return config


DEMO, CIFAR = Shape("demo", 64), Shape("cifar10", 32)


def step_of(shape: Shape, changes: dict[str, Any]) -> Callable[[], Any]:
    """Return a training step (forward, backward, update) of the profile's model with `changes`, on fixed images."""
    keep_freed_memory()
    torch.manual_seed(0)
    config = shape.config
    model = MODELS.build(config.model | changes).train()
    wrapper = build_optim_wrapper(model, config.optim_wrapper)
    views = [torch.randn(shape.batch, 3, 32, 32) for _ in range(model.num_views)]

    def step() -> None:
        if hasattr(model, "start_step"):
            model.start_step()
        model.train_step({"inputs": views}, optim_wrapper=wrapper)

    return step


class Turn:
    """Lets another process time this one's steps: to be called before the first step and after each."""

    def __init__(self, other: Connection) -> None:
        self.other = other
        self._begun: float | None = None

    def __call__(self) -> None:
        """Send the seconds of the step just taken, if any, and wait until the other process asks for the next."""
        if self._begun is not None:
            self.other.send(time.perf_counter() - self._begun)
        self.other.recv()
        self._begun = time.perf_counter()


Steps = Callable[[Turn], None]  # takes one step per turn


def time_ratio(ours: Steps, reference: Steps, repeats: int) -> float:
    """Return the median over `repeats` turns of the time of a step of `ours` over that of `reference`.

    Each runs in its own process while the other waits. In a shared process the smaller one would reuse the memory that
    the larger one freed, and so be spared page faults. The first step of each warms up.
    """
    context = multiprocessing.get_context("spawn")
    processes, ends = [], []
    for steps in (ours, reference):
        mine, its = context.Pipe()
        processes.append(context.Process(target=_take_turns, args=(steps, its), daemon=True))
        processes[-1].start()
        its.close()  # so that `recv` fails if the process dies
        ends.append(mine)
    ratios = []
    for _ in range(repeats + 1):
        seconds = []
        for end in ends:
            end.send("go")
            seconds.append(end.recv())
        ratios.append(seconds[0] / seconds[1])
    for process in processes:
        process.kill()
        process.join()
    return statistics.median(ratios[1:])


def _take_turns(steps: Steps, other: Connection) -> None:
    steps(Turn(other))


def fixed_steps(shape: Shape, changes: dict[str, Any], turn: Turn) -> None:
    """Take steps of the profile's model with `changes` on fixed images, for ever."""
    step = step_of(shape, changes)
    while True:
        turn()
        step()


def step_ratio(shape: Shape, ours: dict[str, Any], reference: dict[str, Any]) -> float:
    """Return the step time of `ours` over that of `reference`."""
    return time_ratio(partial(fixed_steps, shape, ours), partial(fixed_steps, shape, reference), REPEATS)


def memory_ratio(shape: Shape, ours: dict[str, Any], reference: dict[str, Any]) -> float:
    """Return the memory by which a step of `ours` makes a process grow, over that of `reference` (Linux)."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1, maxtasksperchild=1) as pool:  # one process for each, because a peak never falls
        one, other = pool.starmap(step_memory, [(shape, ours), (shape, reference)], chunksize=1)
    return one / other


def step_memory(shape: Shape, changes: dict[str, Any]) -> int:
    """Return by how many KiB building the model and taking two steps raised this process's peak."""
    before = peak_memory()
    step = step_of(shape, changes)
    step()
    step()
    return peak_memory() - before


class AfterStep(Hook):
    """Call `turn` before the first step and after each."""

    priority = "LOWEST"

    def __init__(self, turn: Turn) -> None:
        self.turn = turn

    @override
    def before_train_epoch(self, runner: Any) -> None:
        self.turn()

    @override
    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self.turn()


def loop_overhead(shape: Shape, steps: int) -> float:
    """Return how much longer a step of our training loop takes than one of a bare PyTorch loop, in percent.

    Model, images, views and optimiser are the same in both. Ours has its logs, checks and hooks too, except the kNN
    monitor and checkpoints, which have intervals of their own.
    """
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "images" / "train" / "noise"
        images.mkdir(parents=True)
        rng = np.random.default_rng(0)
        for k in range((steps + 2) * shape.batch):
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(images / f"{k:05d}.png")
        ours, bare = (partial(loop, shape, Path(folder)) for loop in (our_loop, bare_loop))
        return 100 * (time_ratio(ours, bare, repeats=steps) - 1)


def _settings(shape: Shape, root: Path) -> Config:
    config = shape.config
    config.train_dataloader.dataset.images = dict(name="folder", root=str(root / "images"), split="train")
    config.train_dataloader.num_workers = 0
    config.train_cfg.max_epochs = 1
    config.custom_hooks = []
    plan_batch(config, 1, 1).apply(config)
    return config


def our_loop(shape: Shape, root: Path, turn: Turn) -> None:
    """Train with our loop on the images in `root`."""
    config = _settings(shape, root)
    set_run(config, work_dir=root / "run", seed=0)
    with silence():  # keeps the cost of the bar, but hides it
        runner = build_runner(config, settings="bench")
        runner.register_hook(AfterStep(turn))
        runner.train()


def bare_loop(shape: Shape, root: Path, turn: Turn) -> None:
    """Train with a loop of plain PyTorch on the images in `root`."""
    keep_freed_memory()
    cv2.setNumThreads(0)  # as mmengine's Runner does for ours
    config = _settings(shape, root)
    torch.manual_seed(0)
    data = config.train_dataloader.dataset
    images = MultiView(data.images, data.augmentation)
    loader = DataLoader(images, shape.batch, sampler=EpochSampler(images), drop_last=True)
    model = MODELS.build(config.model).train()
    options = {key: value for key, value in config.optim_wrapper.optimizer.items() if key != "type"}
    optimizer = torch.optim.SGD(model.parameters(), **options)
    turn()
    for batch in loader:
        loss = model(**batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()
        turn()


def _benchmarks() -> dict[str, Benchmark]:
    rows: dict[str, Benchmark] = {}
    for shape, steps in ((DEMO, 20), (CIFAR, 10)):
        mark = "" if shape is CIFAR else f"_{shape.profile}"  # ids without a suffix belong to the larger shape
        for name, what, target, better, run in (
            ("gsg_fresh_step_ratio", "GSG step, fresh views / SimSiam step", 2.05, "lower",
             partial(step_ratio, shape, FRESH, SIMSIAM)),
            ("gsg_shared_step_ratio", "GSG step, shared views / SimSiam step", 1.05, "lower",
             partial(step_ratio, shape, SHARED, SIMSIAM)),
            ("gsg_shared_memory_ratio", "peak memory of a GSG step, shared views / SimSiam", 1.05, "lower",
             partial(memory_ratio, shape, SHARED, SIMSIAM)),
            ("byol_selected_step_ratio", "BYOL+GSG step, chosen views only / four forward passes", 0.70, "lower",
             partial(step_ratio, shape, CHOSEN, BYOL)),
            ("loop_overhead_percent", "a step of our loop over a bare PyTorch loop's, percent more", 3.0, "lower",
             partial(loop_overhead, shape, steps)),
        ):  # fmt: skip
            rows[name + mark] = Benchmark(f"{what} ({shape.said})", target, better, run)
    what = "views per second, ours / the authors' recipe on PIL images (B.1, JPEGs of 500x375, one worker each)"
    rows["views_per_second_ratio"] = Benchmark(what, 1.5, "higher", lambda: measure_views()["ratio"])
    return rows


BENCHMARKS = _benchmarks()


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the rows that `argv` names and print their table."""
    run_room("pretrain.bench", __doc__ or "", BENCHMARKS, argv, DEVICE_BENCHMARKS)


if __name__ == "__main__":
    cli.run(main)
