"""Tables of all records of a profile, as Markdown, LaTeX and CSV: `python -m analysis.tables`.

Rows group each baseline with its GSG variant and their difference. Mean and standard deviation are over seeds.
"""

import argparse
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from math import sqrt
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from analysis.names import (
    EXPECTED,
    METRIC_NAMES,
    MODELS,
    column_name,
    column_order,
    method_of,
    model_name,
    model_order,
)
from analysis.products import arguments, folder, not_comparable
from analysis.records import difference, report_problems, settings_of
from common import cli
from common.errors import UserError
from common.files import atomic_write
from common.names import METHODS
from common.records import key_of, read_records

if TYPE_CHECKING:
    import pandas as pd

MODULE = "analysis.tables"
KINDS = {
    "standard": ("Standard evaluation", ("knn", "linear")),
    "recognition": ("Image recognition transfer", ("recognition",)),
    "dense": ("Dense prediction transfer", ("detection", "segmentation")),
    "ablations": ("Ablations", ("knn", "linear", "recognition", "detection", "segmentation")),
}
SUFFIXES = {"markdown": ".md", "latex": ".tex", "csv": ".csv"}
HOLE = "—"
LEAST_SEEDS = 3  # for the paired test
DIRTY = "from code with uncommitted changes, so its commit does not reproduce it"
NO_COMMIT = "from code outside a git checkout, so no commit reproduces it"
AVERAGE, RANK = ("Average", "over the columns"), ("Average", "rank")

Key = tuple[str, str, str, str]  # task, data set, variant, metric
Settings = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Cell:
    """A number of a table: the mean over n seeds, their standard deviation (n - 1) from two seeds on; n = 0 is a hole.

    In a row of differences, `p` is the paired test's over `n` common seeds. `notes` are what must be said of the
    number; `sources` are the files of its records.
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
    usual: bool = True  # made under the settings of the rest of its column


@dataclass(frozen=True)
class Row:
    """A model's numbers, or those of a model minus its baseline's."""

    model: str
    label: str
    cells: list[Cell]
    baseline: str | None = None


@dataclass(frozen=True)
class Section:
    """A part of a table that is compared within itself: groups of rows that belong together."""

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
        """What must be said of single numbers; a note's place is its mark: a, b, ..."""
        return list(dict.fromkeys(note for row in self.rows for cell in row.cells for note in cell.notes))

    def frame(self) -> "pd.DataFrame":
        """Return the models' numbers: a row a model, columns (data set, metric, mean | std | n); a hole is NaN."""
        import pandas as pd

        names = ["data set", "metric", "statistic"]
        columns = pd.MultiIndex.from_tuples([(*c, s) for c in self.columns for s in ("mean", "std", "n")], names=names)
        rows = [row for row in self.rows if row.baseline is None]
        values = [[v for c in row.cells for v in (c.mean, c.std, c.n)] for row in rows]
        frame = pd.DataFrame(values, pd.Index([row.model for row in rows], name="model"), columns, dtype=float)
        return frame[~frame.index.duplicated()]  # an ablation's table shows a baseline in several sections


def main(argv: list[str] | None = None) -> None:
    """Run the command line: write the tables and print them."""
    from analysis.render import markdown

    args = arguments(MODULE, __doc__ or "", argv)
    problems: list[str] = []
    for table in build(args, problems):
        print(f"\n{markdown(table)}", end="")
    print(f"\nwritten: {folder(args)}/table-*.md, .tex, .csv")
    report_problems(problems)


def build(args: argparse.Namespace, problems: list[str]) -> list[Table]:
    """Write the tables of the profile's records and return them; files that are no records go to `problems`.

    Raises UserError when there is no record.
    """
    from analysis import render

    tables = read_tables(args.results, args.profile, problems)
    if not tables:
        for problem in problems:
            raise UserError(problem)
        raise UserError(
            f"no results records in {args.results / args.profile}; make some with "
            f"`make knn linear transfer-all PROFILE={args.profile}`"
        )
    for kind in KINDS:
        for form, suffix in SUFFIXES.items():
            path = folder(args) / f"table-{kind}{suffix}"
            path.unlink(missing_ok=True)  # of records that are gone
            for table in tables:
                if table.key == kind:
                    _write(path, getattr(render, form)(table))
    return tables


def read_tables(results: str | Path, profile: str, problems: list[str] | None = None) -> list[Table]:
    """Return the tables of the profile's records under `results`. A bad file raises UserError or joins `problems`."""
    return make_tables(read_records(Path(results), profile, problems), profile, Path(results))


