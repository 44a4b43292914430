"""mmengine's Runner as all three trainers use it: safe and atomic checkpoints, quiet console, progress."""

import ctypes
import itertools
import json
import logging
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np
import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import all_gather_object, all_reduce, barrier, is_distributed
from mmengine.hooks import CheckpointHook, Hook, LoggerHook, RuntimeInfoHook
from mmengine.logging import HistoryBuffer, MMLogger
from mmengine.model import MMDistributedDataParallel, is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import IterBasedTrainLoop
from mmengine.runner import Runner as MMEngineRunner
from mmengine.utils import apply_to
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from common.checkpoint import Checkpoint, load_into
from common.cli import Stopped, UserError, rank
from common.config import mistake_in, processes
from common.files import atomic_path, is_whole_zip, only_here, write_json
from common.records import OVERWRITE

LOG = "log.jsonl"
STATE = "run.json"  # whose settings the work_dir belongs to, and whether the run is finished
T = TypeVar("T")
_RUNS = itertools.count()


class Runner(MMEngineRunner):
    """mmengine's Runner with checkpoints written atomically and read as data, never as code.

    `backbone` is loaded into `model.backbone` after the weights are initialised; a resumed run then
    replaces it with its own state.
    """

    backbone: Checkpoint | None = None
    settings: str = ""

    def build_logger(self, log_level: int | str = "INFO", log_file: str | None = None, **kwargs: Any) -> MMLogger:
        """Return mmengine's logger: everything goes to the file, only errors to the console."""
        logger = super().build_logger(log_level, log_file, **kwargs)
        for handler in logger.handlers:
            if not isinstance(handler, logging.FileHandler):
                handler.setLevel(logging.ERROR)
        return logger

    def register_hooks(self, *args: Any, **kwargs: Any) -> None:
        """Register the config's hooks, and those that safe and exact resuming rests on."""
        super().register_hooks(*args, **kwargs)
        for hook in (RandomState(), PlainState(), StopOnSignal(), FiniteWeights()):
            self.register_hook(hook)

    def train(self) -> Any:
        """Train as mmengine does; however it ends, the progress bar is closed, before an error's line."""
        try:
            return super().train()
        finally:
            self._end_workers()
            self.close_progress()
            for hook in self.hooks:
                if isinstance(hook, StopOnSignal):
                    hook.restore()

    def _end_workers(self) -> None:
        """End the workers that the training loader keeps, for which Python would wait as it exits."""
        loader: Any = getattr(self._train_loop, "dataloader", None)  # it may not be built yet
        workers = getattr(loader, "_iterator", None)
        if workers is not None:
            workers._shutdown_workers()
            loader._iterator = None

    def close_progress(self) -> None:
        """Close the progress bar, if one is open."""
        for hook in self.hooks:
            if isinstance(hook, Progress):
                hook.close()

    def save_checkpoint(self, out_dir: str, filename: str, *args: Any, **kwargs: Any) -> None:
        """Save as mmengine does, but so that a kill or a full disk leaves the previous file whole.

        Raises UserError, and saves nothing, if the loss or a weight is no finite number.
        """
        for hook in self.hooks:
            if isinstance(hook, StepOutputs):
                hook.read(self)
        next(hook for hook in self.hooks if isinstance(hook, RandomState)).collect()
        if self.rank != 0:
            return
        with atomic_path(Path(out_dir) / filename) as temporary:
            super().save_checkpoint(str(temporary.parent), temporary.name, *args, **kwargs)

    def setup_env(self, env_cfg: dict[str, Any]) -> None:
        """Start the process group: mmengine's way on GPUs, gloo on CPUs, which mmengine leaves out.

        Raises UserError where a machine has fewer GPUs than processes.
        """
        keep_freed_memory()
        if self.cfg.get("randomness", {}).get("deterministic"):
            # cuBLAS reads it as it starts, and torch then refuses deterministic training without it.
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        if self.distributed and not is_distributed():
            if torch.cuda.is_available():
                _require_gpus(self.launcher)
            else:
                _start_gloo(self.launcher)
        super().setup_env(env_cfg)

    @staticmethod
    def build_dataloader(dataloader: Any, *args: Any, **kwargs: Any) -> DataLoader:
        """Build as mmengine does, with workers that leave it to the main process to stop.

        Batches for a GPU are pinned unless the config says otherwise, so that copying them can overlap its work.
        """
        if isinstance(dataloader, dict):
            gpu = torch.cuda.is_available()  # without one, torch would warn of pinning
            dataloader = {**dataloader, "pin_memory": gpu and dataloader.get("pin_memory", True)}
        loader = MMEngineRunner.build_dataloader(dataloader, *args, **kwargs)
        loader.worker_init_fn = partial(start_worker, loader.worker_init_fn)
        return loader

    def wrap_model(self, model_wrapper_cfg: dict[str, Any] | None, model: nn.Module) -> nn.Module:
        """Wrap as mmengine does; on CPUs without SyncBN, which is for GPUs alone.

        From here on every process draws random numbers of its own: GSG's references differ between them.
        """
        if self.cfg.get("channels_last"):
            model = model.to(memory_format=torch.channels_last)
            # Once for all networks that see the images, and for the backward pass; cuDNN would convert in each.
            model.get_submodule("data_preprocessor").register_forward_hook(_images_channels_last)
        gpu = torch.cuda.is_available()
        if not self.distributed or (gpu and model_wrapper_cfg is not None):
            model = super().wrap_model(model_wrapper_cfg, model)
        else:
            if self.cfg.get("sync_bn") and gpu:
                # timm's, for mmengine's own loses the activations that some of timm's networks have inside BN layers.
                model = convert_sync_batchnorm(model)
            elif self.cfg.get("sync_bn") and self.rank == 0:
                print("CPU processes take BN statistics each of their own; SyncBN needs GPUs", flush=True)
            model = MMDistributedDataParallel(
                model.to(get_device()),
                device_ids=[torch.cuda.current_device()] if gpu else None,
                broadcast_buffers=False,
                find_unused_parameters=self.cfg.get("find_unused_parameters", False),
            )
        if self.world_size > 1:
            torch.manual_seed(seed_of_rank(self.seed, self.rank))
        return model

    def load_checkpoint(self, filename: str, map_location: Any = "cpu", strict: bool = True, **_: Any) -> dict:
        """Load a resume file of this run into the model and return it. Raises UserError if it does not fit."""
        checkpoint = read_resume_file(Path(filename), map_location)
        self.call_hook("after_load_checkpoint", checkpoint=checkpoint)
        try:
            unwrapped(self.model).load_state_dict(checkpoint["state_dict"], strict=strict)
        except RuntimeError:
            raise UserError(
                f"{filename} does not fit this model: the settings changed since; start afresh without RESUME=1"
            ) from None
        self._has_loaded = True
        return checkpoint

    def _init_model_weights(self) -> None:
        super()._init_model_weights()
        if self.backbone is not None:
            line = load_into(unwrapped(self.model).backbone, self.backbone)
            self.logger.info(line)
            if self.rank == 0:
                print(line, flush=True)

    def _maybe_compile(self, target: str) -> None:
        # mmengine would compile the whole step, optimiser and logging included; the backbone is the work.
        options = self.cfg.get("compile")
        if options:
            unwrapped(self.model).backbone.compile(**({} if options is True else options))


