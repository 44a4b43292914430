"""Evaluate a checkpoint on image recognition data sets: `python -m transfer.run --dataset digits`."""

import argparse
import os
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

from common import cli
from common.cli import Subject, UserError
from common.files import sha256_of_file, sha256_of_text, write_json
from common.records import RecordKey, Run, start_run
from transfer.datasets import DATASETS, Recognition, known, load, read_split, suite
from transfer.sweep import SETTINGS, WEIGHT_DECAYS, Part, check_labels, sweep

MODULE = "transfer.run"


def main(argv: list[str] | None = None) -> None:
    """Run the command line. Raises UserError, after trying all, naming the runs that failed."""
    parser = cli.parser(MODULE, __doc__ or "", reads_checkpoint=True)
    parser.add_argument("--dataset", default="all", help="one or several data sets of the profile, or all")
    parser.add_argument(
        "--split-file", type=Path, help="JSON lists of caltech101's train and test images, to use instead"
    )
    args = parser.parse_args(argv)
    names = _dataset_list(args.dataset, args.profile)
    if args.split_file is not None:
        _check_split_file(args.split_file, names)
    cli.announce(MODULE, args, runs=args.runs)
    subjects = cli.subjects(args)
    _run_all({f"{s.name} on {name}": partial(evaluate, s, name, args) for s in subjects for name in names})


def evaluate(subject: Subject, dataset: str, args: argparse.Namespace) -> None:
    """Leave the record of one checkpoint on one data set, unless it is there."""
    spec = DATASETS[dataset]
    split = [] if args.split_file is None else [sha256_of_file(args.split_file)]
    variant = f"split-{split[0][:8]}" if split else None  # never mistaken for, nor tabled with, our own split
    key = RecordKey(args.profile, "recognition", subject.name, dataset, args.seed, variant)
    config = sha256_of_text(SETTINGS, spec.settings, *split)
    run = start_run(key, subject, config_sha256=config, results=args.results)
    if run is not None:
        _evaluate(run, subject, args)


def _evaluate(run: Run, subject: Subject, args: argparse.Namespace) -> None:
    # These bring torch, which a run that is already done need not wait for.
    from common.checkpoint import load_checkpoint
    from common.data import evaluation_transform
    from common.features import extract_features, pick_device

    spec = DATASETS[run.key.dataset]
    found = load(run.key.dataset, args.data, args.split_file)
    train, val, classes = found.train, found.val, found.both.classes
    labels = found.both.labels
    check_labels(classes, train=labels[train], val=labels[val], both=labels, test=found.test.labels)
    checkpoint = load_checkpoint(subject.path, make_it=subject.make_it)
    print(checkpoint.loaded, flush=True)
    transform = evaluation_transform(spec.size, resize=spec.resize)
    workers = 0 if args.profile == "demo" else min(16, os.cpu_count() or 1)
    both, test = (
        extract_features(checkpoint, images, transform, args.runs / args.profile / "features", workers=workers)
        for images in (found.both, found.test)
    )
    outcome = sweep(
        Part(both.x[train], both.y[train]),
        Part(both.x[val], both.y[val]),
        Part(both.x, both.y),
        Part(test.x, test.y),
        spec.metric,
    )
    split = _write_split(found, args.results / "splits" / f"{run.key.stem}.json") if spec.drawn else {}
    path = run.finish(
        args.results,
        metrics={spec.metric: outcome.test},
        protocol={
            "C": outcome.c,
            "weight_decay": outcome.weight_decay,
            "grid": len(WEIGHT_DECAYS),
            "fits": outcome.fits,
            "unconverged": outcome.unconverged,
            "metric": spec.metric,
            "validation": outcome.validation,
            "n_train": len(train),
            "n_val": len(val),
            "n_test": len(test.y),
            "classes": len(classes),
            "feature_dim": both.x.shape[1],
            "image_size": spec.size,
            "resize": spec.resize,
            "splits": spec.splits,
            **split,
        },
        data_fingerprint=sha256_of_text(both.fingerprint, str(val.tolist()), test.fingerprint),
        device=str(pick_device()),
    )
    print(
        f"{run.key.model} on {run.key.dataset}: {spec.metric} {outcome.test:.2f} "
        f"(weight decay {outcome.weight_decay:.2g}, {outcome.unconverged} of {outcome.fits} fits unconverged)  {path}",
        flush=True,
    )


def _write_split(found: Recognition, path: Path) -> dict[str, str]:
    """Write the lists beside the records, for others to use by --split-file; return the protocol's word on them."""
    from common.data import ImageFiles

    parts = {"train": found.both, "test": found.test}
    lists = {part: list(images.paths) for part, images in parts.items() if isinstance(images, ImageFiles)}
    write_json(path, lists)
    return {"split_file": f"splits/{path.name}", "split_sha256": sha256_of_file(path)}


def _check_split_file(path: Path, names: list[str]) -> None:
    if names != ["caltech101"]:
        raise UserError(f"--split-file {path} lists images of caltech101: use it with DATASET=caltech101 alone")
    read_split(path)


def _dataset_list(text: str, profile: str) -> list[str]:
    words = suite(profile) if text == "all" else text.replace(",", " ").split()
    check = cli.one_of("DATASET", (*known(profile), "all"))
    return [check(word) for word in words] or [check("")]


def _run_all(jobs: dict[str, Callable[[], None]]) -> None:
    """Do every job, whatever happens to the others, and then raise UserError naming those that failed."""
    if len(jobs) == 1:
        next(iter(jobs.values()))()
        return
    failed = []
    for title, job in jobs.items():
        try:
            job()
        except UserError as error:
            print(f"error: {title}: {error}", file=sys.stderr, flush=True)
            failed.append(title)
        except Exception:
            traceback.print_exc()
            failed.append(title)
    if failed:
        raise UserError(f"failed: {', '.join(failed)}; the other {len(jobs) - len(failed)} of {len(jobs)} are recorded")


if __name__ == "__main__":
    cli.run(main)