def make_tables(records: Iterable[dict[str, Any]], profile: str, results: Path = Path("results")) -> list[Table]:
    """Return the tables that have records. All but the ablations' have the same rows: the models of any of them.

    Raises ValueError for a record of another profile: one table never mixes two.
    """
    found: dict[str, dict[Key, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        if record["profile"] != profile:
            raise ValueError(f"a record of profile {record['profile']} in a table of {profile}")
        for metric in record["metrics"]:
            key = (record["task"], record["dataset"], key_of(record).variant or "", metric)
            found[record["model"]][key].append(record)
    cells = _cells(found, results)
    tables = [_table(kind, profile, cells) for kind in KINDS]
    return [table for table in tables if table is not None]


def _cells(found: Mapping[str, Mapping[Key, list[dict[str, Any]]]], results: Path) -> dict[tuple[str, Key], Cell]:
    """Return the cell of each model and column, noting what departs from the column's usual settings."""
    columns: dict[Key, Counter[Settings]] = defaultdict(Counter)
    for model in model_order(found):  # of equally frequent settings, those of the first model are usual
        for key, records in found[model].items():
            columns[key].update(settings_of(record) for record in records)
    usual = {key: counter.most_common(1)[0][0] for key, counter in columns.items()}
    return {
        (model, key): _cell(records, key[3], usual[key], results)
        for model, by_key in found.items()
        for key, records in by_key.items()
    }


def _cell(records: list[dict[str, Any]], metric: str, usual: Settings, results: Path) -> Cell:
    """Return the number of a model's seeds. Seeds under other settings than the rest are left out, with a note."""
    settings = Counter(settings_of(record) for record in records)
    mine = usual if usual in settings else settings.most_common(1)[0][0]
    notes = []
    if mine != usual:
        notes.append(difference(mine, usual))
    kept = [record for record in records if settings_of(record) == mine]
    for record in records:
        if record not in kept:
            notes.append(f"seed {record['seed']} left out: {difference(settings_of(record), mine)}")
    if any(record["provenance"]["git_dirty"] for record in kept):
        notes.append(DIRTY)
    if any(record["provenance"]["git_commit"] == "unknown" for record in kept):
        notes.append(NO_COMMIT)
    by_seed = {record["seed"]: float(record["metrics"][metric]) for record in kept}
    sources = tuple(str(key_of(record).path(results)) for record in kept)
    return replace(_mean(by_seed), notes=tuple(notes), sources=sources, settings=(mine,), usual=mine == usual)


def _mean(by_seed: Mapping[int, float]) -> Cell:
    values = list(by_seed.values())
    if not values:
        return Cell()
    return Cell(fmean(values), stdev(values) if len(values) > 1 else None, len(values), by_seed=by_seed)


def _table(kind: str, profile: str, cells: Mapping[tuple[str, Key], Cell]) -> Table | None:
    title, tasks = KINDS[kind]
    ablations = {model for model, _ in cells if method_of(model) != model}
    mine = ablations if kind == "ablations" else {model for model, _ in cells} - ablations
    recorded = {key for model, key in cells if model in mine and key[0] in tasks}
    if not recorded:
        return None
    expected = [key for key in EXPECTED[profile] if key[0] in tasks and kind != "ablations"]
    keys = sorted({*expected, *recorded}, key=lambda key: column_order(*key))
    columns = [(column_name(*key[:3]), METRIC_NAMES.get(key[3], key[3])) for key in keys]
    models = model_order(model for model, _ in cells)
    numbers = {model: [cells.get((model, key), Cell()) for key in keys] for model in models}
    averaged = [k for k, key in enumerate(keys) if key in (expected or keys)] if kind == "recognition" else []
    if averaged:
        columns = [*columns, AVERAGE, RANK]
        _append_average([numbers[model] for model in models if model not in ablations], averaged)
    parts = _ablations(models, ablations) if kind == "ablations" else {"": _pairs([m for m in models if m in mine])}
    sections = [_section(name, groups, numbers, columns) for name, groups in parts.items()]
    note = not_comparable(profile)
    full_title = f"{title}, profile {profile}" + (f" ({note})" if note else "")
    return _with_common_notes_as_remarks(Table(kind, full_title, profile, columns, sections, _remarks(sections)))


# A group of rows: label and model of the baseline, then of what is held against it.
Group = list[tuple[str, str]]


def _pairs(models: Sequence[str]) -> list[Group]:
    """Return the models in groups of a baseline and its GSG variant, where there are both."""
    groups: list[Group] = []
    for model in models:
        baseline = model.removesuffix("_gsg")
        if groups and model != baseline and groups[-1][0][1] == baseline:
            groups[-1].append((model_name(model), model))
        else:
            groups.append([(model_name(model), model)])
    return groups


def _ablations(models: Sequence[str], ablations: set[str]) -> dict[str, list[Group]]:
    """Return, for each ablation that has records, its groups: what is varied against what it is varied from."""

    def name(method: str, setting: str) -> str:
        return f"{MODELS[method]}, {setting}"

    guides, predictor, batch, views = [], [], [], []
    for base in ("simsiam", "byol"):
        gsg = f"{base}_gsg"
        random, farthest = f"{gsg}-random", f"{gsg}-farthest"
        guides.append(
            [
                *((MODELS[base], base), (name(gsg, "nearest"), gsg)),
                *((name(gsg, "random"), random), (name(gsg, "farthest"), farthest)),
            ]
        )
        views.append([(name(gsg, "fresh views"), gsg), (name(gsg, "shared views"), f"{gsg}-shared_views")])
        for size in ("batch64", "batch128", "batch256", "batch512", "batch1024"):
            label = f"batch {size.removeprefix('batch')}"
            batch.append([(name(m, label), f"{m}-{size}") for m in (base, gsg)])
    for method in METHODS:
        predictor.append([(MODELS[method], method), (name(method, "no predictor"), f"{method}-no_predictor")])
    parts = {"Guide": guides, "Predictor": predictor, "Batch size": batch, "Views": views}
    there = {
        title: [group for group in groups if any(model in ablations for _, model in group)]
        for title, groups in parts.items()
    }
    return {
        title: [part for group in groups for part in _present(group, models)]
        for title, groups in there.items()
        if groups
    }


def _present(group: Group, models: Sequence[str]) -> list[Group]:
    """Return the group without the models that have no record; without its baseline, each row stands alone."""
    there = [row for row in group if row[1] in models]
    return [there] if there and there[0] == group[0] else [[row] for row in there]


def _append_average(rows: list[list[Cell]], averaged: Sequence[int]) -> None:
    """Append to each row the average over the columns `averaged` and the average rank; a row with a hole has neither.

    The rank (1 is best, equal numbers share theirs) is among the rows without a hole.
    """
    complete = [row for row in rows if all(row[k].n for k in averaged)]
    columns = [[cell.mean or 0.0 for cell in column] for column in zip(*complete, strict=True)]
    for row in rows:
        if row not in complete:
            row += [Cell(), Cell()]
            continue
        parts = [row[k] for k in averaged]
        seeds = set.intersection(*(set(part.by_seed) for part in parts))
        mean = _mean({seed: fmean(part.by_seed[seed] for part in parts) for seed in sorted(seeds)})
        if any(part.n != len(seeds) for part in parts):
            # Not every seed has every column: the average is of the numbers shown, without a deviation.
            mean = Cell(fmean(part.mean or 0.0 for part in parts), n=1)
        ranks = [1 + sum(v > (row[k].mean or 0.0) for v in columns[k]) for k in averaged]
        shared = [(sum(v == row[k].mean for v in columns[k]) - 1) / 2 for k in averaged]
        notes = tuple(dict.fromkeys(note for part in parts for note in part.notes))
        sources = tuple(source for part in parts for source in part.sources)
        about = {
            "notes": notes,
            "sources": sources,
            "settings": tuple(s for part in parts for s in part.settings),
            "usual": all(part.usual for part in parts),
        }
        rank = Cell(fmean(r + s for r, s in zip(ranks, shared, strict=True)), n=1)
        row += [replace(mean, **about), replace(rank, **about)]  # type: ignore[arg-type]


def _section(
    title: str, groups: list[Group], numbers: Mapping[str, list[Cell]], columns: list[tuple[str, str]]
) -> Section:
    """Return the section with its best numbers marked and a row of differences after each variant."""
    models = list(dict.fromkeys(model for group in groups for _, model in group))
    marked = {model: list(numbers[model]) for model in models}
    for k, column in enumerate(columns):
        for model, cell in _mark({model: numbers[model][k] for model in models}, lower=column == RANK).items():
            marked[model][k] = cell
    made = []
    for group in groups:
        (first, baseline), *variants = group
        rows = [Row(baseline, first, marked[baseline])]
        for label, model in variants:
            against = [_difference(cell, base) for cell, base in zip(numbers[model], numbers[baseline], strict=True)]
            rows += [Row(model, label, marked[model]), Row(model, "difference", against, baseline)]
        made.append(rows)
    return Section(title, made)


def _mark(column: Mapping[str, Cell], lower: bool) -> dict[str, Cell]:
    """Return the cells of a column, the best marked and those within its standard deviation.

    Numbers made under unusual settings do not compete, nor does one that is alone. Equal as shown is equally best.
    """
    sign = -1 if lower else 1
    shown = {model: round(sign * c.mean, 2) for model, c in column.items() if c.mean is not None and c.usual}
    if len(shown) < 2:
        return dict(column)
    top = max(shown.values())
    best = {model for model, value in shown.items() if value == top}
    reach = max((column[model].std or 0.0 for model in best), default=0.0)
    tied = {m for m in shown if m not in best and shown[m] >= top - reach} if reach else set()
    return {m: replace(cell, best=m in best, tied=m in tied) for m, cell in column.items()}


def _difference(cell: Cell, base: Cell) -> Cell:
    """Return cell minus base over the seeds that both have, or of the means where they share none."""
    if cell.mean is None or base.mean is None:
        return Cell()
    if cell.settings != base.settings:
        return Cell(notes=("no difference of numbers made under different settings",))
    seeds = sorted(set(cell.by_seed) & set(base.by_seed))
    if not seeds:
        return Cell(cell.mean - base.mean, n=1)
    paired = _mean({seed: cell.by_seed[seed] - base.by_seed[seed] for seed in seeds})
    return replace(paired, p=_paired_test(list(paired.by_seed.values())))


def _paired_test(differences: Sequence[float]) -> float | None:
    """Return the p-value of the two-sided paired t-test, or None for too few seeds or none that differ.

    >>> round(_paired_test([1.0, 2.0, 3.0]), 4)
    0.0742
    """
    if len(differences) < LEAST_SEEDS or (spread := stdev(differences)) == 0:
        return None
    from scipy.special import stdtr  # scipy.stats takes a second to import

    t = fmean(differences) / (spread / sqrt(len(differences)))
    return float(2 * stdtr(len(differences) - 1, -abs(t)))


def _remarks(sections: list[Section]) -> list[str]:
    """Return what the table's readers need to know of its marks, as far as they occur."""
    rows = [row for section in sections for group in section.groups for row in group]
    models, differences = ([r for r in rows if (r.baseline is None) is plain] for plain in (True, False))
    cells = [cell for row in models for cell in row.cells]
    said = []
    if len(counts := sorted({cell.n for cell in cells if cell.std is not None})) == 1:
        said.append(f"± is the standard deviation over n = {counts[0]} seeds")
    elif counts:
        said.append("± is the standard deviation over the number of seeds in brackets")
    if any(cell.best for cell in cells):
        said.append("bold is best")
    if any(cell.tied for cell in cells):
        said.append("underlined (in Markdown, italic) is within one standard deviation of the best")
    if any(cell.n for row in differences for cell in row.cells):
        said.append("difference is against the first row of its group, seed by seed")
    if any(cell.p is not None for row in differences for cell in row.cells):
        said.append(f"p is of the two-sided paired t-test over the seeds, from {LEAST_SEEDS} on, uncorrected")
    return said


def _with_common_notes_as_remarks(table: Table) -> Table:
    """Say once, of the whole table, what would else be said of each of its numbers."""
    cells = [cell for row in table.rows if row.baseline is None for cell in row.cells if cell.n]
    common = [note for note in (DIRTY, NO_COMMIT) if len(cells) > 1 and all(note in cell.notes for cell in cells)]
    if not common:
        return table

    def plain(row: Row) -> Row:
        return replace(row, cells=[replace(c, notes=tuple(n for n in c.notes if n not in common)) for c in row.cells])

    sections = [replace(s, groups=[[plain(row) for row in group] for group in s.groups]) for s in table.sections]
    return replace(table, sections=sections, remarks=[*table.remarks, *(f"all numbers are {note}" for note in common)])


def number(table: Table, row: Row, k: int) -> str:
    """Return the text of a row's cell k: the number with ± and, where seeds are not equally many, their number."""
    cell = row.cells[k]
    if cell.mean is None:
        return HOLE
    if row.baseline is not None:
        return f"{cell.mean:+.2f}" + ("" if cell.p is None else f" (p = {cell.p:.2g})")
    if cell.std is None:
        return f"{cell.mean:.2f}"
    alike = len({c.n for r in table.rows if r.baseline is None for c in r.cells if c.std is not None}) == 1
    return f"{cell.mean:.2f} ± {cell.std:.2f}" + ("" if alike else f" ({cell.n})")


def head_groups(columns: Sequence[tuple[str, str]]) -> list[tuple[str, int]]:
    """Return the data sets of (data set, metric) columns with the number that each spans, from left to right."""
    return [(name, len(list(group))) for name, group in groupby(columns, key=lambda column: column[0])]


def _write(path: Path, text: str) -> None:
    atomic_write(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


if __name__ == "__main__":
    cli.run(main)
