"""Evaluate checkpoints on image recognition data sets: `python -m transfer.run --dataset digits`.

Several data sets or checkpoints are a suite, which any number of processes and machines may share by running the same
command on the same results folder.
"""

import argparse
import shlex
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import cli
from common.errors import UNWRITABLE, UserError, last_line
from common.files import sha256_of_file, sha256_of_text, write_json
from common.records import RecordKey, read_record
from common.run import Run, Subject, start_run
from common.sources import SOURCES, NotPublishedError, known, suite
from transfer.datasets import Recognition, check_labels, load, read_split
from transfer.settings import SETTINGS

if TYPE_CHECKING:
    from transfer.sweep import Outcome

MODULE = "transfer.run"
ANY_SIZE = "any-size"  # variant of the records of a data set that is not of the published size
LEASE = 60.0  # seconds without a sign of life after which another machine takes a job over
POLL = 2.0  # seconds between looks at the jobs of others


@dataclass(frozen=True)
class Job:
    """One checkpoint on one data set, which may be a copy of `any_size`."""

    subject: Subject
    dataset: str
    key: RecordKey
    any_size: bool = False

    @property
    def title(self) -> str:
        """What messages call it."""
        return f"{self.subject.name} on {self.dataset}"

    @property
    def images(self) -> int:
        """About what it costs: how many images the data set has, where that is known."""
        return sum(SOURCES[self.dataset].splits.values())


def main(argv: list[str] | None = None) -> None:
    """Run the command line. Raises UserError, after trying all, naming what is missing or failed."""
    argv = sys.argv[1:] if argv is None else argv
    parser = cli.parser(MODULE, __doc__ or "", reads_checkpoint=True)
    parser.add_argument("--dataset", default="all", help="one or several data sets of the profile, or all")
    parser.add_argument(
        "--split-file", type=Path, help="JSON lists of caltech101's train and test images, to use instead"
    )
    parser.add_argument("--amp", nargs="?", const="fp16", choices=("fp16", "bf16"), help="mixed precision features")
    parser.add_argument(
        "--workers",
        type=cli.whole("--workers", 0),
        help="processes that read images (default: the cores, at most 16; for few images none)",
    )
    parser.add_argument(
        "--launcher", default="none", choices=("none", "slurm"), help="slurm: an array job, a task a run"
    )
    parser.add_argument("--sbatch-args", default="", help="more options of sbatch, as one word")
    parser.add_argument("--job", type=int, help="do this one alone, by its number (an array job's tasks)")
    args = parser.parse_args(argv)
    names = _dataset_list(args.dataset, args.profile)
    if args.split_file is not None:
        _check_split_file(args.split_file, names)
    pairs = [(subject, name) for subject in cli.subjects(args) for name in names]
    if args.job is not None:
        if not 0 <= args.job < len(pairs):
            raise UserError(f"--job {args.job} is not one of the {len(pairs)} jobs, 0 to {len(pairs) - 1}")
        pairs = [pairs[args.job]]
    cli.announce(MODULE, args, runs=args.runs)
    other = {name for name in dict.fromkeys(name for _, name in pairs) if _is_of_other_size(name, pairs, args)}
    jobs = [Job(subject, name, _key(subject, name, args, name in other), name in other) for subject, name in pairs]
    if args.launcher == "slurm":
        _submit(jobs, args, argv)
    elif len(jobs) == 1:
        _in_turn(jobs, args, alone=True)
    else:
        _conclude(jobs, _in_turn(jobs, args), args)


def evaluate(job: Job, args: argparse.Namespace) -> None:
    """Leave the record of one job, unless it is there."""
    run = start_run(job.key, job.subject, config_sha256=_settings(job, args), results=args.results)
    if run is not None:
        _evaluate(run, job, args)


def _key(subject: Subject, name: str, args: argparse.Namespace, any_size: bool = False) -> RecordKey:
    """Return a record's name. Its variant keeps it from being mistaken for, or tabled with, the protocol's own."""
    split = None if args.split_file is None else f"split-{sha256_of_file(args.split_file)[:8]}"
    words = [split, ANY_SIZE if any_size else None, args.amp]
    variant = "-".join(word for word in words if word) or None
    return RecordKey(args.profile, "recognition", subject.name, name, args.seed, variant)


def _is_of_other_size(name: str, pairs: Sequence[tuple[Subject, str]], args: argparse.Namespace) -> bool:
    """Whether a data set without records is there, but not the published one, after saying so."""
    if all(_key(subject, name, args).path(args.results).is_file() for subject, of in pairs if of == name):
        return False
    try:
        load(name, args.data, args.split_file)
    except NotPublishedError as error:
        print(f"warning: {last_line(error)}; until then its records are of the variant {ANY_SIZE}", flush=True)
        return True
    except Exception:  # which its job will meet and report, and the other jobs need not
        return False
    return False


