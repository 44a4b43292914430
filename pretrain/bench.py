"""What GSG, the loop and the views cost, as ratios within one run.

make bench, or one of them: python -m pretrain.bench --only gsg_shared_step_ratio
"""

import multiprocessing
import os
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS
from PIL import Image
from torch.utils.data import DataLoader

import pretrain.hooks
import pretrain.loop
import pretrain.methods
import pretrain.optim  # noqa: F401  (these register what the configs name)
from common import cli
from common.bench import Entry, parse, report
from common.config import load_config, share_batch
from common.engine import build_runner, set_run
from pretrain.bench_views import measure as measure_views
from pretrain.train import CONFIGS
from pretrain.views import EpochSampler, MultiView

REPEATS = 11
SIMSIAM: dict[str, Any] = dict(guide="none")
FRESH: dict[str, Any] = dict(guide="nearest", views="fresh")
SHARED: dict[str, Any] = dict(guide="nearest", views="shared")
BYOL: dict[str, Any] = dict(type="BYOL", **FRESH)
CHOSEN: dict[str, Any] = dict(BYOL, chosen_only=True)


class Shape(NamedTuple):
    """A profile's networks and image size, with the batch that fits into a benchmark's time."""

    profile: str
    batch: int

    @property
    def said(self) -> str:
        """What a table calls it."""
        model = self.config.model
        return f"{self.profile}: {model.backbone.name}, 32x32, batch {self.batch}"

    @property
    def config(self) -> Config:
        """The profile's settings of SimSiam."""
        config = load_config(CONFIGS / self.profile / "simsiam.py", data=Path("data"))
        config.train_dataloader.batch_size = self.batch
        return config


DEMO, CIFAR = Shape("demo", 64), Shape("cifar10", 32)


def step_of(shape: Shape, changes: dict[str, Any]) -> Callable[[], Any]:
    """Return a training step (forward, backward, update) of the profile's model with `changes`, on fixed images."""
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


def step_ratio(shape: Shape, ours: dict[str, Any], reference: dict[str, Any], repeats: int = REPEATS) -> float:
    """Return the step time of `ours` over that of `reference`: the median ratio of steps taken in turn."""
    steps = step_of(shape, ours), step_of(shape, reference)
    ratios = []
    for repeat in range(repeats + 1):
        one, other = (seconds(step) for step in steps)
        if repeat:  # the first warms up
            ratios.append(one / other)
    return statistics.median(ratios)


def seconds(action: Callable[[], Any]) -> float:
    """Return how long the action takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def memory_ratio(shape: Shape, ours: dict[str, Any], reference: dict[str, Any]) -> float:
    """Return peak memory of a step of `ours` over that of `reference`: what a process grew by for it (Linux)."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1, maxtasksperchild=1) as pool:  # a process each: its peak never falls
        one, other = pool.starmap(step_memory, [(shape, ours), (shape, reference)], chunksize=1)
    return one / other


def step_memory(shape: Shape, changes: dict[str, Any]) -> int:
    """Return by how many KiB building the model and taking two steps raised this process's peak."""
    before = _peak()
    step = step_of(shape, changes)
    step()
    step()
    return _peak() - before


def _peak() -> int:
    # Not getrusage: its maximum is inherited from the process that started this one.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1])  # type: ignore[index]


class BareSteps(Hook):
    """After each step of our loop, take one of a bare PyTorch loop, and note how long each of the two took."""

    priority = "LOWEST"

    def __init__(self, bare_step: Callable[[], Any]) -> None:
        self.bare_step = bare_step
        self.ratios: list[float] = []
        self._begun: float | None = None

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Note the ratio, but of the first step, which warms up and whose start is not known."""
        ended = time.perf_counter()
        bare = seconds(self.bare_step)
        if self._begun is not None:
            self.ratios.append((ended - self._begun) / bare)
        self._begun = time.perf_counter()


def loop_overhead(shape: Shape, steps: int) -> float:
    """Return by how many percent a step of our training loop takes longer than that of a bare PyTorch loop.

    The same model, images, views, optimiser and schedule in both; ours with its logs, checks and hooks (the
    kNN monitor and checkpoints, which have intervals of their own, aside). The median ratio of `steps` steps
    of the two loops in turn.
    """
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nowhere:
        root = Path(folder)
        rng = np.random.default_rng(0)
        (root / "images" / "train" / "noise").mkdir(parents=True)
        for k in range((steps + 1) * shape.batch):
            pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "images" / "train" / "noise" / f"{k:05d}.png")
        bare = BareSteps(partial(next, _bare_loop(_settings(shape, root))))
        config = _settings(shape, root)
        set_run(config, work_dir=root / "run", seed=0)
        runner = build_runner(config, settings="bench")
        runner.register_hook(bare)
        with redirect_stdout(nowhere), redirect_stderr(nowhere):  # the bar is written, not shown
            runner.train()
    return 100 * (statistics.median(bare.ratios) - 1)


def _settings(shape: Shape, root: Path) -> Config:
    config = shape.config
    config.train_dataloader.dataset.images = dict(name="folder", root=str(root / "images"), split="train")
    config.train_dataloader.num_workers = 0
    config.train_cfg.max_epochs = 1
    config.custom_hooks = []
    share_batch(config, "none")
    return config


def _bare_loop(config: Config) -> Iterator[float]:
    """Yield the loss of every step."""
    torch.manual_seed(0)
    data = config.train_dataloader.dataset
    images = MultiView(data.images, data.augmentation)
    loader = DataLoader(images, config.train_dataloader.batch_size, sampler=EpochSampler(images), drop_last=True)
    model = MODELS.build(config.model).train()
    options = {key: value for key, value in config.optim_wrapper.optimizer.items() if key != "type"}
    optimizer = torch.optim.SGD(model.parameters(), **options)
    for batch in loader:
        loss = model(**batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield loss.item()


def measure_all(only: Sequence[str]) -> list[Entry]:
    """Measure the benchmarks named in `only`, printing each as it comes."""
    entries: list[Entry] = []
    for name, (what, target, better, run) in BENCHMARKS.items():
        if name in only:
            print(f"measuring {name}: {what}", flush=True)
            command = f"python -m pretrain.bench --only {name}"
            entries.append(Entry(id=name, what=what, value=run(), target=target, better=better, command=command))
    return entries


def _benchmarks() -> dict[str, tuple[str, float, str, Callable[[], float]]]:
    """Return id -> what is measured, target, which is better, and the measurement."""
    found: dict[str, tuple[str, float, str, Callable[[], float]]] = {}
    for shape, steps in ((DEMO, 20), (CIFAR, 10)):
        mark = "" if shape is CIFAR else f"_{shape.profile}"  # the plain ids are of the larger shape
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
            found[name + mark] = (f"{what} ({shape.said})", target, better, run)
    what = "views a second, ours / the authors' recipe on PIL images (B.1, JPEGs of 500x375, one worker each)"
    found["views_per_second_ratio"] = (what, 1.5, "higher", lambda: measure_views()["ratio"])
    return found


BENCHMARKS = _benchmarks()


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print the table, and write it where asked."""
    args = parse("pretrain.bench", __doc__ or "", list(BENCHMARKS), argv)
    report(measure_all(args.only), args.json)


if __name__ == "__main__":
    cli.run(main)
