"""How a step's batch is shared out over processes and parts."""

import os

from mmengine.config import Config

from common.errors import UserError


def share_batch(config: Config, launcher: str) -> str:
    """Make the config's batch and workers those of one process, its learning rate that of the whole batch.

    A config's `batch_size` is the total of a step over all processes and accumulated parts, its `num_workers`
    the total of a node; `auto_scale_lr` holds the batch that the config's learning rate is meant for. Returns
    a line that says what came out. Raises UserError when the batch cannot be shared evenly.
    """
    world, local = processes(launcher)
    loader, parts = config.train_dataloader, config.train_cfg.get("accumulate", 1)
    total = loader.batch_size
    if total % (world * parts):
        raise UserError(
            f"config: a batch of {total} images cannot be shared by {world} processes of {parts} parts each; "
            f"make train_dataloader.batch_size a multiple of {world * parts}"
        )
    loader.batch_size = total // (world * parts)
    loader.num_workers = -(-loader.num_workers // local)
    if loader.num_workers == 0:
        loader.persistent_workers = False  # torch refuses them
    said = f"batch {total}" + (f" = {world} x {parts} x {loader.batch_size}" if world * parts > 1 else "")
    scaling = config.get("auto_scale_lr", {})
    if scaling.get("enable"):
        optimizer, base = config.optim_wrapper.optimizer, scaling.base_batch_size
        scaled = optimizer.lr * total / base
        said += f", learning rate {scaled:g} = {optimizer.lr:g} x {total} / {base}"
        optimizer.lr, scaling.enable = scaled, False
    else:
        said += f", learning rate {config.optim_wrapper.optimizer.lr:g}"
    return said


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
