"""Weighted kNN on the features of a frozen backbone."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.dist import all_gather, all_gather_object, get_world_size
from PIL.Image import Image
from torch import Tensor

from common.checkpoint import Checkpoint
from common.errors import UserError
from common.features import Features, evaluation_transform, extract_features, pick_device
from common.files import sha256_of_text
from common.run import Job, Measured
from pretrain.data import open_images


def nearest_neighbours(
    queries: np.ndarray | Tensor,
    bank: np.ndarray | Tensor,
    k: int,
    *,
    chunk: int = 16384,
    query_chunk: int = 4096,
    device: torch.device | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the cosine similarities and indices, each (Q, k) on `device`, of each query's k nearest rows of `bank`.

    `queries` (Q, D) and `bank` (M, D), float32, of any length: rows are L2-normalised here. Each row of the bank is
    read and sent to the device once, `chunk` rows at a time, so that it may be memory-mapped and larger than any
    memory; the queries and their neighbours so far stay on the device (by default where the queries are). The result
    is exact, in float32: the caller's autocast has no effect, and TF32 applies only if torch is set to use it for
    matrix products. Similarities fall along a row.
    """
    queries = torch.as_tensor(queries, device=device)
    with torch.autocast(queries.device.type, enabled=False):
        parts = F.normalize(queries, dim=1).split(query_chunk)
        best = [part.new_empty((len(part), 0)) for part in parts]
        index = [part.new_empty((len(part), 0), dtype=torch.int64) for part in parts]
        for start, rows in zip(range(0, len(bank), chunk), _sent(bank, chunk, queries.device), strict=True):
            rows = F.normalize(rows, dim=1).T
            for number, part in enumerate(parts):
                near, place = (part @ rows).topk(min(k, rows.shape[1]), dim=1)
                near, place = torch.cat((best[number], near), 1), torch.cat((index[number], place + start), 1)
                best[number], order = near.topk(min(k, near.shape[1]), dim=1)
                index[number] = place.gather(1, order)
    return torch.cat(best), torch.cat(index)


def _sent(bank: np.ndarray | Tensor, chunk: int, device: torch.device) -> Iterator[Tensor]:
    """Yield `bank` on the device, `chunk` rows at a time; the next is read while a GPU computes with one."""
    last = None
    for start in range(0, len(bank), chunk):
        rows = torch.as_tensor(bank[start : start + chunk])
        if device.type == "cuda" and rows.device.type == "cpu":
            pinned = rows.pin_memory()
            if last is not None:
                last.synchronize()  # else the host would pin the whole bank ahead of the GPU
            last = torch.cuda.current_stream(device).record_event()  # after all work queued on the previous chunk
            rows = pinned
        yield rows.to(device, non_blocking=True)


def vote(similarity: Tensor, labels: Tensor, *, temperature: float, num_classes: int) -> Tensor:
    """Return the scores (Q, C): the sum over neighbours of a class of exp(similarity / temperature).

    `similarity` and `labels` (of the neighbours) are (Q, k). PROTOCOLS 3.1.
    """
    weight = (similarity / temperature).exp()
    scores = torch.zeros(len(labels), num_classes, dtype=weight.dtype, device=weight.device)
    return scores.scatter_add_(1, labels, weight)


def knn_accuracy(bank: Features, queries: Features, *, k: int, temperature: float) -> float:
    """Return the top-1 accuracy in percent of weighted kNN on cosine similarity, computed where `pick_device` says.

    Where several processes train together, each calls this with its own part of the bank and all queries,
    and gets the accuracy over the whole bank.
    """
    total = sum(all_gather_object(len(bank.y)))
    if k > total:
        raise UserError(f"config: kNN with k={k} needs at least {k} images, but the bank has {total}; lower k")
    device = pick_device()
    similarity, index = nearest_neighbours(queries.x, bank.x, k, device=device)
    near = torch.as_tensor(bank.y, device=device)[index]
    if get_world_size() > 1:  # the nearest of all are among the nearest of each part, which may hold fewer than k
        missing = (0, k - near.shape[1])
        parts = all_gather(F.pad(similarity, missing, value=-torch.inf)), all_gather(F.pad(near, missing))
        similarity, order = torch.cat(parts[0], 1).topk(k, dim=1)
        near = torch.cat(parts[1], 1).gather(1, order)
    similarity = similarity - similarity.amax(1, keepdim=True)  # the same shares, and no overflow at low temperatures
    scores = vote(similarity, near, temperature=temperature, num_classes=int(near.max()) + 1)
    correct = scores.argmax(1) == torch.as_tensor(queries.y, device=device)
    return 100 * int(correct.sum()) / len(queries.y)


def evaluation_view(settings: Any) -> Callable[[Image], Tensor]:
    """Return the test transform that `settings` (a config's `evaluation`) describes."""
    return evaluation_transform(
        settings["size"], resize=settings["resize"], interpolation=settings.get("interpolation", "bicubic")
    )


def bank_and_queries(checkpoint: Checkpoint, settings: Any, cache: Path) -> tuple[Features, Features]:
    """Return the features of the training and of the test images that `settings` (a config's `evaluation`) names."""
    transform = evaluation_view(settings)
    # Both are opened before hours are spent on one.
    sets = [open_images(split=split, **settings["images"]) for split in ("train", "test")]
    train, test = (
        extract_features(
            checkpoint, images, transform, cache, batch_size=settings["batch_size"], workers=settings["workers"]
        )
        for images in sets
    )
    return train, test


def measure(job: Job, checkpoint: Checkpoint) -> Measured:
    """Return the accuracy of kNN on the checkpoint's features, under the config's `evaluation`."""
    settings: Any = job.config.evaluation  # type: ignore[union-attr]
    print(checkpoint.loaded, flush=True)
    bank, queries = bank_and_queries(checkpoint, settings, job.feature_cache)
    top1 = knn_accuracy(bank, queries, k=settings["k"], temperature=settings["temperature"])
    protocol = {
        "k": settings["k"],
        "temperature": settings["temperature"],
        "n_train": len(bank.y),
        "n_test": len(queries.y),
    }
    return Measured({"top1": top1}, protocol, sha256_of_text(bank.fingerprint, queries.fingerprint), pick_device().type)
