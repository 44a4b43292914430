"""Logistic regression on a checkpoint's features of one data set. Importing this brings torch."""

from pathlib import Path
from typing import Any

from common.checkpoint import Checkpoint
from common.features import evaluation_transform, extract_features, pick_device, pick_workers
from common.files import sha256_of_file, sha256_of_text, write_json
from common.images import ImageFiles
from common.records import PRECISIONS
from common.run import Measured
from common.sources import SOURCES
from transfer.datasets import Recognition, check_labels, load
from transfer.job import Transfer
from transfer.sweep import Outcome, sweep


def measure(job: Transfer, checkpoint: Checkpoint) -> Measured:
    """Extract the features, choose the weight decay on the validation images, refit, and test (appendix D.1)."""
    spec = SOURCES[job.key.dataset]
    found = load(job.key.dataset, job.folders.data, job.split_file, any_size=job.any_size)
    train, val, classes = found.train, found.val, found.both.classes
    labels = found.both.labels
    check_labels(classes, train=labels[train], val=labels[val], both=labels, test=found.test.labels)
    print(checkpoint.loaded, flush=True)
    transform = evaluation_transform(spec.size, resize=spec.resize)
    workers = pick_workers(len(labels)) if job.workers is None else job.workers
    both, test = (
        extract_features(checkpoint, images, transform, job.feature_cache, workers=workers, amp=job.amp)
        for images in (found.both, found.test)
    )
    device = pick_device()
    where = device if device.type == "cuda" else None
    outcome = sweep(both, train, val, test, spec.metric, device=where)
    _warn(job, outcome)
    split = _write_split(found, job.folders.results / "splits" / f"{job.key.stem}.json") if spec.drawn else {}
    protocol = {
        "C": outcome.c,
        "weight_decay": outcome.weight_decay,
        "grid": len(outcome.weight_decays),
        "fits": outcome.fits,
        "unconverged": outcome.unconverged,
        "winner_converged": outcome.winner_converged,
        "winner_at_edge": outcome.at_edge,
        "metric": spec.metric,
        "validation": outcome.validation,
        "n_train": len(train),
        "n_val": len(val),
        "n_test": len(test.y),
        "classes": len(classes),
        "feature_dim": both.x.shape[1],
        "image_size": spec.size,
        "resize": spec.resize,
        "splits": spec.origin,
        "precision": PRECISIONS[job.amp],
        "any_size": job.any_size,
        **split,
    }
    fingerprint = sha256_of_text(both.fingerprint, str(val.tolist()), test.fingerprint)
    return Measured({spec.metric: outcome.test}, protocol, fingerprint, str(device), _details(outcome))


def _warn(job: Transfer, outcome: Outcome) -> None:
    if not outcome.winner_converged:
        print(f"warning: {job.title}: the chosen fit did not converge", flush=True)
    if outcome.at_edge:
        print(
            f"warning: {job.title}: the best weight decay, {outcome.weight_decay:.2g}, is the last of the grid: a "
            "better one may lie beyond",
            flush=True,
        )


def _details(outcome: Outcome) -> dict[str, Any]:
    """Return what stands behind the metric, as analysis reads it. ECE is in percent."""
    details: dict[str, Any] = {
        "sweep": {
            "weight_decay": outcome.weight_decays,
            "C": outcome.cs,
            "val": outcome.val,
            "iterations": outcome.iterations,
            "converged": outcome.converged,
            "seconds": round(outcome.seconds, 2),
        },
        "refit": {"iterations": outcome.refit_iterations, "converged": outcome.winner_converged},
    }
    if outcome.calibration is not None:
        details["calibration"] = outcome.calibration
    return details


def _write_split(found: Recognition, path: Path) -> dict[str, str]:
    """Write the lists beside the records, for others to use by --split-file; return the protocol's word on them."""
    parts = {"train": found.both, "test": found.test}
    lists = {part: list(images.paths) for part, images in parts.items() if isinstance(images, ImageFiles)}
    write_json(path, lists)
    return {"split_file": f"splits/{path.name}", "split_sha256": sha256_of_file(path)}
