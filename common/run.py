"""One road for every run: what it needs, whether it is still to do, and its record."""

import platform
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import set_aside, sha256_of_file, write_json
from common.names import OVERWRITE
from common.records import SCHEMA, RecordKey, git_state, read_record, validate, versions


@dataclass(frozen=True)
class Subject:
    """A checkpoint under evaluation: its label in records, its file, and the command that makes the file."""

    name: str
    path: Path
    make_it: str


@dataclass
class Run:
    """A run in progress, from `start_run`: it knows when it started, and writes its record at the end."""

    key: RecordKey
    checkpoint_sha256: str
    config_sha256: str
    _started: datetime = field(default_factory=lambda: datetime.now(UTC))
    _clock: float = field(default_factory=time.monotonic)

    def finish(
        self,
        root: Path,
        *,
        metrics: Mapping[str, float],
        protocol: Mapping[str, Any],
        data_fingerprint: str,
        device: str,
        details: Mapping[str, Any] | None = None,
    ) -> Path:
        """Write the record and return its path. Percentages are 0-100. Raises ValueError on a bad field.

        A record of other settings, or of another checkpoint, in its place is kept beside it.
        `details` is what stands behind the metrics, as plain JSON: the value of every class, a validation curve.
        """
        commit, dirty = git_state()
        record: dict[str, Any] = {
            "schema": SCHEMA,
            "profile": self.key.profile,
            "task": self.key.task,
            "model": self.key.model,
            "dataset": self.key.dataset,
            "variant": self.key.variant,
            "seed": self.key.seed,
            "metrics": {name: float(value) for name, value in metrics.items()},
            "protocol": dict(protocol),
            "provenance": {
                "checkpoint_sha256": self.checkpoint_sha256,
                "config_sha256": self.config_sha256,
                "data_fingerprint": data_fingerprint,
                "git_commit": commit,
                "git_dirty": dirty,
                "versions": {"python": platform.python_version(), **versions()},
                "host": platform.node(),
                "device": device,
                "started": self._started.strftime("%Y-%m-%dT%H:%M:%SZ"),
                "seconds": round(time.monotonic() - self._clock, 1),
            },
        }
        if details is not None:
            record["details"] = dict(details)
        validate(record)
        path = self.key.path(root)
        try:
            others = path.is_file() and not self._is_of(path)
        except UserError:  # it has been damaged since the run began
            others = True
        if others:
            print(f"replacing a record of other settings, which is kept: {set_aside(path)}", flush=True)
        write_json(path, record)
        return path

    def _is_of(self, path: Path) -> bool:
        """Return whether the record at `path` is of this checkpoint and these settings."""
        made_of = read_record(path)["provenance"]
        return (made_of["checkpoint_sha256"], made_of["config_sha256"]) == (self.checkpoint_sha256, self.config_sha256)


def start_run(
    key: RecordKey,
    subject: Subject,
    *,
    config_sha256: str,
    results: Path,
    products: Iterable[Path] = (),
    overwrite: bool = True,
    again: bool = False,
) -> Run | None:
    """Return the run to do, or None after saying so when its record is there already.

    A record counts only if it is of exactly this checkpoint and these settings, and if the other files that such a
    run leaves, `products`, are there too; if the run is wanted `again`, it never does. Raises UserError when the
    checkpoint is missing, naming the command that makes it, and without `overwrite` for a record of another
    checkpoint or other settings.
    """
    if not subject.path.is_file():
        raise UserError(f"checkpoint {subject.path} is missing; make it with `{subject.make_it}`")
    run = Run(key, sha256_of_file(subject.path), config_sha256)
    path = key.path(results)
    if not path.is_file():
        return run
    if run._is_of(path):
        if not again and all(product.is_file() for product in products):
            print(f"already done: {path}", flush=True)
            return None
    elif not overwrite:
        raise UserError(
            f"{path} is the record of another checkpoint or other settings; {OVERWRITE} to replace it (it is kept "
            "beside the new one), or choose other folders by --results and --runs"
        )
    return run
