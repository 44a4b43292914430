"""Add runs to the study on CIFAR-10 (study/protocol.md): the cheapest that its first open question lacks comes first.

make study SCALE=cpu BUDGET=90m ONLY="1a 2a" DATA=data
"""

import argparse
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
from filelock import Timeout

from analysis import study
from analysis.study import QUESTIONS, SCALES, SEEDS, Arm, Question, Scale
from common import cli
from common.checkpoint import Checkpoint
from common.cifar import copy_of_cifar10
from common.errors import Diverged, UserError, last_line
from common.features import pick_device
from common.files import Claim, write_json
from common.log import LOG, read_log
from common.run import Folders, Job, Measured, Subject, record, todo
from pretrain import fit
from pretrain.neighbours import bank_and_queries
from pretrain.neighbours import measure as measure_knn
from pretrain.train import jobs
from transfer.sweep import sweep

VALIDATION = 10  # of every so many training images of a class, one is of the validation set
UNITS = {"s": 1, "m": 60, "h": 3600}


def budget(text: str) -> float:
    """Parse BUDGET: a number of seconds, minutes or hours, as in 300s, 90m and 2h."""
    if not (found := re.fullmatch(r"(\d+)([smh])", text)):
        raise UserError(f"BUDGET is '{text}'; write a number and s, m or h, as in 90m")
    return int(found[1]) * UNITS[found[2]]


def chosen(text: str) -> list[tuple[Question, Arm]]:
    """Parse ONLY: titles of questions (1, 1a) and names of arms; return the arms of each question that it means."""
    words = text.replace(",", " ").split()
    titles = [name for question in QUESTIONS for name in (question.title, str(question.number))]
    names = [arm.name for arm in study.arms()]
    for word in words:
        if word not in (*titles, *names):
            near = get_close_matches(word, [*titles, *names], 1, 0)
            raise UserError(f"ONLY: unknown question or run '{word}'; did you mean '{near[0]}'?")
    asked, named = set(words) & set(titles), set(words) & set(names)
    return [
        (question, arm)
        for question in QUESTIONS
        for arm in question.arms
        if (not asked or {question.title, str(question.number)} & asked) and (not named or arm.name in named)
    ]


def pretrained(arm: Arm, scale: str, seed: int, args: argparse.Namespace) -> Job:
    """Pretrain an arm, or go on where it stopped, and return the job, whose place is the export."""
    settings: Scale = SCALES[scale]
    folder = args.runs / "study" / scale / f"{arm.name}-seed{seed}"
    options = {
        "train_dataloader.batch_size": arm.batch or settings.batch,
        "train_cfg.max_epochs": settings.epochs * max(1, arm.times),
        **settings.options,
    }
    if arm.batch:
        options["auto_scale_lr.enable"] = True
    words = [f"{name}={value}" for name, value in options.items()]
    about = ["--profile", "cifar10", "--method", arm.method, "--seed", str(seed), "--data", str(args.data)]
    places = ["--runs", str(folder), "--checkpoints", str(folder), "--results", str(folder)]
    (job,) = jobs([*about, *places, *settings.arguments, "--resume", "--cfg-options", *words])
    assert job.config is not None
    job.config.default_hooks.checkpoint.interval = settings.saving
    for left in todo([job]):
        fit.pretrain(left)
    return job


def effective_rank(x: np.ndarray) -> float:
    """Return the effective rank of features (N, D), centred (Roy and Vetterli, 2007): between 1 and D, 0 for a point.

    >>> round(effective_rank(np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1]])), 6)
    2.0
    """
    centred = x.astype(np.float64) - x.mean(0, dtype=np.float64)
    sizes = np.sqrt(np.clip(np.linalg.eigvalsh(centred.T @ centred), 0, None))
    if not sizes.sum():
        return 0.0
    shares = sizes[sizes > 0] / sizes.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def validation(labels: np.ndarray) -> np.ndarray:
    """Return which training images (N,) choose the weight decay: the last of every ten of each class, in their order.

    Not of all images: where the classes take turns, as in some copies, these would be of one class.
    """
    held_out = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        held_out[np.flatnonzero(labels == label)[VALIDATION - 1 :: VALIDATION]] = True
    return held_out


def measure(job: Job, checkpoint: Checkpoint) -> Measured:
    """Return kNN and linear accuracy of the checkpoint, with what its training's log says of collapse and time."""
    config: Any = job.config
    knn = measure_knn(job, checkpoint)
    bank, queries = bank_and_queries(checkpoint, config.evaluation, job.feature_cache)
    rows, held_out, device = np.arange(len(bank.y)), validation(bank.y), pick_device()
    on_gpu = device if device.type == "cuda" else None
    linear = sweep(bank, rows[~held_out], rows[held_out], queries, "accuracy", device=on_gpu)
    optimizer = config.optim_wrapper.optimizer
    protocol = dict(knn.protocol) | {
        "epochs": checkpoint.meta["epochs"],
        "batch": config.train_dataloader.batch_size,
        "lr": optimizer.lr,
        "optimizer": optimizer.type,
        "precision": config.optim_wrapper.get("dtype") or "float32",
        "grid": len(linear.weight_decays),
        "copy": copy_of_cifar10(job.folders.data),
    }
    details: dict[str, Any] = {
        "effective_rank": effective_rank(np.asarray(queries.x)),
        "weight_decay": linear.weight_decay,
        "winner_converged": linear.winner_converged,
    }
    if checkpoint.meta["epochs"]:
        lines, _ = read_log(job.work_dir / LOG, ("step", "epoch", "seconds", "std"))
        ends = [line for line in lines if "epoch" in line]
        details |= {
            "std": ends[-1]["std"],
            "even_std": config.model.projector.dim**-0.5,
            "seconds": ends[-1]["seconds"],
            "curve": [[line["epoch"], line["knn"]] for line in ends if "knn" in line],
        }
    metrics = {"knn_top1": knn.metrics["top1"], "linear_top1": linear.test}
    return Measured(metrics, protocol, knn.fingerprint, device.type, details)


