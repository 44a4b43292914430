"""The processes of a run: their group, seeds and memory."""

import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def _meeting(launcher: str) -> Iterator[None]:
    """Prepare the environment in which processes meet. Raises UserError naming the place where they cannot."""
    environment = os.environ
    if launcher == "slurm":
        _name_slurm_s_place()
    place = f"MASTER_ADDR={environment.get('MASTER_ADDR')}, MASTER_PORT={environment.get('MASTER_PORT')}"
    try:
        yield
    except (torch.distributed.DistNetworkError, torch.distributed.DistStoreError) as error:
        reason = "that port is taken" if "EADDRINUSE" in str(error) else "they do not reach it"
        raise UserError(f"the processes cannot meet at {place}: {reason}; set both to a place that is free") from None


def _name_slurm_s_place() -> None:
    """Set what torch reads of a process from what Slurm says, unless it is set.

    The port follows from the job and the step, so that those which share a node do not meet each other. It lies below
    the ports that Linux gives away by itself.
    """
    environment = os.environ
    environment["RANK"], environment["WORLD_SIZE"] = environment["SLURM_PROCID"], environment["SLURM_NTASKS"]
    environment.setdefault("LOCAL_RANK", environment.get("SLURM_LOCALID", "0"))
    job, step = (int(environment.get(name, 0)) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    environment.setdefault("MASTER_PORT", str(12000 + (16 * job + step) % 20000))
    if "MASTER_ADDR" not in environment:
        command = ["scontrol", "show", "hostnames", environment.get("SLURM_NODELIST", "")]
        try:
            found = subprocess.run(command, check=True, capture_output=True, text=True)
            environment["MASTER_ADDR"] = found.stdout.split()[0]
        except (OSError, subprocess.CalledProcessError, IndexError) as error:
            said = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[-1]
            raise UserError(f"`{' '.join(command)}` failed: {said}; set MASTER_ADDR to the first node's name") from None
