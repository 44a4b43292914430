"""Two processes that share a process group and nothing else."""

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed


def in_two_processes(folder: Path, work: Callable[[int], Any]) -> list[Any]:
    """Return work(0) and work(1), called in two gloo processes, each in an empty folder of its own; both stay empty."""
    context = multiprocessing.get_context("fork")
    results: Any = context.Queue()

    def run(rank: int) -> None:
        torch.set_num_threads(1)
        (folder / str(rank)).mkdir()
        os.chdir(folder / str(rank))
        torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
        results.put((rank, work(rank), os.listdir()))
        torch.distributed.destroy_process_group()

    processes = [context.Process(target=run, args=(rank,), daemon=True) for rank in range(2)]
    for process in processes:
        process.start()
    found = sorted(results.get(timeout=60) for _ in processes)
    for process in processes:
        process.join()
    assert [left for *_, left in found] == [[], []]
    return [result for _, result, _ in found]