def seed_of_rank(seed: int, rank: int) -> int:
    """Return the 63-bit seed of one process of a run, which no process of a run of another seed shares.

    NumPy documents SeedSequence to give the same numbers in all its versions.
    """
    return int(np.random.SeedSequence([seed, rank]).generate_state(1, np.uint64)[0] >> 1)


def keep_freed_memory() -> None:
    """Let glibc keep what a step frees for the next one; elsewhere, and beside a GPU, do nothing.

    It would go back to the system after every step, and every page of it be faulted in again (a step of GSG on the
    demo's images took 0.55 s so, and takes 0.48 s).
    """
    if torch.cuda.is_available() or not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # malloc.h: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD; the latter's highest value
        mallopt(-1, 2**31 - 1)
        mallopt(-3, 2**25)


def unwrapped(model: nn.Module) -> Any:
    """Return the model itself, without the wrapper that averages gradients over processes."""
    return model.module if is_model_wrapper(model) else model


def _images_channels_last(preprocessor: nn.Module, arguments: Any, batch: Any) -> Any:
    """Return what a data preprocessor made, with its batches of images (N, C, H, W) channels-last in memory."""
    return apply_to(
        batch,
        lambda value: isinstance(value, Tensor) and value.ndim == 4,
        lambda images: images.contiguous(memory_format=torch.channels_last),
    )


