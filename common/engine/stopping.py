"""What stops a run before its end: signals, and numbers that are not finite."""

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch
from mmengine.dist import all_reduce, barrier
from mmengine.hooks import Hook
from mmengine.runner import Runner as MMEngineRunner
from typing_extensions import override

from common.engine.resume import newest_resume_file
from common.errors import Diverged, Stopped

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # Ctrl-C, a scheduler, Slurm's --signal


def start_worker(prepare: Callable[[int], None] | None, worker: int) -> None:
    """Prepare a loader's worker, and let it ignore the stop signals that all processes get: the step needs its batch.

    It still obeys SIGTERM from its parent, which Python sends at exit.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # an ignored signal cannot be waited for
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_obey_parent, daemon=True).start()
    if prepare is not None:
        prepare(worker)


def _obey_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


class StopOnSignal(Hook):
    """On a stop signal, save after the step and leave, so that the run can resume; on a second Ctrl-C, leave at once.

    A signal to one of several processes stops all of them after the same step. They ask each other at the end of an
    epoch, and otherwise only every `POLL` steps, because the answer waits for all GPUs.
    """

    POLL = 10

    priority = "LOWEST"  # after the log's line and the schedulers of the step

    def __init__(self) -> None:
        self._received = 0
        self._previous: dict[int, Any] = {}

    @override
    def before_train(self, runner: MMEngineRunner) -> None:
        if threading.current_thread() is threading.main_thread():  # only there may Python set handlers
            for number in STOP_SIGNALS:
                self._previous[number] = signal.signal(number, self._note)

    def _note(self, number: int, frame: Any) -> None:
        if number == signal.SIGINT and self._received == signal.SIGINT:
            raise KeyboardInterrupt
        self._received = number

    @override
    def after_train_iter(
        self, runner: MMEngineRunner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        """Save and raise Stopped if a signal came."""
        step, received = runner.iter + 1, self._received
        if runner.world_size > 1:
            last = getattr(runner.train_loop, "steps", runner.max_iters)  # of an epoch, or of the run
            if step % self.POLL and step % last:
                return
            agreed = torch.tensor(received)
            all_reduce(agreed, "max")
            received = int(agreed)
        if received:
            # Even if this step was just saved: processes may not agree yet on whether the file exists.
            runner.save_checkpoint(runner.work_dir, f"iter_{step}.pth", by_epoch=False)
            barrier()  # because a launcher ends all processes when the first one leaves
            raise Stopped(received, f"stopped by {signal.Signals(received).name} after step {step}, which is saved")

    def restore(self) -> None:
        """Restore the previous signal handlers."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}


class FiniteWeights(Hook):
    """Keep weights that are not finite out of the checkpoints and of what follows the training."""

    priority = "ABOVE_NORMAL"

    @override
    def before_save_checkpoint(self, runner: MMEngineRunner, checkpoint: dict[str, Any]) -> None:
        """Raise Diverged, so that nothing is saved, if a weight is not finite."""
        _require_finite(runner, checkpoint["state_dict"], runner.iter + 1)

    @override
    def after_train(self, runner: MMEngineRunner) -> None:
        """Raise Diverged likewise; the config may ask for no checkpoint at the end."""
        _require_finite(runner, runner.model.state_dict(), runner.iter)


def _require_finite(runner: MMEngineRunner, weights: dict[str, torch.Tensor], step: int) -> None:
    for name, value in weights.items():
        if value.is_floating_point() and not value.isfinite().all():
            _stop_for_nan(runner, f"{name} is no longer finite after step {step}")


def _stop_for_nan(runner: MMEngineRunner, what: str) -> NoReturn:
    good = newest_resume_file(Path(runner.work_dir))
    remedy = f"the last good checkpoint is {good}" if good else "no checkpoint was written yet"
    raise Diverged(f"{what}; {remedy}; lower the learning rate, or look at the data, and start again")
