"""Many transfer runs: in turn, shared by any number of processes and machines, or as an array of Slurm jobs."""

import shlex
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from common.errors import FULL, UserError, blamed, last_line, lost_worker
from common.files import Claim
from common.records import read_record
from common.run import record, todo
from common.sources import SOURCES
from transfer.job import Transfer

MODULE = "transfer.run"
NAME = "gsg-transfer"  # of Slurm's array
ANY_SIZE = "any-size"  # variant of the records of a data set that is not of the published size
POLL = 2.0  # seconds between looks at the jobs of others


def in_turn(jobs: Sequence[Transfer], *, alone: bool = False) -> dict[Transfer, str]:
    """Do every job that no other process does, whatever happens to the others; wait for those, and do what they left.

    Returns the jobs that failed with the reason, in a line. A job that is `alone` raises its error.
    """
    from filelock import Timeout

    claims = {job: Claim(_claim(job)) for job in jobs}
    failed: dict[Transfer, str] = {}
    waiting, left, clock = False, list(jobs), Clock(jobs)
    while left:
        before = len(left)
        for job in tuple(left):
            try:
                claims[job].acquire()
            except Timeout:
                continue
            left.remove(job)
            try:
                if not alone:
                    print(f"[{len(jobs) - len(left)}/{len(jobs)}] {job.title}; {clock.said(left, job)}", flush=True)
                with clock.of(job):
                    reason = _attempt(job, alone)
            finally:
                claims[job].release()
            if reason is not None:
                failed[job] = reason
        if len(left) == before:
            if not waiting:
                others = ", ".join(job.title for job in left)
                print(f"waiting for other processes, which are at: {others}", flush=True)
            waiting = True
            time.sleep(POLL)
    return failed


def _claim(job: Transfer) -> Path:
    return job.place.with_name(f".{job.place.stem}.claim")


def _attempt(job: Transfer, alone: bool) -> str | None:
    """Do a job; return why it failed, or None."""
    try:
        if todo([job]):
            from transfer.measure import measure

            record(job, measure)
    except UserError as error:
        if alone:
            raise
        print(f"error: {job.title}: {last_line(error)}", file=sys.stderr, flush=True)
        return last_line(error)
    except Exception as error:
        if alone or (isinstance(error, OSError) and error.errno in FULL):  # which all others would meet, too
            raise
        if line := blamed(error) or lost_worker(error):
            print(f"error: {job.title}: {line}", file=sys.stderr, flush=True)
            return line
        traceback.print_exc()
        return f"{type(error).__name__}: {error}"
    return None


class Clock:
    """How long the rest of a suite takes, from what its jobs took so far by the number of their images."""

    def __init__(self, jobs: Sequence[Transfer]) -> None:
        self._total, self._started = len(jobs), time.monotonic()
        self._seconds = self._images = 0.0

    @contextmanager
    def of(self, job: Transfer) -> Iterator[None]:
        """Measure a job; one that was done already tells nothing."""
        started = time.monotonic()
        yield
        seconds = time.monotonic() - started
        if seconds > 1:
            self._seconds += seconds
            self._images += job.images

    def said(self, left: Sequence[Transfer], now: Transfer) -> str:
        """Return a line's end: the time since the start, and about how long the job `now` and those `left` take."""
        elapsed = timedelta(seconds=round(time.monotonic() - self._started))
        if not self._images:
            return f"{elapsed} so far"
        rest = sum(job.images for job in (now, *left)) * self._seconds / self._images
        return f"{elapsed} so far, about {timedelta(seconds=round(rest))} to go"


def conclude(jobs: Sequence[Transfer], failed: Mapping[Transfer, str]) -> None:
    """Print the suite's table. Raises UserError naming what is missing or failed."""
    missing = [job for job in failed if _is_missing(job)]
    rows = [("", *dict.fromkeys(job.key.dataset for job in jobs))]
    cells = {(job.subject.name, job.key.dataset): _cell(job, failed, missing) for job in jobs}
    for name in dict.fromkeys(job.subject.name for job in jobs):
        rows.append((name, *(cells[name, dataset] for dataset in rows[0][1:])))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    print()
    if small := [
        dataset for dataset in rows[0][1:] if any(job.any_size and job.key.dataset == dataset for job in jobs)
    ]:
        print(f"not of the published size, and of the variant {ANY_SIZE}: {', '.join(small)}")
    for row in rows:
        cells_of_row = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        print("  ".join([row[0].ljust(widths[0]), *cells_of_row]), flush=True)
    if failed:
        kinds = (("missing", missing), ("failed", [job for job in failed if job not in missing]))
        said = "; ".join(f"{kind}: {', '.join(job.title for job in those)}" for kind, those in kinds if those)
        raise UserError(f"{said}; the other {len(jobs) - len(failed)} of {len(jobs)} are recorded")


def _is_missing(job: Transfer) -> bool:
    """Whether the checkpoint or the data set is not there, rather than faulty."""
    return not (job.subject.path.is_file() and (job.folders.data / SOURCES[job.key.dataset].folder).exists())


def _cell(job: Transfer, failed: Mapping[Transfer, str], missing: Sequence[Transfer]) -> str:
    if job in failed:
        return "missing" if job in missing else "failed"
    return f"{read_record(job.place)['metrics'][SOURCES[job.key.dataset].metric]:.2f}"


def submit(jobs: Sequence[Transfer], argv: Sequence[str], sbatch_args: str) -> None:
    """Run the jobs as tasks of one Slurm array and wait for it. Raises UserError naming what has no record then."""
    words, skip = [], False
    for word in argv:
        if skip or word in ("--launcher", "--sbatch-args"):
            skip = not skip
        elif not word.startswith(("--launcher=", "--sbatch-args=")):
            words.append(word)
    task = f'{shlex.join([sys.executable, "-m", MODULE, *words])} --job "$SLURM_ARRAY_TASK_ID"'
    logs = jobs[0].folders.runs / jobs[0].key.profile / "transfer"
    logs.mkdir(parents=True, exist_ok=True)
    output = str(logs).replace("%", "%%") + "/slurm-%A_%a.log"
    try:
        more = shlex.split(sbatch_args)
    except ValueError as error:
        raise UserError(f"--sbatch-args {sbatch_args} (SRUN_ARGS): {error}") from None
    array = ["sbatch", "--wait", f"--job-name={NAME}", f"--array=0-{len(jobs) - 1}", f"--output={output}"]
    _wait_for([*array, *more, f"--wrap={task}"])
    failed = {job: "no record" for job in jobs if not _is_recorded(job)}
    if failed:
        print(f"what the tasks said is in {logs}", file=sys.stderr)
    conclude(jobs, failed)


def _wait_for(command: Sequence[str]) -> None:
    """Call sbatch and wait for its job. Ctrl-C ends the waiting alone, and says so."""
    print(shlex.join(command), flush=True)
    job = None
    try:
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as sbatch:
            for line in sbatch.stdout or ():
                if line.startswith("Submitted batch job "):
                    job = line.split()[3]
                print(line, end="", flush=True)
    except FileNotFoundError:
        raise UserError("--launcher slurm needs sbatch, which is not on PATH; leave LAUNCHER=slurm out") from None
    except KeyboardInterrupt:
        which = f"array job {job} goes on; `scancel {job}`" if job else f"no job number yet; `scancel --name={NAME}`"
        print(f"\n{which} cancels it", file=sys.stderr, flush=True)
        raise


def _is_recorded(job: Transfer) -> bool:
    try:
        return job.is_done()
    except UserError:
        return False