def _require_gpus(launcher: str) -> None:
    """Raise UserError if this machine runs more processes than this one sees GPUs: each takes the GPU of its number."""
    wanted, found = processes(launcher)[1], torch.cuda.device_count()
    if wanted > found:
        remedy = f"set GPUS={found}"
        if launcher == "slurm":
            remedy += f", or let every task see them all (SRUN_ARGS='--gres=gpu:{wanted}', no --gpus-per-task)"
        seen = f"{found} GPU" + "s" * (found != 1)
        raise UserError(f"GPUS={wanted} processes on this machine, but each sees only {seen}; {remedy}")


def _start_gloo(launcher: str) -> None:
    """Join the CPU process group, from the environment that torchrun gives, or Slurm."""
    environment = os.environ
    if launcher == "slurm":
        environment["RANK"], environment["WORLD_SIZE"] = environment["SLURM_PROCID"], environment["SLURM_NTASKS"]
        environment.setdefault("LOCAL_RANK", environment.get("SLURM_LOCALID", "0"))
        environment.setdefault("MASTER_PORT", "29500")
        if "MASTER_ADDR" not in environment:
            command = ["scontrol", "show", "hostnames", environment["SLURM_NODELIST"]]
            environment["MASTER_ADDR"] = subprocess.run(
                command, check=True, capture_output=True, text=True
            ).stdout.split()[0]
    torch.distributed.init_process_group("gloo")


def alone_in(work_dir: Path) -> AbstractContextManager[None]:
    """Return the lock under which one run alone works in `work_dir`; its first process holds it for all.

    Entering raises UserError if another run is at work there.
    """
    return only_here(work_dir) if rank() == 0 else nullcontext()


def build_runner(
    config: Config,
    *,
    settings: str,
    backbone: Checkpoint | None = None,
    resume: bool = False,
    overwrite: bool = False,
    trained: Path | None = None,
) -> Runner:
    """Return a Runner for `config`; with `resume`, continuing from the newest checkpoint of its work_dir.

    `settings` is the config's hash. A run, interrupted or finished, is continued only under the settings it
    began with; a finished one then has no step left to do. A Runner that only tests weights that are `trained`
    leaves the run that they lie beside as it is. Raises UserError if the work_dir holds a run of other
    settings, unless it is to `overwrite` that, and for a config entry that does not exist.
    """
    work_dir = Path(config.work_dir)
    own = trained is not None and trained.parent == work_dir
    others = not own and _is_of_others(work_dir, settings, overwrite)
    found = newest_resume_file(work_dir) if resume and not others and trained is None else None
    config.resume, config.load_from = found is not None, None if found is None else str(found)
    runner = with_config_mistakes_named(lambda: Runner.from_cfg(config))
    runner.backbone, runner.settings = backbone, settings
    if runner.rank == 0:
        for stale in work_dir.glob(".*.part"):  # what a kill left of a checkpoint half written
            stale.unlink(missing_ok=True)
    if runner.rank == 0 and found is None and not own:
        # Only now, when the config has proved sound, is an earlier run's state given up.
        for stale in [*work_dir.glob("*.pth"), work_dir / LOG]:
            stale.unlink(missing_ok=True)
        write_json(work_dir / STATE, {"config_sha256": settings, "finished": False})
    return runner


def train(runner: Runner) -> None:
    """Train to the end and note in the work_dir that the run is finished."""
    with_config_mistakes_named(runner.train)
    mark_finished(runner)


def mark_finished(runner: Runner) -> None:
    """Note in the work_dir that nothing is left to resume."""
    if runner.rank == 0:
        write_json(Path(runner.work_dir) / STATE, {"config_sha256": runner.settings, "finished": True})


def is_finished(work_dir: Path, settings: str) -> bool:
    """Return whether the work_dir holds a finished run of these settings."""
    return _state(work_dir) == {"config_sha256": settings, "finished": True}


def _is_of_others(work_dir: Path, settings: str, overwrite: bool) -> bool:
    """Return whether `work_dir` holds a run of other settings; raise UserError unless it may be overwritten."""
    state = _state(work_dir)
    finished = state.get("finished") is True
    if state.get("config_sha256") == settings or not (finished or any(work_dir.glob("*.pth"))):
        return False
    if not overwrite:
        kind = "a finished" if finished else "an interrupted"
        raise UserError(
            f"{work_dir} holds {kind} run of other settings; restore those to go on with it, {OVERWRITE} to replace "
            "it, or choose another folder by --runs"
        )
    return True


