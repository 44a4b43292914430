"""What a run reports: the bar, the lines of `log.jsonl`, the scalars."""

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
from typing_extensions import override

from common.engine.stopping import _stop_for_nan
from common.files import naming
from common.log import LOG, truncate_log


@HOOKS.register_module(name="RuntimeInfoHook", force=True)
class StepOutputs(RuntimeInfoHook):
    """mmengine's hook of this name, which puts the steps' outputs into the message hub, but not at every step.

    Reading a number waits until the GPU has computed it, and the idle GPU then waits for the next step. So the
    outputs stay on the device until a line is logged, an epoch ends or a checkpoint is to be written. Then all are
    read at once, and `train/images_per_s` is measured up to there. A loss that is not finite stops the run, and the
    first step that had one is named.
    """

    KEPT = 1000  # values kept per scalar, at least; mmengine would keep all, and copy them at every step

    def __init__(self) -> None:
        self._unread: list[tuple[int, dict[str, Tensor]]] = []

    @override
    def before_train(self, runner: MMEngineRunner) -> None:
        super().before_train(runner)
        self._intervals = {hook.interval for hook in runner.hooks if isinstance(hook, Progress | LoggerHook)}

    @override
    def before_train_epoch(self, runner: MMEngineRunner) -> None:
        super().before_train_epoch(runner)
        self._since = time.monotonic()  # what happens between two epochs is not part of a step

    @override
    def after_train_iter(
        self, runner: MMEngineRunner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        step = runner.iter + 1
        self._unread.append((step, {name: value.detach() for name, value in (outputs or {}).items()}))
        logged = any(step % interval == 0 for interval in self._intervals)
        if logged or self.end_of_epoch(runner.train_dataloader, batch_idx):  # where LoggerHook may log too
            self.read(runner)

    @override
    def after_train_epoch(self, runner: MMEngineRunner) -> None:
        self.read(runner)

    def read(self, runner: MMEngineRunner) -> None:
        """Put the kept outputs into the hub. Raises UserError naming the first step whose loss is not finite."""
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
        hub.update_scalar("train/images_per_s", images_per_step(runner) * len(unread) / (now - self._since))
        self._since = now
        for name, history in hub.log_scalars.items():
            if name.startswith("train/") and len(history.data[0]) > 2 * self.KEPT:
                hub.log_scalars[name] = HistoryBuffer(*(part[-self.KEPT :] for part in history.data))


@HOOKS.register_module()
class Progress(Hook):
    """A bar with ETA and images/s on the console; the same numbers as JSON lines in `log.jsonl` and in the visualizer.

    A line is written every `interval` steps and after every epoch. What other hooks put into the message hub
    under `train/` or `val/` appears too (for instance kNN accuracy). A resumed run drops the lines after the step
    that it resumes from and continues the log; `seconds` counts from the start, without the pauses.
    """

    priority = 80  # before the CheckpointHook, so that the log has every step that is saved

    def __init__(self, interval: int = 10) -> None:
        self.interval = interval
        self._bar: tqdm | None = None

    @override
    def before_train(self, runner: MMEngineRunner) -> None:
        self._images = images_per_step(runner)
        self._path = Path(runner.work_dir) / LOG
        # Of a resumed run, what was there at the last line: its validation may have come between the two.
        self._lengths = json.loads(runner.message_hub.runtime_info.get(_LENGTHS, "{}"))
        if runner.rank == 0:
            self._begun = time.monotonic() - truncate_log(self._path, runner.iter, runner.epoch)
            name = Path(runner.work_dir).name
            self._bar = _bar(name, runner.max_iters * self._images, runner.iter * self._images)

    @override
    def after_train_iter(
        self, runner: MMEngineRunner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        if self._bar is None:
            return
        self._bar.update(self._images)
        if (runner.iter + 1) % self.interval == 0:
            scalars = _scalars(runner, "train/")
            self._bar.set_postfix({k: f"{scalars[k]:.3g}" for k in ("loss", "lr") if k in scalars})
            self._write(runner, step=runner.iter + 1, **scalars)

    @override
    def after_train_epoch(self, runner: MMEngineRunner) -> None:
        if self._bar is None or isinstance(runner.train_loop, IterBasedTrainLoop):
            return
        before, self._lengths = self._lengths, _lengths(runner)
        news = {key for key, length in self._lengths.items() if length > before.get(key, 0)}
        scalars = {**_scalars(runner, "train/"), **{k: v for k, v in _scalars(runner, "val/").items() if k in news}}
        runner.message_hub.update_info(_LENGTHS, json.dumps(self._lengths))
        self._write(runner, step=runner.iter, epoch=runner.epoch + 1, **scalars)
        shown = "  ".join(f"{key} {value:.4g}" for key, value in scalars.items() if key in _SHOWN)
        self._bar.write(f"epoch {runner.epoch + 1}/{runner.max_epochs}  {shown}", file=sys.stdout)

    @override
    def after_train(self, runner: MMEngineRunner) -> None:
        self.close()
        if not any(isinstance(hook, LoggerHook) for hook in runner.hooks):  # which would do it
            runner.visualizer.close()

    @override
    def before_test(self, runner: MMEngineRunner) -> None:
        if runner.rank == 0:
            self._bar = _bar(f"{Path(runner.work_dir).name}, test", len(runner.test_dataloader.dataset))

    @override
    def after_test_iter(
        self, runner: MMEngineRunner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        if self._bar is not None:  # with several processes, the last images may be repeats
            self._bar.update(min(len(outputs) * runner.world_size, (self._bar.total or 0) - self._bar.n))

    @override
    def after_test(self, runner: MMEngineRunner) -> None:
        self.close()

    def close(self) -> None:
        """Close the bar, if one is open."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _write(self, runner: MMEngineRunner, **line: Any) -> None:
        line["seconds"] = round(time.monotonic() - self._begun, 3)
        numbers = {f"train/{key}": value for key, value in line.items() if key not in ("step", "epoch", "seconds")}
        with naming(self._path.parent):
            with open(self._path, "a", encoding="utf-8") as stream:
                stream.write(json.dumps(line) + "\n")
            runner.visualizer.add_scalars(numbers, step=line["step"])


def _bar(name: str, total: int, initial: int = 0) -> tqdm:
    interval = 0.5 if sys.stderr.isatty() else 20
    return tqdm(total=total, initial=initial, desc=name, unit="img", mininterval=interval, dynamic_ncols=True)


_LENGTHS = "lengths_at_the_last_line"  # in the message hub, and so in resume files
_SHOWN = ("loss", "lr", "std", "knn", "images_per_s")


def images_per_step(runner: MMEngineRunner) -> int:
    """Return the number of images that all processes together use in a step."""
    config = runner.cfg
    return config.train_dataloader.batch_size * config.train_cfg.get("accumulate", 1) * runner.world_size


def _lengths(runner: MMEngineRunner) -> dict[str, int]:
    """Return how often each scalar under `val/` was logged, so that an old value is not reported as an epoch's own."""
    scalars = runner.message_hub.log_scalars.items()
    return {key.removeprefix("val/"): len(buffer.data[0]) for key, buffer in scalars if key.startswith("val/")}


def _scalars(runner: MMEngineRunner, prefix: str) -> dict[str, float]:
    """Return the latest value of each scalar under `prefix`, without mmengine's times, which are the host's alone."""
    return {
        key.removeprefix(prefix): float(buffer.current())
        for key, buffer in runner.message_hub.log_scalars.items()
        if key.startswith(prefix) and len(buffer.data[0]) and key not in ("train/time", "train/data_time")
    }