def _settings(job: Job, args: argparse.Namespace) -> str:
    split = [] if args.split_file is None else [sha256_of_file(args.split_file)]
    return sha256_of_text(SETTINGS, SOURCES[job.dataset].settings, *split, *([args.amp] if args.amp else []))


def _evaluate(run: Run, job: Job, args: argparse.Namespace) -> None:
    # These bring torch, which a run that is already done need not wait for.
    from common.checkpoint import load_checkpoint
    from common.features import evaluation_transform, extract_features, pick_device, pick_workers
    from transfer.sweep import sweep

    spec = SOURCES[run.key.dataset]
    checkpoint = load_checkpoint(job.subject.path, make_it=job.subject.make_it)
    found = load(run.key.dataset, args.data, args.split_file, any_size=job.any_size)
    train, val, classes = found.train, found.val, found.both.classes
    labels = found.both.labels
    check_labels(classes, train=labels[train], val=labels[val], both=labels, test=found.test.labels)
    print(checkpoint.loaded, flush=True)
    transform, cache = evaluation_transform(spec.size, resize=spec.resize), args.runs / args.profile / "features"
    workers = pick_workers(len(labels)) if args.workers is None else args.workers
    both, test = (
        extract_features(checkpoint, images, transform, cache, workers=workers, amp=args.amp)
        for images in (found.both, found.test)
    )
    device = pick_device()
    where = device if device.type == "cuda" else None
    outcome = sweep(both, train, val, test, spec.metric, device=where)
    split = _write_split(found, args.results / "splits" / f"{run.key.stem}.json") if spec.drawn else {}
    path = run.finish(
        args.results,
        metrics={spec.metric: outcome.test},
        protocol={
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
            "amp": args.amp,
            "any_size": job.any_size,
            **split,
        },
        data_fingerprint=sha256_of_text(both.fingerprint, str(val.tolist()), test.fingerprint),
        device=str(device),
        details=_details(outcome),
    )
    print(
        f"{run.key.model} on {run.key.dataset}: {spec.metric} {outcome.test:.2f} "
        f"(weight decay {outcome.weight_decay:.2g}, {outcome.unconverged} of {outcome.fits} fits unconverged)  {path}",
        flush=True,
    )
    if not outcome.winner_converged:
        print(f"warning: {run.key.model} on {run.key.dataset}: the chosen fit did not converge", flush=True)
    if outcome.at_edge:
        print(
            f"warning: {run.key.model} on {run.key.dataset}: the best weight decay, {outcome.weight_decay:.2g}, is the "
            "last of the grid: a better one may lie beyond",
            flush=True,
        )


def _details(outcome: "Outcome") -> dict[str, Any]:
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


# ---- the suite ----


def _in_turn(jobs: Sequence[Job], args: argparse.Namespace, *, alone: bool = False) -> dict[Job, str]:
    """Do every job that no other process does, whatever happens to the others; wait for those, and do what they left.

    Returns the jobs that failed with the reason, in a line. A job that is `alone` raises its error.
    """
    from filelock import SoftFileLease, Timeout

    leases = {job: SoftFileLease(_lease(job, args), lease_duration=LEASE) for job in jobs}
    for lease in leases.values():
        Path(lease.lock_file).parent.mkdir(parents=True, exist_ok=True)
    failed: dict[Job, str] = {}
    waiting, left, clock = False, list(jobs), Clock(jobs)
    while left:
        before = len(left)
        for job in tuple(left):
            try:
                leases[job].acquire(blocking=False)
            except Timeout:
                continue
            left.remove(job)
            try:
                if not alone:
                    print(f"[{len(jobs) - len(left)}/{len(jobs)}] {job.title}; {clock.said(left, job)}", flush=True)
                with clock.of(job):
                    reason = _attempt(job, args, alone)
            finally:
                leases[job].release()
            if reason is not None:
                failed[job] = reason
        if len(left) == before:
            if not waiting:
                others = ", ".join(job.title for job in left)
                print(f"waiting for other processes, which are at: {others}", flush=True)
            waiting = True
            time.sleep(POLL)
    return failed


def _lease(job: Job, args: argparse.Namespace) -> Path:
    """Return the file whose creation, which succeeds once, claims the job; its holder touches it now and then."""
    record = job.key.path(args.results)
    return record.with_name(f".{record.stem}.claim")


def _attempt(job: Job, args: argparse.Namespace, alone: bool) -> str | None:
    """Do a job; return why it failed, or None."""
    try:
        evaluate(job, args)
    except UserError as error:
        if alone:
            raise
        print(f"error: {job.title}: {last_line(error)}", file=sys.stderr, flush=True)
        return last_line(error)
    except Exception as error:
        if alone or (isinstance(error, OSError) and error.errno in UNWRITABLE):  # which all others would meet, too
            raise
        traceback.print_exc()
        return f"{type(error).__name__}: {error}"
    return None


