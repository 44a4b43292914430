"""Published numbers, from published/*.csv, beside ours in a table. docs/published.md describes the files."""

import csv
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from math import isfinite
from pathlib import Path

from analysis.names import MINUTES
from analysis.records import Key, departures
from analysis.table import Cell, Row, Section, Settings, Table
from common.names import PROFILES
from common.records import METRICS, PROTOCOL, TASKS
from common.sources import SOURCES

FOLDER = Path(__file__).with_name("published")
HEADER = ("profile", "task", "dataset", "variant", "metric", "model", "value", "ours", "protocol", "note", "source")
WORDS: dict[str, Iterable[str]] = {
    "profile": PROFILES,
    "task": TASKS,
    "dataset": SOURCES,
    "metric": (*METRICS, MINUTES),
}
TITLE = "Published elsewhere, not our runs"
MINUS = "ours - published"
NOT_ENTERED = "not entered"


@dataclass(frozen=True)
class Published:
    """A number that somebody published. `value` is the text in the file, empty if nobody has entered it yet.

    `ours` names the model of our records that it may be compared with, `settings` are those that its run had, and
    `note` is its source with what else there is to say.
    """

    file: str
    profile: str
    key: Key
    model: str
    value: str
    ours: str
    settings: Settings
    note: str

    def agrees(self, cell: Cell) -> bool:
        """Return whether our number has every setting of this one. Without settings, or test images, none has."""
        stated = dict(self.settings)
        return bool(cell.settings) and "n_test" in stated and set(self.settings) <= set(cell.settings[0])


def read_published(profile: str, folder: Path = FOLDER) -> tuple[list[Published], list[str]]:
    """Return the profile's published numbers in the order of the files, and one line for each malformed file."""
    numbers: list[Published] = []
    problems = []
    for path in sorted(folder.glob("*.csv")):
        try:
            numbers += [number for number in _read(path) if number.profile == profile]
        except (OSError, ValueError, csv.Error) as error:
            problems.append(f"{path} is not a file of published numbers: {error}; correct it (docs/published.md)")
    return numbers, problems


def beside(table: Table, keys: Sequence[Key], published: Sequence[Published]) -> Table:
    """Return the table, whose first columns are `keys`, with the published numbers of these below all others.

    Each file is a group of rows. They neither compete with ours nor enter averages. Where a number of ours has the
    protocol and data of a published one, a column after it holds their difference.
    """
    shown = [number for number in published if number.key in keys]
    if not shown:
        return table
    mine = {row.model: row.cells for row in table.rows if row.baseline is None}
    groups = []
    for _, of_file in groupby(shown, key=lambda number: number.file):
        rows: dict[str, list[Cell]] = {}
        for number in of_file:
            k = keys.index(number.key)
            cells = rows.setdefault(number.model, [Cell()] * len(table.columns))
            cells[k] = _cell(number, mine[number.ours][k] if number.ours in mine else Cell())
        groups.append([Row(model, model, cells, published=True) for model, cells in rows.items()])
    sections = [*table.sections, Section(TITLE, groups)]
    remark = "published numbers are shown as printed, and neither averaged nor ranked with ours"
    table = replace(table, sections=sections, remarks=[*table.remarks, remark])
    for k in reversed(range(len(keys))):
        table = _with_differences(table, k, [number for number in shown if number.key == keys[k]])
    return table


def _with_differences(table: Table, k: int, published: Sequence[Published]) -> Table:
    """Return the table with a column after column k, if a number of ours there agrees with a published one."""

    def difference(row: Row) -> Cell:
        cell = row.cells[k]
        for number in published:
            if row.baseline is None and number.ours == row.model and number.value and number.agrees(cell):
                by = (cell.mean or 0.0) - float(number.value)
                return Cell(by, n=cell.n, notes=(number.note,), sources=cell.sources, text=f"{by:+.2f}")
        return Cell()

    made = {id(row): difference(row) for row in table.rows}
    if not any(cell.n for cell in made.values()):
        return table

    def wider(row: Row) -> Row:
        return replace(row, cells=[*row.cells[: k + 1], made[id(row)], *row.cells[k + 1 :]])

    sections = [replace(s, groups=[[wider(row) for row in group] for group in s.groups]) for s in table.sections]
    group, metric = table.columns[k]
    columns = [*table.columns[: k + 1], (group, f"{metric}, {MINUS}"), *table.columns[k + 1 :]]
    return replace(table, columns=columns, sections=sections)


def _cell(number: Published, ours: Cell) -> Cell:
    """Return a published number as the table shows it, with a note if it cannot be compared with ours."""
    if not number.value:
        return Cell(text=NOT_ENTERED)
    notes = [number.note]
    if ours.settings and number.settings and not number.agrees(ours):
        stated = {name for name, _ in number.settings}
        differs = departures(number.settings, tuple(pair for pair in ours.settings[0] if pair[0] in stated), "here")
        notes.append(f"not compared with ours: {differs or 'its test images are not stated'}")
    return Cell(float(number.value), notes=tuple(notes), text=number.value)


def _read(path: Path) -> list[Published]:
    """Return all numbers of a file. Raises ValueError naming the line."""
    numbers: dict[tuple[str, Key, str], Published] = {}
    with path.open(newline="", encoding="utf-8") as stream:
        lines = csv.reader(stream, strict=True)
        if (header := tuple(next(lines, ()))) != HEADER:
            raise ValueError(f"its header is '{','.join(header)}', not '{','.join(HEADER)}'")
        for line in lines:
            try:
                number = _number(line, path.name)
                if numbers.setdefault((number.profile, number.key, number.model), number) is not number:
                    raise ValueError("the number is there twice")
            except ValueError as error:
                raise ValueError(f"line {lines.line_num}: {error}") from None
    return list(numbers.values())


def _number(line: Sequence[str], file: str) -> Published:
    if len(line) != len(HEADER):
        raise ValueError(f"{len(line)} cells, not {len(HEADER)}")
    cells = dict(zip(HEADER, (cell.strip() for cell in line), strict=True))
    for name, words in WORDS.items():
        if cells[name] not in words:
            raise ValueError(f"{name} '{cells[name]}' is none of {', '.join(words)}")
    for name in ("model", "source"):
        if not cells[name]:
            raise ValueError(f"{name} is empty")
    if value := cells["value"]:
        try:
            number = float(value)
        except ValueError:
            raise ValueError(f"value '{value}' is not a number") from None
        if not isfinite(number) or not 0 <= number <= (number if cells["metric"] == MINUTES else 100):
            raise ValueError(f"value {value} is not a percentage in 0-100")
    key = (cells["task"], cells["dataset"], cells["variant"], cells["metric"])
    note = "; ".join(filter(None, (cells["source"], cells["note"])))
    settings = tuple(_fact(fact) for fact in cells["protocol"].split(";") if fact.strip())
    return Published(file, cells["profile"], key, cells["model"], value, cells["ours"], settings, note)


def _fact(text: str) -> tuple[str, str | float]:
    """Return a fact `name=value` of the protocol, of the type that a record has it in."""
    name, _, value = (part.strip() for part in text.partition("="))
    if name not in PROTOCOL or not PROTOCOL[name].is_setting:
        raise ValueError(f"protocol '{name}' is no setting of a record")
    if PROTOCOL[name].kind is str:
        return name, value
    try:
        number = json.loads(value)
    except ValueError:
        number = None
    if not isinstance(number, int | float):
        raise ValueError(f"protocol {name} '{value}' is not a number")
    return name, number
