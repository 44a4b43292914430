"""What a run tells: the bar, the lines of `log.jsonl`, the scalars."""

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import Hook, LoggerHook, RuntimeInfoHook
from mmengine.logging import HistoryBuffer
from mmengine.registry import HOOKS
from mmengine.runner import IterBasedTrainLoop
from mmengine.runner import Runner as MMEngineRunner
from torch import Tensor
from tqdm import tqdm

from common.engine.stopping import _stop_for_nan
from common.log import LOG, truncate_log


@HOOKS.register_module(name="RuntimeInfoHook", force=True)
class StepOutputs(RuntimeInfoHook):
    """mmengine's hook of this name, which takes the steps' outputs to the message hub, but not at every step.

    Reading a number waits until the GPU has computed it, and an idle GPU then waits for the next step. So the
    outputs stay where they are until a line is logged, an epoch ends or a checkpoint is to be written; those of all
    steps since are then read at once, and `train/images_per_s` is measured up to there. A loss that is no number
    stops the run, with the step where it first was none.
    """

    KEPT = 1000  # latest values of a scalar, at least; mmengine would copy all there ever were at every step

    def __init__(self) -> None:
        self._unread: list[tuple[int, dict[str, Tensor]]] = []

    def before_train(self, runner: MMEngineRunner) -> None:
        """Note at which steps lines are logged."""
        super().before_train(runner)
        self._intervals = {hook.interval for hook in runner.hooks if isinstance(hook, Progress | LoggerHook)}

    def before_train_epoch(self, runner: MMEngineRunner) -> None:
        """Start the clock: what came between two epochs is no part of a step."""
        super().before_train_epoch(runner)
        self._since = time.monotonic()

    def after_train_iter(
        self, runner: MMEngineRunner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        """Keep the step's outputs, and read all that are kept if a line is logged now."""
        step = runner.iter + 1
        self._unread.append((step, {name: value.detach() for name, value in (outputs or {}).items()}))
        logged = any(step % interval == 0 for interval in self._intervals)
        if logged or self.end_of_epoch(runner.train_dataloader, batch_idx):  # where LoggerHook may log too
            self.read(runner)

    def after_train_epoch(self, runner: MMEngineRunner) -> None:
        """Read what is left."""
        self.read(runner)

    def read(self, runner: MMEngineRunner) -> None:
        """Take the kept outputs to the message hub. Raises UserError naming the first step whose loss is no number."""
        unread, self._unread = self._unread, []
        values = [value for _, outputs in unread for value in outputs.values()]
        if not values:
            return
        numbers = iter(torch.stack(values).tolist())
        hub = runner.message_hub
        for step, outputs in unread:
            for name in outputs:
                number = next(numbers)
                if name == "loss" and not math.isfinite(number):
                    _stop_for_nan(runner, f"the loss is {number} at step {step}")
                hub.update_scalar(f"train/{name}", number)
        now = time.monotonic()
        hub.update_scalar("train/images_per_s", images_a_step(runner) * len(unread) / (now - self._since))
        self._since = now
        for name, history in hub.log_scalars.items():
            if name.startswith("train/") and len(history.data[0]) > 2 * self.KEPT:
                hub.log_scalars[name] = HistoryBuffer(*(part[-self.KEPT :] for part in history.data))


@HOOKS.register_module()
class Progress(Hook):
    """A bar with ETA and images/s on the console; the same numbers as JSON lines in `log.jsonl`, and to the visualizer.

    A line is written every `interval` steps and after every epoch. What other hooks put into the message
    hub under `train/` or `val/` appears too (for instance kNN accuracy). A resumed run drops the lines
    beyond the step that it resumes from, and goes on, in `seconds` (since the start, pauses left out) too.
    """

    priority = "VERY_LOW"

    def __init__(self, interval: int = 10) -> None:
        self.interval = interval
        self._bar: tqdm | None = None

    def before_train(self, runner: MMEngineRunner) -> None:
        """Open the bar and cut the log back to the step where training starts."""
        self._images = images_a_step(runner)
        self._path = Path(runner.work_dir) / LOG
        # Of a resumed run, what was there at the last line: its validation may have come between the two.
        self._lengths = json.loads(runner.message_hub.runtime_info.get(_LENGTHS, "{}"))
        if runner.rank == 0:
            self._begun = time.monotonic() - truncate_log(self._path, runner.iter, runner.epoch)
            name = Path(runner.work_dir).name
            self._bar = _bar(name, runner.max_iters * self._images, runner.iter * self._images)

    def after_train_iter(
        self, runner: MMEngineRunner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        """Advance the bar; every `interval` steps write a line."""
        if self._bar is None:
            return
        self._bar.update(self._images)
        if (runner.iter + 1) % self.interval == 0:
            scalars = _scalars(runner, "train/")
            self._bar.set_postfix({k: f"{scalars[k]:.3g}" for k in ("loss", "lr") if k in scalars})
            self._write(runner, step=runner.iter + 1, **scalars)

    def after_train_epoch(self, runner: MMEngineRunner) -> None:
        """Write the epoch's line and show it."""
        if self._bar is None or isinstance(runner.train_loop, IterBasedTrainLoop):
            return
        before, self._lengths = self._lengths, _lengths(runner)
        news = {key for key, length in self._lengths.items() if length > before.get(key, 0)}
        scalars = {**_scalars(runner, "train/"), **{k: v for k, v in _scalars(runner, "val/").items() if k in news}}
        runner.message_hub.update_info(_LENGTHS, json.dumps(self._lengths))
        self._write(runner, step=runner.iter, epoch=runner.epoch + 1, **scalars)
        shown = "  ".join(f"{key} {value:.4g}" for key, value in scalars.items() if key in _SHOWN)
        self._bar.write(f"epoch {runner.epoch + 1}/{runner.max_epochs}  {shown}", file=sys.stdout)

    def after_train(self, runner: MMEngineRunner) -> None:
        """Close the bar."""
        self.close()

    def before_test(self, runner: MMEngineRunner) -> None:
        """Open the test's bar."""
        if runner.rank == 0:
            self._bar = _bar(f"{Path(runner.work_dir).name}, test", len(runner.test_dataloader.dataset))

    def after_test_iter(
        self, runner: MMEngineRunner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Advance the test's bar; the last images of several processes may be repeats."""
        if self._bar is not None:
            self._bar.update(min(len(outputs) * runner.world_size, (self._bar.total or 0) - self._bar.n))

    def after_test(self, runner: MMEngineRunner) -> None:
        """Close the test's bar."""
        self.close()

    def close(self) -> None:
        """Close the bar, however training ended."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _write(self, runner: MMEngineRunner, **line: Any) -> None:
        line["seconds"] = round(time.monotonic() - self._begun, 3)
        with open(self._path, "a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
        numbers = {f"train/{key}": value for key, value in line.items() if key not in ("step", "epoch", "seconds")}
        runner.visualizer.add_scalars(numbers, step=line["step"])


def _bar(name: str, total: int, initial: int = 0) -> tqdm:
    interval = 0.5 if sys.stderr.isatty() else 20
    return tqdm(total=total, initial=initial, desc=name, unit="img", mininterval=interval, dynamic_ncols=True)


_LENGTHS = "lengths_at_the_last_line"  # in the message hub, and so in resume files
_SHOWN = ("loss", "lr", "std", "knn", "images_per_s")


def images_a_step(runner: MMEngineRunner) -> int:
    """Return how many images all processes together take a step."""
    config = runner.cfg
    return config.train_dataloader.batch_size * config.train_cfg.get("accumulate", 1) * runner.world_size


def _lengths(runner: MMEngineRunner) -> dict[str, int]:
    """Return how often each scalar under `val/` was logged: one that is not measured every epoch is not repeated."""
    found = runner.message_hub.log_scalars.items()
    return {key.removeprefix("val/"): len(buffer.data[0]) for key, buffer in found if key.startswith("val/")}


def _scalars(runner: MMEngineRunner, prefix: str) -> dict[str, float]:
    """Return the latest value of each scalar under `prefix`; times are left out, being those of the host alone."""
    return {
        key.removeprefix(prefix): float(buffer.current())
        for key, buffer in runner.message_hub.log_scalars.items()
        if key.startswith(prefix) and len(buffer.data[0]) and key not in ("train/time", "train/data_time")
    }
