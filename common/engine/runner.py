"""mmengine's Runner as every trainer uses it: safe and atomic checkpoints, quiet console, progress."""

import importlib
import itertools
import json
import logging
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import is_distributed
from mmengine.logging import MMLogger
from mmengine.model import MMDistributedDataParallel
from mmengine.registry import VISBACKENDS
from mmengine.runner import Runner as MMEngineRunner
from mmengine.utils import apply_to
from mmengine.visualization import WandbVisBackend
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn
from torch.utils.data import DataLoader

from common.checkpoint import Checkpoint, load_into
from common.config import mistake_in
from common.engine.processes import _meeting, _require_gpus, keep_freed_memory, seed_of_rank, unwrapped
from common.engine.progress import Progress, StepOutputs
from common.engine.resume import PlainState, RandomState, newest_resume_file, read_resume_file
from common.engine.stopping import FiniteWeights, StopOnSignal, start_worker
from common.errors import UserError, rank
from common.files import atomic_path, only_here, write_json
from common.log import LOG
from common.names import OVERWRITE

STATE = "run.json"  # the hash of the settings that the work_dir belongs to, and whether its run is finished

T = TypeVar("T")

_RUNS = itertools.count()


class Runner(MMEngineRunner):
    """mmengine's Runner with checkpoints written atomically and read as data, never as code.

    `backbone` is loaded into `model.backbone` after the weights are initialised; a resumed run then replaces it
    with its own state.
    """

    backbone: Checkpoint | None = None
    settings: str = ""

    def build_logger(self, log_level: int | str = "INFO", log_file: str | None = None, **kwargs: Any) -> MMLogger:
        """Return mmengine's logger, which writes everything to the file, but only errors to the console.

        A file that cannot be written raises OSError; logging itself would print a traceback and go on.
        """
        logger = super().build_logger(log_level, log_file, **kwargs)
        for handler in logger.handlers:
            if isinstance(handler, logging.FileHandler):
                handler.handleError = _raise  # type: ignore[method-assign]
            else:
                handler.setLevel(logging.ERROR)
        return logger

    def register_hooks(self, *args: Any, **kwargs: Any) -> None:
        """Register the config's hooks, and those that safe and exact resuming needs."""
        super().register_hooks(*args, **kwargs)
        for hook in (RandomState(), PlainState(), StopOnSignal(), FiniteWeights()):
            self.register_hook(hook)

    def train(self) -> Any:
        """Train as mmengine does. However it ends, the progress bar is closed, so that an error has its own line."""
        try:
            return super().train()
        finally:
            self._end_workers()
            self.close_progress()
            for hook in self.hooks:
                if isinstance(hook, StopOnSignal):
                    hook.restore()

    def _end_workers(self) -> None:
        """End the workers that the training loader keeps; Python would wait for them at exit."""
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
        """Save as mmengine does, but atomically: a kill or a full disk leaves the previous file whole.

        Raises UserError, and saves nothing, if the loss or a weight is not finite.
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
        """Start the process group: mmengine's on GPUs, gloo on CPUs, which mmengine does not offer.

        Raises UserError if a machine has fewer GPUs than processes.
        """
        keep_freed_memory()
        if self.cfg.get("randomness", {}).get("deterministic"):
            # cuBLAS reads this when it starts; without it torch refuses deterministic training.
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        if not self.distributed or is_distributed():
            super().setup_env(env_cfg)
            return
        if torch.cuda.is_available():
            _require_gpus(self.launcher)
        with _meeting(self.launcher):
            if not torch.cuda.is_available():
                torch.distributed.init_process_group("gloo")
            super().setup_env(env_cfg)

    @staticmethod
    def build_dataloader(dataloader: Any, *args: Any, **kwargs: Any) -> DataLoader:
        """Build as mmengine does, with workers that leave stop signals to the main process.

        Batches for a GPU are pinned unless the config says otherwise, so that copying them can overlap its work.
        """
        if isinstance(dataloader, dict):
            gpu = torch.cuda.is_available()  # without one, torch would warn about pinning
            dataloader = {**dataloader, "pin_memory": gpu and dataloader.get("pin_memory", True)}
        loader = MMEngineRunner.build_dataloader(dataloader, *args, **kwargs)
        loader.worker_init_fn = partial(start_worker, loader.worker_init_fn)
        return loader

    def wrap_model(self, model_wrapper_cfg: dict[str, Any] | None, model: nn.Module) -> nn.Module:
        """Wrap as mmengine does, but on CPUs without SyncBN, which needs GPUs.

        From here on every process draws its own random numbers, so that GSG's references differ between them.
        """
        if self.cfg.get("channels_last"):
            model = model.to(memory_format=torch.channels_last)
            # Converted once for all networks and the backward pass; otherwise cuDNN would convert in each.
            model.get_submodule("data_preprocessor").register_forward_hook(_images_channels_last)
        gpu = torch.cuda.is_available()
        if not self.distributed or (gpu and model_wrapper_cfg is not None):
            model = super().wrap_model(model_wrapper_cfg, model)
        else:
            if self.cfg.get("sync_bn") and gpu:
                # timm's, because mmengine's loses the activations that some of timm's networks have inside BN layers.
                model = convert_sync_batchnorm(model)
            elif self.cfg.get("sync_bn") and self.rank == 0:
                print("each CPU process takes its own BN statistics; SyncBN needs GPUs", flush=True)
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
                f"{filename} does not fit this model: the settings have changed; start afresh without RESUME=1"
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
        # mmengine would compile the whole step with optimiser and logging, but the backbone is most of the work.
        options = self.cfg.get("compile")
        if options:
            unwrapped(self.model).backbone.compile(**({} if options is True else options))


def _raise(record: logging.LogRecord) -> None:
    raise  # what logging has caught


def _images_channels_last(preprocessor: nn.Module, arguments: Any, batch: Any) -> Any:
    """Return a data preprocessor's `batch` with its images (N, C, H, W) channels-last in memory."""
    return apply_to(
        batch,
        lambda value: isinstance(value, Tensor) and value.ndim == 4,
        lambda images: images.contiguous(memory_format=torch.channels_last),
    )


