"""The processes of a run: their group, seeds and memory."""

import ctypes
import os
import subprocess
import sys
from typing import Any

import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from mmengine.model import is_model_wrapper
from torch import nn

from common.engine.batch import processes
from common.errors import UserError


def seed_of_rank(seed: int, rank: int) -> int:
    """Return the 63-bit seed of one process of a run, which no process of a run of another seed shares.

    NumPy documents SeedSequence to give the same numbers in all its versions.
    """
    return int(np.random.SeedSequence([seed, rank]).generate_state(1, np.uint64)[0] >> 1)


def keep_freed_memory() -> None:
    """Let glibc keep the memory that a step frees for the next one; elsewhere, and where there is a GPU, do nothing.

    By default the memory goes back to the system after every step, and every page must be faulted in again: a step of
    GSG on the demo's images took 0.55 s that way, and takes 0.48 s.
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


class GatheredMetric(BaseMetric):
    """A metric whose results are gathered through the process group."""

    def __init__(self, collect_device: str = "gpu", **kwargs: Any) -> None:
        # mmengine calls the process group "gpu", even on CPUs; "cpu" means a folder that all nodes would have to share.
        super().__init__(collect_device=collect_device, **kwargs)


def _require_gpus(launcher: str) -> None:
    """Raise UserError if this machine runs more processes than this one sees GPUs; process n takes GPU n."""
    wanted, visible = processes(launcher)[1], torch.cuda.device_count()
    if wanted > visible:
        remedy = f"set GPUS={visible}"
        if launcher == "slurm":
            remedy += f", or let every task see them all (SRUN_ARGS='--gres=gpu:{wanted}', no --gpus-per-task)"
        seen = f"{visible} GPU" + "s" * (visible != 1)
        raise UserError(f"GPUS={wanted} processes on this machine, but each sees only {seen}; {remedy}")


def _start_gloo(launcher: str) -> None:
    """Join the CPU process group that torchrun's or Slurm's environment describes."""
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
