"""A table of numbers, as statistics fill it and every format renders it."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

HOLE = "—"

Settings = tuple[tuple[str, Hashable], ...]  # (name, value) pairs of a record, as `analysis.records` reads them


@dataclass(frozen=True)
class Cell:
    """A number of a table: the mean over n seeds and, from two seeds on, their standard deviation (n - 1).

    n = 0 is a hole. In a row of differences, `p` is of the paired test over the `n` common seeds. `notes` are caveats
    to print with the number; `sources` are the files of its records.
    """

    mean: float | None = None
    std: float | None = None
    n: int = 0
    best: bool = False
    tied: bool = False
    p: float | None = None
    notes: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    by_seed: Mapping[int, float] = field(default_factory=dict)
    settings: tuple[Settings, ...] = ()
    usual: bool = True  # its settings are those of the rest of its column
    text: str = ""  # shown instead of the mean


@dataclass(frozen=True)
class Row:
    """A model's numbers, those of a model minus its baseline's, or numbers that others published."""

    model: str
    label: str
    cells: list[Cell]
    baseline: str | None = None
    published: bool = False


@dataclass(frozen=True)
class Section:
    """A part of a table whose rows compete with each other alone, in groups that belong together."""

    title: str
    groups: list[list[Row]]


@dataclass(frozen=True)
class Table:
    """A table as every format renders it: columns are (data set, metric)."""

    key: str
    title: str
    profile: str
    columns: list[tuple[str, str]]
    sections: list[Section]
    remarks: list[str]

    @property
    def rows(self) -> list[Row]:
        """All rows, from top to bottom."""
        return [row for section in self.sections for group in section.groups for row in group]

    @property
    def notes(self) -> list[str]:
        """The notes of all numbers without repeats; a note's position is its mark: a, b, ..."""
        return list(dict.fromkeys(note for row in self.rows for cell in row.cells for note in cell.notes))

    def frame(self) -> "pd.DataFrame":
        """Return one row per model of ours with columns (data set, metric, mean | std | n); a hole is NaN."""
        import pandas as pd

        names = ["data set", "metric", "statistic"]
        columns = pd.MultiIndex.from_tuples([(*c, s) for c in self.columns for s in ("mean", "std", "n")], names=names)
        rows = [row for row in self.rows if row.baseline is None and not row.published]
        values = [[v for c in row.cells for v in (c.mean, c.std, c.n)] for row in rows]
        frame = pd.DataFrame(values, pd.Index([row.model for row in rows], name="model"), columns, dtype=float)
        return frame[~frame.index.duplicated()]  # the ablations' table shows a baseline in several sections


def number(table: Table, row: Row, k: int) -> str:
    """Return the text of a row's cell k: the number, ±, and the number of seeds where it is not the same everywhere."""
    cell = row.cells[k]
    if cell.text:
        return cell.text
    if cell.mean is None:
        return HOLE
    if row.baseline is not None:
        spread = "" if cell.std is None else f" ± {cell.std:.2f}"
        return f"{cell.mean:+.2f}{spread}" + ("" if cell.p is None else f" (p = {cell.p:.2g})")
    if cell.std is None:
        return f"{cell.mean:.2f}"
    alike = len({c.n for r in table.rows if r.baseline is None for c in r.cells if c.std is not None}) == 1
    return f"{cell.mean:.2f} ± {cell.std:.2f}" + ("" if alike else f" ({cell.n})")


def head_groups(columns: Sequence[tuple[str, str]]) -> list[tuple[str, int]]:
    """Return each data set of (data set, metric) columns and how many columns it spans, from left to right."""
    return [(name, len(list(group))) for name, group in groupby(columns, key=lambda column: column[0])]
