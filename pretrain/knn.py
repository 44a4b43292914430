"""Weighted kNN on frozen features: the standard evaluation without training.

make knn METHOD=simsiam_gsg
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import cli
from common.cli import add_options_argument
from common.config import config_sha256, join_data, load_config
from common.errors import UserError
from common.records import RecordKey
from common.run import Subject, start_run
from pretrain.data import label, use_folder

if TYPE_CHECKING:
    import numpy as np
    import torch
    from mmengine.config import Config
    from PIL.Image import Image
    from torch import Tensor

    from common.checkpoint import Checkpoint
    from common.features import Features

CONFIGS = Path(__file__).parent / "configs"


def nearest_neighbours(
    queries: "np.ndarray | Tensor",
    bank: "np.ndarray | Tensor",
    k: int,
    *,
    chunk: int = 16384,
    query_chunk: int = 4096,
    device: "torch.device | None" = None,
) -> "tuple[Tensor, Tensor]":
    """Return the cosine similarities and indices, each (Q, k) on `device`, of each query's k nearest rows of `bank`.

    `queries` (Q, D) and `bank` (M, D), float32, of any length: rows are L2-normalised here. Each row of the bank is
    read and sent to the device once, `chunk` rows at a time, so that it may be memory-mapped and larger than any
    memory; the queries and their neighbours so far stay on the device (by default where the queries are). The result
    is exact, in float32: an autocast of the caller's has no effect, and TF32 only where torch was told to use it for
    matrix products. Similarities fall along a row.
    """
    import torch
    import torch.nn.functional as F

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


def _sent(bank: "np.ndarray | Tensor", chunk: int, device: "torch.device") -> "Iterator[Tensor]":
    """Yield `bank` on the device, `chunk` rows at a time; the next is read while a GPU computes with one."""
    import torch

    last = None
    for start in range(0, len(bank), chunk):
        rows = torch.as_tensor(bank[start : start + chunk])
        if device.type == "cuda" and rows.device.type == "cpu":
            pinned = rows.pin_memory()
            if last is not None:
                last.synchronize()  # else the host would pin the whole bank ahead of the GPU
            last = torch.cuda.current_stream(device).record_event()  # after all that was asked of the chunk before
            rows = pinned
        yield rows.to(device, non_blocking=True)


def vote(similarity: "Tensor", labels: "Tensor", *, temperature: float, num_classes: int) -> "Tensor":
    """Return the scores (Q, C): the sum over neighbours of a class of exp(similarity / temperature).

    `similarity` and `labels` (of the neighbours) are (Q, k). PROTOCOLS 3.1.
    """
    import torch

    weight = (similarity / temperature).exp()
    scores = torch.zeros(len(labels), num_classes, dtype=weight.dtype, device=weight.device)
    return scores.scatter_add_(1, labels, weight)


def knn_accuracy(bank: "Features", queries: "Features", *, k: int, temperature: float) -> float:
    """Return the top-1 accuracy in percent of weighted kNN on cosine similarity, computed where `pick_device` says.

    Where several processes train together, each calls this with its own part of the bank and all queries,
    and gets the accuracy over the whole bank.
    """
    import torch
    import torch.nn.functional as F
    from mmengine.dist import all_gather, all_gather_object, get_world_size

    from common.features import pick_device

    total = sum(all_gather_object(len(bank.y)))
    if k > total:
        raise UserError(f"config: kNN with k={k} needs as many images, the bank has {total}; lower k")
    device = pick_device()
    similarity, index = nearest_neighbours(queries.x, bank.x, k, device=device)
    near = torch.as_tensor(bank.y, device=device)[index]
    if get_world_size() > 1:  # the nearest of all are among the nearest of each part, which may hold fewer than k
        missing = (0, k - near.shape[1])
        parts = all_gather(F.pad(similarity, missing, value=-torch.inf)), all_gather(F.pad(near, missing))
        similarity, order = torch.cat(parts[0], 1).topk(k, dim=1)
        near = torch.cat(parts[1], 1).gather(1, order)
    scores = vote(similarity, near, temperature=temperature, num_classes=int(near.max()) + 1)
    correct = scores.argmax(1) == torch.as_tensor(queries.y, device=device)
    return 100 * int(correct.sum()) / len(queries.y)


def evaluation_view(settings: Any) -> "Callable[[Image], Tensor]":
    """Return the test transform that `settings` (a config's `evaluation`) describes."""
    from common.features import evaluation_transform

    return evaluation_transform(
        settings["size"], resize=settings["resize"], interpolation=settings.get("interpolation", "bicubic")
    )


def bank_and_queries(checkpoint: "Checkpoint", settings: Any, cache: Path) -> "tuple[Features, Features]":
    """Return the features of the training and of the test images that `settings` (a config's `evaluation`) names."""
    from common.features import extract_features
    from pretrain.data import open_images

    transform = evaluation_view(settings)
    sets = [open_images(split=split, **settings["images"]) for split in ("train", "test")]  # both, before hours on one
    train, test = (
        extract_features(
            checkpoint, images, transform, cache, batch_size=settings["batch_size"], workers=settings["workers"]
        )
        for images in sets
    )
    return train, test


def evaluate(args: argparse.Namespace, subject: Subject, config: "Config") -> None:
    """Evaluate one checkpoint and write its record."""
    sha = config_sha256(config)
    config = join_data(config, args.data_root or args.data)
    settings = config.evaluation
    key = RecordKey(args.profile, "knn", subject.name, label(settings["images"]), args.seed)
    run = start_run(key, subject, config_sha256=sha, results=args.results)
    if run is None:
        return
    from common.checkpoint import load_checkpoint
    from common.features import pick_device
    from common.files import sha256_of_text

    checkpoint = load_checkpoint(subject.path, make_it=subject.make_it)
    print(checkpoint.loaded, flush=True)
    bank, queries = bank_and_queries(checkpoint, settings, args.runs / args.profile / "features")
    top1 = knn_accuracy(bank, queries, k=settings["k"], temperature=settings["temperature"])
    protocol = {
        "k": settings["k"],
        "temperature": settings["temperature"],
        "n_train": len(bank.y),
        "n_test": len(queries.y),
    }
    path = run.finish(
        args.results,
        metrics={"top1": top1},
        protocol=protocol,
        data_fingerprint=sha256_of_text(bank.fingerprint, queries.fingerprint),
        device=pick_device().type,
    )
    print(f"{subject.name}: kNN top-1 {top1:.2f} %  ({path})", flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Run kNN for every method that the arguments name."""
    parser = cli.parser("pretrain.knn", "weighted kNN on frozen features", reads_checkpoint=True)
    add_options_argument(parser)
    parser.add_argument("--data-root", type=Path, help="this ImageFolder's train/ as the bank, val/ as queries")
    args = parser.parse_args(argv)
    cli.announce("pretrain.knn", args, checkpoints=args.checkpoints)
    config = load_config(CONFIGS / args.profile / "knn.py", options=args.cfg_options)
    if args.data_root is not None:
        use_folder(config, args.data_root)
    for subject in cli.subjects(args):
        evaluate(args, subject, config)


if __name__ == "__main__":
    cli.run(main)