def _state(work_dir: Path) -> dict[str, Any]:
    """Return what the work_dir's `run.json` says; nothing if it is missing or damaged."""
    try:
        state = json.loads((work_dir / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def with_config_mistakes_named(action: Callable[[], T]) -> T:
    """Return `action()`; an exception that a wrong config entry caused becomes a UserError naming it."""
    try:
        return action()
    except (TypeError, KeyError, RuntimeError) as error:
        mistake = mistake_in(error)
        if mistake is None:
            raise
        raise UserError(mistake) from None


def newest_resume_file(work_dir: Path) -> Path | None:
    """Return the resume file of the latest step in `work_dir`, or None."""
    files = resume_files(work_dir)
    return files[-1][1] if files else None


def resume_files(work_dir: Path) -> list[tuple[int, Path]]:
    """Return the resume files in `work_dir` with their numbers of steps or epochs, the latest last."""
    matches = ((re.fullmatch(r"(?:epoch|iter)_(\d+)", file.stem), file) for file in work_dir.glob("*.pth"))
    return sorted((int(found[1]), file) for found, file in matches if found)


def read_resume_file(path: Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Return a Runner's checkpoint, read with `weights_only=True`. Raises UserError when it cannot be read."""
    try:
        content = torch.load(path, map_location=map_location, weights_only=True)
        reason = None if is_whole_zip(path) else "damaged"
    except Exception as error:
        found = re.search(r"Unsupported global: GLOBAL \S+", str(error))
        reason = found[0] if found else "truncated or damaged"
    if reason is not None:
        raise UserError(f"cannot resume from {path} ({reason}); delete it to resume from an earlier one")
    return content


class PlainState(Hook):
    """Keep the Runner's checkpoints free of pickled objects, so that they load with `weights_only=True`.

    mmengine puts its message hub into them as HistoryBuffer objects; here they become lists of numbers on
    saving, and HistoryBuffers again on loading. (Allowing the classes by name would not do: a HistoryBuffer
    pickles `getattr` with it.)
    """

    priority = "LOWEST"

    def before_save_checkpoint(self, runner: MMEngineRunner, checkpoint: dict[str, Any]) -> None:
        """Replace the buffers by (values, counts), and leave out run-time information that is no plain value."""
        hub = checkpoint["message_hub"]
        hub["log_scalars"] = {
            key: [part.tolist() for part in buffer.data] for key, buffer in hub["log_scalars"].items()
        }
        hub["runtime_info"] = {k: v for k, v in hub["runtime_info"].items() if isinstance(v, int | float | str)}
        known = hub["log_scalars"].keys() | hub["runtime_info"].keys()
        hub["resumed_keys"] = {key: value for key, value in hub["resumed_keys"].items() if key in known}
        # NumPy's scalars pass for floats (learning rates are some), but are objects to the unpickler.
        numpy_values = apply_to(checkpoint, lambda x: isinstance(x, np.generic | np.ndarray), lambda x: x.tolist())
        checkpoint.update(numpy_values)

    def after_load_checkpoint(self, runner: MMEngineRunner, checkpoint: dict[str, Any]) -> None:
        """Make the buffers again, and let CheckpointHook know the files there are, of which it keeps the latest."""
        hub = checkpoint["message_hub"]
        hub["log_scalars"] = {key: HistoryBuffer(*parts) for key, parts in hub["log_scalars"].items()}
        for hook in runner.hooks:
            if isinstance(hook, CheckpointHook):
                files = resume_files(Path(runner.work_dir))
                steps = [n for n, file in files if file.name == hook.filename_tmpl.format(n)]
                hub["runtime_info"]["keep_ckpt_ids"] = steps


class RandomState(Hook):
    """Keep every process's random number generators in the checkpoints, so that a resumed run draws on.

    mmengine's own calls come before and after a save on the main process alone; `collect` is called on all.
    """

    def __init__(self) -> None:
        self._states: list[dict[str, torch.Tensor]] = []

    def collect(self) -> None:
        """Gather the generators' states, a byte tensor each, from all processes."""
        state = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            state["cuda"] = torch.cuda.get_rng_state()
        self._states = all_gather_object(state)

    def before_save_checkpoint(self, runner: MMEngineRunner, checkpoint: dict[str, Any]) -> None:
        """Store what was collected: one state a process."""
        checkpoint["random_states"] = self._states

    def after_load_checkpoint(self, runner: MMEngineRunner, checkpoint: dict[str, Any]) -> None:
        """Restore this process's; with another number of processes there is none to restore."""
        states = checkpoint["random_states"]
        if len(states) != runner.world_size:
            return
        state = states[runner.rank]
        torch.set_rng_state(state["cpu"].cpu())
        if "cuda" in state and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["cuda"].cpu())


STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # Ctrl-C, a scheduler, Slurm's --signal


def start_worker(prepare: Callable[[int], None] | None, worker: int) -> None:
    """Prepare a loader's worker, and let it outlive the signals that all processes get: the step needs its batch.

    SIGTERM from its own parent, which is how Python ends its children as it exits, it obeys.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # one that is ignored cannot be waited for
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_obey_parent, daemon=True).start()
    if prepare is not None:
        prepare(worker)


def _obey_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


class StopOnSignal(Hook):
    """On a signal to stop, save after the step and leave, so that the run can resume; at a second Ctrl-C, at once.

    A signal to one of several processes stops all of them after the same step. They ask each other every `POLL`
    steps, because the answer waits for all of their GPUs, and at the end of an epoch.
    """

    POLL = 10

    priority = "LOWEST"  # after the log's line and the schedulers of the step

    def __init__(self) -> None:
        self._received = 0
        self._previous: dict[int, Any] = {}

    def before_train(self, runner: MMEngineRunner) -> None:
        """Take over the signals, where Python lets us: in the main thread."""
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                self._previous[number] = signal.signal(number, self._note)

    def _note(self, number: int, frame: Any) -> None:
        if number == signal.SIGINT and self._received == signal.SIGINT:
            raise KeyboardInterrupt
        self._received = number

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
            # Also where the step was just saved: whether the file is there is not the same to all processes yet.
            runner.save_checkpoint(runner.work_dir, f"iter_{step}.pth", by_epoch=False)
            barrier()  # a launcher ends all processes when the first one leaves
            raise Stopped(received, f"stopped by {signal.Signals(received).name} after step {step}, which is saved")

    def restore(self) -> None:
        """Give the signals back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}


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


class FiniteWeights(Hook):
    """Let no weights into a checkpoint that are no finite numbers."""

    priority = "ABOVE_NORMAL"

    def before_save_checkpoint(self, runner: MMEngineRunner, checkpoint: dict[str, Any]) -> None:
        """Raise UserError, and so save nothing, if a weight is no finite number."""
        for name, value in checkpoint["state_dict"].items():
            if value.is_floating_point() and not value.isfinite().all():
                _stop_for_nan(runner, f"{name} is no longer finite after step {runner.iter + 1}")


def _stop_for_nan(runner: MMEngineRunner, what: str) -> NoReturn:
    good = newest_resume_file(Path(runner.work_dir))
    remedy = f"the last good checkpoint is {good}" if good else "no checkpoint was written yet"
    raise UserError(f"{what}; {remedy}; lower the learning rate, or look at the data, and start again")


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
        self._lengths = _lengths(runner)
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


_SHOWN = ("loss", "lr", "std", "knn", "images_per_s")


def truncate_log(path: Path, step: int, epoch: int | None = None) -> float:
    """Drop the lines of `log.jsonl` beyond `step` and beyond `epoch`, and a last line that a kill cut short.

    Returns the seconds that the run had taken up to the last line kept.

    A checkpoint of an epoch's last step is older than that epoch's line, which the resumed run writes again.
    """
    if not path.is_file():
        return 0.0
    last = float("inf") if epoch is None else epoch
    kept = [line for line in _lines(path) if line["step"] <= step and line.get("epoch", 0) <= last]
    with atomic_path(path) as temporary:
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
    return max((line.get("seconds", 0.0) for line in kept), default=0.0)


def _lines(path: Path) -> list[dict[str, Any]]:
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            break
        if not isinstance(line, dict) or "step" not in line:
            break
        lines.append(line)
    return lines


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


def set_run(config: Config, *, work_dir: Path, seed: int, launcher: str = "none") -> None:
    """Write into `config` what belongs to this run and not to its settings."""
    config.work_dir = str(work_dir)
    config.launcher = launcher
    # mmengine keys its loggers and hubs by name and second; two short runs in one process must not share them.
    config.experiment_name = f"{work_dir.name}-{next(_RUNS)}"
    config.randomness = {**config.get("randomness", {}), "seed": seed}
