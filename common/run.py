"""One road for every run: what it needs, whether it is still to do, and its record."""

import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from common.errors import UserError, rank
from common.files import is_whole, require_file, require_writable, set_aside, sha256_of_network, write_json
from common.names import OVERWRITE
from common.records import SCHEMA, RecordKey, digest, git_state, read_record, validate, versions

if TYPE_CHECKING:
    from mmengine.config import Config

    from common.checkpoint import Checkpoint


@dataclass(frozen=True)
class Folders:
    """Where a command reads and writes."""

    data: Path = Path("data")
    checkpoints: Path = Path("checkpoints")
    results: Path = Path("results")
    runs: Path = Path("runs")


@dataclass(frozen=True)
class Subject:
    """A checkpoint under evaluation: its label in records, its file, and the command that makes the file if it is ours.

    `key` names the network to take, where a file has several.
    """

    name: str
    path: Path
    make_it: str | None
    key: str | None = None

    @property
    def sha256(self) -> str:
        """The network's identity. Raises UserError when the file is missing, naming the command that makes it."""
        remedy = f"make it with `{self.make_it}`" if self.make_it else "correct CHECKPOINT"
        require_file(self.path, "checkpoint", remedy)
        return sha256_of_network(self.path, self.key)

    def load(self, sha256: str | None = None) -> "Checkpoint":
        """Return the checkpoint, checked. Raises UserError as `common.checkpoint.load_checkpoint` does."""
        from common.checkpoint import load_checkpoint

        return load_checkpoint(self.path, make_it=self.make_it, sha256=sha256 or self.sha256, key=self.key)


@dataclass(frozen=True, eq=False, kw_only=True)
class Job:
    """All that a run needs, resolved: nothing that takes a job reads the command line.

    `settings` is the SHA-256 of what the result depends on besides the checkpoint, the files of a DATA_ROOT among it.
    `config` is None for runs without a config file; jobs share it, so a run must change a copy only. `products` are
    files that the run leaves besides its record.
    """

    key: RecordKey
    subject: Subject
    settings: str
    folders: Folders
    config: "Config | None" = None
    work_dir: Path = Path()
    products: Sequence[Path] = ()
    launcher: str = "none"
    logger: str | None = None  # of common.names.LOGGERS
    resume: bool = False
    overwrite: bool = True
    again: bool = False  # even if its record is there

    @property
    def title(self) -> str:
        """Its name in messages."""
        return f"{self.subject.name} on {self.key.dataset}"

    @property
    def place(self) -> Path:
        """The path of its record."""
        return self.key.path(self.folders.results)

    @property
    def feature_cache(self) -> Path:
        """The folder of features that a profile's evaluations share."""
        return self.folders.runs / self.key.profile / "features"

    @cached_property
    def checkpoint_sha256(self) -> str:
        """The checkpoint's identity, computed once."""
        return self.subject.sha256

    def load(self) -> "Checkpoint":
        """Return the checkpoint, checked. Raises UserError as `common.checkpoint.load_checkpoint` does."""
        return self.subject.load(self.checkpoint_sha256)

    def is_done(self) -> bool:
        """Return whether its products and its record, of exactly this checkpoint and these settings, are there.

        Raises UserError when the checkpoint is missing, and for a record of another checkpoint, data or settings
        unless the job may `overwrite` it.
        """
        sha256 = self.checkpoint_sha256
        if not self.place.is_file():
            return False
        if self._is_of(self.place, sha256):
            return not self.again and all(map(is_whole, self.products))
        if not self.overwrite:
            raise UserError(
                f"{self.place} is the record of another checkpoint, other data or other settings; {OVERWRITE} to "
                "replace it (it is kept beside the new one), or choose other folders by --results and --runs"
            )
        return False

    def _is_of(self, path: Path, checkpoint_sha256: str) -> bool:
        made_of = read_record(path)["provenance"]
        return (made_of["checkpoint_sha256"], made_of["config_sha256"]) == (checkpoint_sha256, self.settings)

    def stands_in_the_way(self) -> bool:
        """Return whether `place` holds a damaged record, or one of another checkpoint or other settings."""
        try:
            return self.place.is_file() and not self._is_of(self.place, self.checkpoint_sha256)
        except UserError:
            return True


J = TypeVar("J", bound=Job)


class Measured(NamedTuple):
    """The result of a run. Metrics are percentages, 0-100; `details` are the numbers behind them, as plain JSON."""

    metrics: Mapping[str, float]
    protocol: Mapping[str, Any]
    fingerprint: str  # of the data
    device: str
    details: Mapping[str, Any] | None = None


def pending(jobs: Iterable[J]) -> list[J]:
    """Return the jobs that are not done. Raises UserError as `Job.is_done` does, and for folders closed to them."""
    left = [job for job in jobs if not job.is_done()]
    for job in left:
        for folder in (job.place.parent, job.folders.runs):
            require_writable(folder)
    return left


def todo(jobs: Sequence[J]) -> list[J]:
    """Return the pending jobs, and print a line for each that is done."""
    left = pending(jobs)
    for job in jobs:
        if job not in left:
            print(f"already done: {job.place}", flush=True)
    return left


def record(job: J, measure: "Callable[[J, Checkpoint], Measured]") -> Path:
    """Measure the job's checkpoint, write the record, and print the result in one line. Return the record's path.

    Of several processes that measure together, the first writes. An earlier record of other settings or of another
    checkpoint is kept beside the new one. Raises ValueError for a measurement that does not fit the schema.
    """
    started, clock = datetime.now(UTC), time.monotonic()
    measured = measure(job, job.load())
    if rank() > 0:
        return job.place
    commit, dirty = git_state()
    content: dict[str, Any] = {
        "schema": SCHEMA,
        "profile": job.key.profile,
        "task": job.key.task,
        "model": job.key.model,
        "dataset": job.key.dataset,
        "variant": job.key.variant,
        "seed": job.key.seed,
        "metrics": {name: float(value) for name, value in measured.metrics.items()},
        "protocol": dict(measured.protocol),
        "provenance": {
            "checkpoint_sha256": job.checkpoint_sha256,
            "config_sha256": job.settings,
            "data_fingerprint": measured.fingerprint,
            "git_commit": commit,
            "git_dirty": dirty,
            "versions": {"python": platform.python_version(), **versions()},
            "host": platform.node().encode(errors="replace").decode(),  # it need not be UTF-8
            "device": measured.device,
            "started": started.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "seconds": round(time.monotonic() - clock, 1),
        },
    }
    if measured.details is not None:
        content["details"] = dict(measured.details)
    validate(content)
    if job.stands_in_the_way():
        print(f"replacing a record of other settings, which is kept: {set_aside(job.place)}", flush=True)
    write_json(job.place, content | {"sha256": digest(content)})
    shown = "  ".join(f"{name} {value:.2f}" for name, value in content["metrics"].items())
    print(f"{job.subject.name}, {job.key.task} on {job.key.stem}: {shown}  -> {job.place}", flush=True)
    return job.place