def alone_in(work_dir: Path) -> AbstractContextManager[None]:
    """Return the lock that keeps other runs out of `work_dir`; a run's first process holds it for all.

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
    began with; a finished one then has no step left. `trained` is a file of weights to test: its own run stays as
    it is. Raises UserError if the work_dir holds a run of other settings, unless `overwrite`, and for a config
    entry that does not exist.
    """
    work_dir = Path(config.work_dir)
    own = trained is not None and trained.parent == work_dir
    others = not own and _is_of_others(work_dir, settings, overwrite)
    resumed = newest_resume_file(work_dir) if resume and not others and trained is None else None
    config.resume, config.load_from = resumed is not None, None if resumed is None else str(resumed)
    runner = with_config_mistakes_named(lambda: Runner.from_cfg(config))
    runner.backbone, runner.settings = backbone, settings
    if runner.rank == 0:
        for stale in work_dir.glob(".*.part"):  # checkpoints half-written at a kill
            stale.unlink()
    if runner.rank == 0 and resumed is None and not own:
        # An earlier run's state is given up only now that the config has proved sound.
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
            f"{work_dir} holds {kind} run of other settings; restore those (files of DATA_ROOT count, too) to "
            f"continue it, {OVERWRITE} to replace it, or choose another folder by --runs"
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
    except (TypeError, KeyError, ValueError, RuntimeError) as error:
        mistake = mistake_in(error)
        if mistake is None:
            raise
        raise UserError(mistake) from None


def set_run(config: Config, *, work_dir: Path, seed: int, launcher: str = "none", logger: str | None = None) -> None:
    """Write into `config` what belongs to this run but not to its settings; a `logger` is one of names.LOGGERS."""
    config.work_dir = str(work_dir)
    config.launcher = launcher
    # mmengine keys its loggers and hubs by name and second; two short runs in one process must not share them.
    config.experiment_name = f"{work_dir.name}-{next(_RUNS)}"
    config.randomness = {**config.get("randomness", {}), "seed": seed}
    if logger is not None:
        config.visualizer.vis_backends.append(_backend(logger, "/".join(work_dir.parts[-3:])))


@VISBACKENDS.register_module()
class Wandb(WandbVisBackend):
    """mmengine's backend, on the run's own steps, and without its upload of every Python file below the folder."""

    def add_config(self, config: Config, **_: Any) -> None:
        """Send the config alone."""
        self.experiment.config.update(config.to_dict(), allow_val_change=True)

    def add_scalars(self, scalar_dict: dict[str, Any], step: int = 0, *_: Any, **__: Any) -> None:
        """Send the numbers of a step."""
        self.experiment.log({**scalar_dict, "step": step})


def _backend(logger: str, name: str) -> dict[str, Any]:
    """Return mmengine's backend for a logger, with `name` for the run."""
    if logger == "wandb":
        steps = [{"name": "*", "step_metric": "step"}]
        return {"type": "Wandb", "init_kwargs": {"project": "gsg", "name": name}, "define_metric_cfg": steps}
    # Without an address, mmengine would open a store inside the folder of each run.
    address = importlib.import_module("mlflow").get_tracking_uri()
    return {"type": "MLflowVisBackend", "exp_name": "gsg", "run_name": name, "tracking_uri": address}
