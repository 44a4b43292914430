"""One checkpoint on one data set of the transfer suite."""

from dataclasses import dataclass
from pathlib import Path

from common.run import Job
from common.sources import SOURCES


@dataclass(frozen=True, eq=False, kw_only=True)
class Transfer(Job):
    """A run of the suite; `split_file`, `amp` and `workers` as the command line documents them."""

    split_file: Path | None = None
    amp: str | None = None
    workers: int | None = None
    any_size: bool = False  # the data set may be a copy of another than the published size

    @property
    def images(self) -> int:
        """About what it costs: how many images the data set has, where that is known."""
        return sum(SOURCES[self.key.dataset].splits.values())