def run_cell(arm: Arm, scale: str, seed: int, args: argparse.Namespace) -> None:
    """Do one run of the grid, and write its record. A run that diverges leaves a file that says why."""
    key = study.key(arm, scale, seed)
    try:
        made = pretrained(arm, scale, seed, args)
        job = Job(
            key=key,
            subject=Subject(arm.name, made.place, "make study"),
            settings=made.settings,
            folders=Folders(args.data, made.folders.checkpoints, args.study / "records", made.folders.runs),
            config=made.config,
            work_dir=made.work_dir,
        )
        record(job, measure)
        shutil.rmtree(job.feature_cache, ignore_errors=True)  # hundreds of megabytes, which nothing reads again
    except Diverged as error:
        failed = key.path(args.study / "records").with_suffix(study.FAILED)
        write_json(failed, {"reason": last_line(error)})
        print(f"error: {arm.name}, seed {seed}: {last_line(error)}  -> {failed}", flush=True)


def is_over(arm: Arm, scale: str, seed: int, records: Path) -> bool:
    """Return whether a run has its record, or failed."""
    path = study.key(arm, scale, seed).path(records)
    return path.is_file() or path.with_suffix(study.FAILED).is_file()


def missing(arms: Sequence[tuple[Question, Arm]], scale: str, records: Path) -> Iterator[tuple[Question, Arm, int]]:
    """Yield the runs that are missing: those of the first open question first, and of these the cheapest."""
    for question in QUESTIONS:
        left = [(arm, seed) for asked, arm in arms if asked is question for seed in SEEDS]
        for arm, seed in sorted(left, key=lambda run: (run[0].cost, run[1])):
            if not is_over(arm, scale, seed, records):
                yield question, arm, seed


class Pace:
    """Seconds per unit of an arm's cost, from the runs that this process has done."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.cost = 0

    def add(self, arm: Arm, seconds: float) -> None:
        """Count a run."""
        self.seconds += seconds
        self.cost += arm.cost

    def of(self, arm: Arm) -> float:
        """Return about how long a run takes; 0 before the first."""
        return arm.cost * self.seconds / self.cost if self.cost else 0.0


def work(args: argparse.Namespace) -> None:
    """Do missing runs that no other process does, until none is left or none fits into what the budget leaves."""
    started, pace, records = time.monotonic(), Pace(), args.study / "records"
    while True:
        for question, arm, seed in missing(args.only, args.scale, records):
            if pace.cost and pace.of(arm) > args.budget - (time.monotonic() - started):
                continue
            place = study.key(arm, args.scale, seed).path(records)
            claim = Claim(place.with_name(f".{place.stem}.claim"))
            try:
                claim.acquire()
            except Timeout:
                continue
            try:
                if is_over(arm, args.scale, seed, records):  # since it was listed
                    break
                about = f", about {timedelta(seconds=round(pace.of(arm)))}" if pace.cost else ""
                print(f"\n--- question {question.title}: {arm.name}, seed {seed}{about}", flush=True)
                begun = time.monotonic()
                run_cell(arm, args.scale, seed, args)
                pace.add(arm, time.monotonic() - begun)
            finally:
                claim.release()
            break
        else:
            return
        if time.monotonic() - started > args.budget:
            return


def left(args: argparse.Namespace) -> None:
    """Print how many runs each question has, and the command that goes on."""
    records = args.study / "records"
    print(f"\nscale {args.scale}: {SCALES[args.scale].said}\nquestion  runs")
    for question in QUESTIONS:
        runs = [(arm, seed) for arm in question.arms for seed in SEEDS]
        done = sum(is_over(arm, args.scale, seed, records) for arm, seed in runs)
        print(f"{question.title:<8}  {done:>2} of {len(runs):<3} {question.asks}")
    total = len({(arm, seed) for _, arm, seed in missing(args.only, args.scale, records)})
    print(f"{total} of the runs asked for are left; `make study-report` writes {args.study / 'README.md'}", flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = cli.Parser(
        "tools.study", (__doc__ or "").splitlines()[0], "make study SCALE=cpu BUDGET=90m ONLY='1a simsiam'"
    )
    parser.add_argument("--scale", default="cpu", type=cli.one_of("SCALE", SCALES), help="cpu or gpu")
    parser.add_argument("--budget", default="1000h", type=budget, help="no run is begun that would end after it; 90m")
    parser.add_argument(
        "--only", default="", type=chosen, help="questions and runs, as in '1a simsiam'; all by default"
    )
    parser.add_argument("--data", default="data", type=cli.path, help="root folder of the data sets")
    parser.add_argument("--runs", default="runs", type=cli.path, help="where logs and resumable states live")
    parser.add_argument("--study", default="study", type=cli.path, help="the study's folder")
    args = parser.parse_args(argv)
    print(f"[tools.study] scale={args.scale}  data={args.data.resolve()}  study={args.study.resolve()}", flush=True)
    copy_of_cifar10(args.data)  # so that missing data end the command before a run
    work(args)
    left(args)


if __name__ == "__main__":
    cli.run(main, interrupted="the same command continues")
