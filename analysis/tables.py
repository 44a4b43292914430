"""Tables of all records of a profile, as Markdown, LaTeX and CSV.

Rows group each baseline with its GSG variant and their difference. Mean and standard deviation are over seeds.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from analysis import render
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
from analysis.products import not_comparable
from analysis.records import DIRTY, NO_COMMIT, Key, cells_of, report_problems
from analysis.scope import resolve
from analysis.scoreboard import Published, beside, read_published
from analysis.statistics import LEAST_SEEDS, append_average, difference, mark_best
from analysis.table import Cell, Row, Section, Table
from common import cli
from common.errors import UserError
from common.files import atomic_write
from common.names import METHODS
from common.records import read_records

KINDS = {
    "standard": ("Standard evaluation", ("knn", "linear")),
    "recognition": ("Image recognition transfer", ("recognition",)),
    "dense": ("Dense prediction transfer", ("detection", "segmentation")),
    "ablations": ("Ablations", ("knn", "linear", "recognition", "detection", "segmentation")),
}
SUFFIXES = {"markdown": ".md", "latex": ".tex", "csv": ".csv"}
AVERAGE, RANK = ("Average", "over the columns"), ("Average", "rank")

# A group of rows, each a label and a model: the baseline, then what is compared with it.
Group = list[tuple[str, str]]


def main(argv: list[str] | None = None) -> None:
    """Run the command line: write the tables and print them."""
    scope = resolve(
        "analysis.tables",
        __doc__ or "",
        argv,
        "make tables PROFILE=imagenet",
        unused="method seed data checkpoints runs",
    )
    tables, problems = build(scope.results, scope.profile, scope.folder)
    for table in tables:
        print(f"\n{render.markdown(table)}", end="")
    print(f"\nwritten: {scope.folder}/table-*.md, .tex, .csv")
    report_problems(problems)


def build(results: Path, profile: str, folder: Path) -> tuple[list[Table], list[str]]:
    """Write the tables of the profile's records into `folder`; return them, and the problems as `read_tables` does.

    Raises UserError when there is no valid record.
    """
    tables, problems = read_tables(results, profile)
    if not tables:
        remedy = f"make some with `make knn linear transfer-all PROFILE={profile}`"
        raise UserError(problems[0] if problems else f"no results records in {results / profile}; {remedy}")
    made = {table.key: table for table in tables}
    for kind in KINDS:
        for form, suffix in SUFFIXES.items():
            path = folder / f"table-{kind}{suffix}"
            if kind in made:
                text: str = getattr(render, form)(made[kind])
                atomic_write(path, partial(Path.write_text, data=text, encoding="utf-8"))
            else:
                path.unlink(missing_ok=True)  # its records are gone
    return tables, problems


def read_tables(results: Path, profile: str) -> tuple[list[Table], list[str]]:
    """Return the tables of the profile's valid records under `results`, with the published numbers beside them.

    Of each file that is not a valid record, or not one of published numbers, one line says so.
    """
    records, problems = read_records(results, profile)
    published, malformed = read_published(profile)
    return make_tables(records, profile, results, published), problems + malformed


def make_tables(
    records: Iterable[dict[str, Any]],
    profile: str,
    results: Path = Path("results"),
    published: Sequence[Published] = (),
) -> list[Table]:
    """Return the tables that have records. All but that of the ablations have the same rows: every model with records.

    Raises ValueError for a record of another profile: one table never mixes two.
    """
    records = list(records)
    for record in records:
        if record["profile"] != profile:
            raise ValueError(f"a record of profile {record['profile']} in a table of {profile}")
    cells = cells_of(records, results)
    tables = [_table(kind, profile, cells, published if kind != "ablations" else ()) for kind in KINDS]
    return [table for table in tables if table is not None]


def _table(
    kind: str, profile: str, cells: Mapping[tuple[str, Key], Cell], published: Sequence[Published]
) -> Table | None:
    title, tasks = KINDS[kind]
    ablations = {model for model, _ in cells if method_of(model) != model}
    mine = ablations if kind == "ablations" else {model for model, _ in cells} - ablations
    recorded = {key for model, key in cells if model in mine and key[0] in tasks}
    if not recorded:
        return None
    expected = [key for key in EXPECTED[profile] if key[0] in tasks and kind != "ablations"]
    printed = {number.key for number in published if number.key[0] in tasks}
    keys = sorted({*expected, *recorded, *printed}, key=lambda key: column_order(*key))
    columns = [(column_name(*key[:3]), METRIC_NAMES.get(key[3], key[3])) for key in keys]
    models = model_order(model for model, _ in cells)
    numbers = {model: [cells.get((model, key), Cell()) for key in keys] for model in models}
    averaged = [k for k, key in enumerate(keys) if key in (expected or recorded)] if kind == "recognition" else []
    if averaged:
        columns = [*columns, AVERAGE, RANK]
        append_average([numbers[model] for model in models if model not in ablations], averaged)
    parts = _ablations(models, ablations) if kind == "ablations" else {"": _pairs([m for m in models if m in mine])}
    sections = [_section(name, groups, numbers, columns) for name, groups in parts.items()]
    note = not_comparable(profile)
    full_title = f"{title}, profile {profile}" + (f" ({note})" if note else "")
    table = _with_common_notes_as_remarks(Table(kind, full_title, profile, columns, sections, _remarks(sections)))
    return beside(table, keys, published)


def _pairs(models: Sequence[str]) -> list[Group]:
    """Return the models in groups: a baseline with its GSG variant where both have records, else one model."""
    groups: list[Group] = []
    for model in models:
        baseline = model.removesuffix("_gsg")
        if groups and model != baseline and groups[-1][0][1] == baseline:
            groups[-1].append((model_name(model), model))
        else:
            groups.append([(model_name(model), model)])
    return groups


def _ablations(models: Sequence[str], ablations: set[str]) -> dict[str, list[Group]]:
    """Return the groups of each ablation that has records, in which variants follow what they vary."""

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
    varied = {
        title: [group for group in groups if any(model in ablations for _, model in group)]
        for title, groups in parts.items()
    }
    return {
        title: [part for group in groups for part in _present(group, models)]
        for title, groups in varied.items()
        if groups
    }


def _present(group: Group, models: Sequence[str]) -> list[Group]:
    """Return the group without the models that have no record; without its baseline, each row stands alone."""
    present = [row for row in group if row[1] in models]
    return [present] if present and present[0] == group[0] else [[row] for row in present]


def _section(
    title: str, groups: list[Group], numbers: Mapping[str, list[Cell]], columns: list[tuple[str, str]]
) -> Section:
    """Return the section with its best numbers marked and a row of differences after each variant."""
    models = list(dict.fromkeys(model for group in groups for _, model in group))
    marked = {model: list(numbers[model]) for model in models}
    for k, column in enumerate(columns):
        for model, cell in mark_best({model: numbers[model][k] for model in models}, lower=column == RANK).items():
            marked[model][k] = cell
    made = []
    for group in groups:
        (first, baseline), *variants = group
        rows = [Row(baseline, first, marked[baseline])]
        for label, model in variants:
            against = [difference(cell, base) for cell, base in zip(numbers[model], numbers[baseline], strict=True)]
            rows += [Row(model, label, marked[model]), Row(model, "difference", against, baseline)]
        made.append(rows)
    return Section(title, made)


def _remarks(sections: list[Section]) -> list[str]:
    """Explain the marks that occur in the table."""
    rows = [row for section in sections for group in section.groups for row in group]
    models, differences = ([r for r in rows if (r.baseline is None) is plain] for plain in (True, False))
    cells = [cell for row in models for cell in row.cells]
    said = []
    if len(counts := sorted({cell.n for cell in cells if cell.std is not None})) == 1:
        said.append(f"± is the standard deviation over n = {counts[0]} seeds")
    elif counts:
        said.append("± is the standard deviation over the number of seeds in brackets")
    if any(cell.n == 1 and cell.by_seed for cell in cells):
        said.append("a number without ± is of one seed, which cannot rank methods")
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
    """Say once, below the table, what applies to all of its numbers."""
    cells = [cell for row in table.rows if row.baseline is None for cell in row.cells if cell.n]
    common = [note for note in (DIRTY, NO_COMMIT) if len(cells) > 1 and all(note in cell.notes for cell in cells)]
    if not common:
        return table

    def plain(row: Row) -> Row:
        return replace(row, cells=[replace(c, notes=tuple(n for n in c.notes if n not in common)) for c in row.cells])

    sections = [replace(s, groups=[[plain(row) for row in group] for group in s.groups]) for s in table.sections]
    return replace(table, sections=sections, remarks=[*table.remarks, *(f"all numbers are {note}" for note in common)])


if __name__ == "__main__":
    cli.run(main)