class Clock:
    """How long the rest of a suite takes, from what its jobs took so far by the number of their images."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._total, self._started = len(jobs), time.monotonic()
        self._seconds = self._images = 0.0

    @contextmanager
    def of(self, job: Job) -> Iterator[None]:
        """Measure a job; one that was done already tells nothing."""
        started = time.monotonic()
        yield
        seconds = time.monotonic() - started
        if seconds > 1:
            self._seconds += seconds
            self._images += job.images

    def said(self, left: Sequence[Job], now: Job) -> str:
        """Return a line's end: the time since the start, and about how long the job `now` and those `left` take."""
        elapsed = timedelta(seconds=round(time.monotonic() - self._started))
        if not self._images:
            return f"{elapsed} so far"
        rest = sum(job.images for job in (now, *left)) * self._seconds / self._images
        return f"{elapsed} so far, about {timedelta(seconds=round(rest))} to go"


def _conclude(jobs: Sequence[Job], failed: Mapping[Job, str], args: argparse.Namespace) -> None:
    """Print the suite's table. Raises UserError naming what is missing or failed."""
    missing = [job for job in failed if _is_missing(job, args)]
    rows = [("", *dict.fromkeys(job.dataset for job in jobs))]
    cells = {(job.subject.name, job.dataset): _cell(job, failed, missing, args) for job in jobs}
    for name in dict.fromkeys(job.subject.name for job in jobs):
        rows.append((name, *(cells[name, dataset] for dataset in rows[0][1:])))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    print()
    if small := [dataset for dataset in rows[0][1:] if any(job.any_size and job.dataset == dataset for job in jobs)]:
        print(f"not of the published size, and of the variant {ANY_SIZE}: {', '.join(small)}")
    for row in rows:
        cells_of_row = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        print("  ".join([row[0].ljust(widths[0]), *cells_of_row]), flush=True)
    if failed:
        kinds = (("missing", missing), ("failed", [job for job in failed if job not in missing]))
        said = "; ".join(f"{kind}: {', '.join(job.title for job in those)}" for kind, those in kinds if those)
        raise UserError(f"{said}; the other {len(jobs) - len(failed)} of {len(jobs)} are recorded")


def _is_missing(job: Job, args: argparse.Namespace) -> bool:
    """Whether the checkpoint or the data set is not there, rather than faulty."""
    return not (job.subject.path.is_file() and (args.data / SOURCES[job.dataset].folder).exists())


def _cell(job: Job, failed: Mapping[Job, str], missing: Sequence[Job], args: argparse.Namespace) -> str:
    if job in failed:
        return "missing" if job in missing else "failed"
    return f"{read_record(job.key.path(args.results))['metrics'][SOURCES[job.dataset].metric]:.2f}"


def _submit(jobs: Sequence[Job], args: argparse.Namespace, argv: Sequence[str]) -> None:
    """Run the jobs as tasks of one Slurm array and wait for it. Raises UserError naming what has no record then."""
    words, skip = [], False
    for word in argv:
        if skip or word in ("--launcher", "--sbatch-args"):
            skip = not skip
        elif not word.startswith(("--launcher=", "--sbatch-args=")):
            words.append(word)
    task = f'{shlex.join([sys.executable, "-m", MODULE, *words])} --job "$SLURM_ARRAY_TASK_ID"'
    logs = args.runs / args.profile / "transfer" / "slurm-%A_%a.log"
    logs.parent.mkdir(parents=True, exist_ok=True)
    array = ["sbatch", "--wait", "--job-name=gsg-transfer", f"--array=0-{len(jobs) - 1}", f"--output={logs}"]
    command = [*array, *shlex.split(args.sbatch_args), f"--wrap={task}"]
    print(shlex.join(command), flush=True)
    try:
        subprocess.run(command, check=False)
    except FileNotFoundError:
        raise UserError("--launcher slurm needs sbatch, which is not on PATH; leave LAUNCHER=slurm out") from None
    failed = {job: "no record" for job in jobs if not _is_recorded(job, args)}
    if failed:
        print(f"what the tasks said is in {logs.parent}", file=sys.stderr)
    _conclude(jobs, failed, args)


def _is_recorded(job: Job, args: argparse.Namespace) -> bool:
    try:
        return start_run(job.key, job.subject, config_sha256=_settings(job, args), results=args.results) is None
    except UserError:
        return False


def _write_split(found: Recognition, path: Path) -> dict[str, str]:
    """Write the lists beside the records, for others to use by --split-file; return the protocol's word on them."""
    from common.images import ImageFiles

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


if __name__ == "__main__":
    cli.run(main, interrupted="the same command continues")
