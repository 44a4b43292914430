"""Records for tests, written as every run writes them."""

from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from common.records import RecordKey
from common.run import Folders, Job, Measured, Subject, record


@dataclass(frozen=True, eq=False, kw_only=True)
class Recorded(Job):
    """A run whose checkpoint is known by its hash alone."""

    checkpoint_sha256: str = "aa"

    def load(self) -> None:
        """Return nothing: what is measured is known."""


def write_record(
    results: Path,
    key: RecordKey,
    metrics: dict[str, float],
    *,
    protocol: dict[str, Any] | None = None,
    details: dict[str, Any] | None = None,
    checkpoint: str = "aa",
    settings: str = "bb",
    fingerprint: str = "cc",
) -> Path:
    """Write the record of a run that found `metrics`."""
    job = Recorded(
        key=key,
        subject=Subject(key.model, Path("gone.pth"), "make pretrain"),
        settings=settings,
        folders=Folders(results=results),
        checkpoint_sha256=checkpoint,
    )
    measured = Measured(metrics, {"C": 0.5} if protocol is None else protocol, fingerprint, "cpu", details)
    with redirect_stdout(StringIO()):
        return record(job, lambda job, checkpoint: measured)
