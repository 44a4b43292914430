"""How a step's batch is shared by processes and parts, and what follows from its size."""

import os
from dataclasses import dataclass
from typing import Any

from mmengine.config import Config

from common.errors import UserError

# What a parameter scheduler counts in iterations.
STEPS = {"begin", "end", "milestones", "T_max", "total", "every", "step_size", "total_iters"}


@dataclass(frozen=True)
class Batch:
    """A step's batch as one process sees it; `plan_batch` makes it, `apply` writes it into a config."""

    each: int  # images that a process forwards at once
    workers: int  # of each process's loader
    lr: float
    factor: float  # of schedules that count iterations
    iterations: int | None  # None if training counts epochs
    said: str  # all of this in one line

    def apply(self, config: Config) -> None:
        """Write the plan into the config that it was made from."""
        loader = config.train_dataloader
        loader.batch_size, loader.num_workers = self.each, self.workers
        if self.workers == 0:
            loader.persistent_workers = False  # torch refuses them
        config.optim_wrapper.optimizer.lr = self.lr
        if "auto_scale_lr" in config:
            config.auto_scale_lr.enable = False  # mmengine would scale again
        if self.iterations is not None:
            config.train_cfg.max_iters = self.iterations
        if self.factor != 1:
            for schedule in config.param_scheduler:
                for key in STEPS & schedule.keys():
                    schedule[key] = _times(schedule[key], self.factor)


def plan_batch(
    config: Config, world: int, local: int, *, fixed: bool = False, workers_per_process: bool = False
) -> Batch:
    """Return how `world` processes, `local` of them on this node, share the config's batch. The config stays as it is.

    A config's `batch_size` is the total of a step over all processes and accumulated parts, its `num_workers` the total
    of a node (with `workers_per_process`, that of each process). `auto_scale_lr`, where enabled, names the batch that
    the learning rate and the iterations are meant for: another batch scales the rate in proportion, and iterations,
    milestones and warm-up in inverse proportion (Goyal et al. 2017), so that training sees as many images. Training
    that counts epochs does so anyway. `max_iters` stays where it is `fixed`. Raises UserError when the batch cannot be
    shared evenly.
    """
    loader, parts = config.train_dataloader, config.train_cfg.get("accumulate", 1)
    total, iterations, lr = loader.batch_size, config.train_cfg.get("max_iters"), config.optim_wrapper.optimizer.lr
    if total % (world * parts):
        raise UserError(
            f"config: a batch of {total} images cannot be shared by {world} processes of {parts} parts each; "
            f"make train_dataloader.batch_size a multiple of {world * parts}"
        )
    each = total // (world * parts)
    said = f"batch {total}" + (f" = {world} x {parts} x {each}" if world * parts > 1 else "")
    scaling, base = config.get("auto_scale_lr", {}), total
    if scaling.get("enable"):
        planned, base = lr, scaling.base_batch_size
        lr = planned * total / base
        said += f", learning rate {lr:g} = {planned:g} x {total} / {base}"
    else:
        said += f", learning rate {lr:g}"
    factor = 1.0
    if iterations is not None:
        planned, factor = iterations, base / total
        iterations = planned if fixed else _times(planned, factor)
        said += f", {iterations} iterations"
        if factor != 1:
            said += f" as asked for, schedule x {factor:g}" if fixed else f" = {planned} x {base} / {total}"
    return Batch(
        each=each,
        workers=loader.num_workers if workers_per_process else -(-loader.num_workers // local),
        lr=lr,
        factor=factor,
        iterations=iterations,
        said=said,
    )


def _times(steps: Any, factor: float) -> Any:
    if isinstance(steps, list | tuple):
        return [_times(step, factor) for step in steps]
    return max(round(steps * factor), min(steps, 1))


def processes(launcher: str) -> tuple[int, int]:
    """Return how many processes the launcher started, in all and on this node.

    Raises UserError if it started none.
    """
    if launcher == "none":
        return 1, 1
    started_by = {"pytorch": "torchrun", "slurm": "srun"}[launcher]
    world = "WORLD_SIZE" if launcher == "pytorch" else "SLURM_NTASKS"
    if world not in os.environ:
        raise UserError(f"--launcher {launcher} needs {started_by} to start the processes ({world} is not set)")
    total = int(os.environ[world])
    if launcher == "pytorch":
        return total, int(os.environ.get("LOCAL_WORLD_SIZE", total))
    return total, -(-total // int(os.environ.get("SLURM_NNODES", 1)))
