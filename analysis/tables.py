"""Tables of all records of a profile, as Markdown, LaTeX and CSV: `python -m analysis.tables`."""

import argparse
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.names import METRIC_NAMES, column_name, column_order, model_name, model_order
from analysis.products import arguments, folder, not_comparable
from common import cli
from common.cli import UserError
from common.files import atomic_write
from common.records import read_records

MODULE = "analysis.tables"
KINDS = {
    "standard": ("Standard evaluation", ("knn", "linear")),
    "recognition": ("Image recognition transfer", ("recognition",)),
    "dense": ("Dense prediction transfer", ("detection", "segmentation")),
}
HOLE = "—"


@dataclass(frozen=True)
class Cell:
    """A cell's text with " ± " or a dash, and whether it is the best of its column."""

    text: str
    best: bool


@dataclass(frozen=True)
class Table:
    """Means, standard deviations (n - 1) and counts over seeds: models by columns (data set, metric)."""

    key: str
    title: str
    profile: str
    mean: pd.DataFrame
    std: pd.DataFrame
    count: pd.DataFrame

    @property
    def columns(self) -> list[tuple[str, str]]:
        """The columns as (data set, metric), in order."""
        return [(str(column[0]), str(column[1])) for column in self.mean.columns]

    def rows(self) -> list[tuple[str, list[Cell]]]:
        """Return (display name, cells) for every model."""
        best = {column: self._best(column) for column in self.columns}
        return [
            (model_name(model), [Cell(self._text(model, column), model in best[column]) for column in self.columns])
            for model in self.mean.index
        ]

    def _best(self, column: tuple[str, str]) -> set[str]:
        """Return the models that show the column's highest number; none where there is but one to show."""
        shown = self.mean[column].dropna().round(2).to_dict()
        return (
            {str(model) for model, value in shown.items() if value == max(shown.values())} if len(shown) > 1 else set()
        )

    def _text(self, model: str, column: tuple[str, str]) -> str:
        mean, std, count = (frame[column].to_dict()[model] for frame in (self.mean, self.std, self.count))
        if not count:
            return HOLE
        return f"{mean:.2f} ± {std:.2f}" if count > 1 else f"{mean:.2f}"


def main(argv: list[str] | None = None) -> None:
    """Run the command line: write the tables and print them."""
    args = arguments(MODULE, __doc__ or "", argv)
    for table in build(args):
        print(f"\n{markdown(table)}", end="")
    print(f"\nwritten: {folder(args)}/table-*.md, .tex, .csv")


def build(args: argparse.Namespace) -> list[Table]:
    """Write the tables of the profile's records and return them. Raises UserError when there are none."""
    tables = make_tables(read_records(args.results, args.profile), args.profile)
    if not tables:
        raise UserError(
            f"no results records in {args.results / args.profile}; make some with "
            f"`make knn linear transfer-all PROFILE={args.profile}`"
        )
    for kind in KINDS:
        for render in (markdown, latex, csv):
            path = folder(args) / f"table-{kind}{_SUFFIX[render.__name__]}"
            path.unlink(missing_ok=True)  # of records that are gone
            for table in tables:
                if table.key == kind:
                    _write(path, render(table))
    return tables


def make_tables(records: Iterable[dict[str, Any]], profile: str) -> list[Table]:
    """Return the tables that have records. All have the same rows: the models of any of them.

    Raises ValueError for a record of another profile: one table never mixes two.
    """
    values = pd.DataFrame([value for record in records for value in _values(record, profile)], columns=_COLUMNS)
    values = values[values.task.isin([task for _, tasks in KINDS.values() for task in tasks])]
    models = model_order(values.model)
    return [
        _table(key, title, profile, part, models)
        for key, (title, tasks) in KINDS.items()
        if len(part := values[values.task.isin(tasks)])
    ]


def markdown(table: Table) -> str:
    """Return the table as aligned Markdown under a heading."""
    lines = [["Model", *(f"{_md(group)} {metric}" for group, metric in table.columns)]]
    lines += [
        [_md(name), *(f"**{cell.text}**" if cell.best else cell.text for cell in cells)] for name, cells in table.rows()
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rule = ["-" * (width - 1) + (":" if k else "-") for k, width in enumerate(widths)]
    padded = [
        [
            text.rjust(width) if k else text.ljust(width)
            for k, (text, width) in enumerate(zip(line, widths, strict=True))
        ]
        for line in (lines[0], rule, *lines[1:])
    ]
    return f"### {table.title}\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in padded)


def latex(table: Table) -> str:
    """Return the table as LaTeX that needs booktabs alone."""
    groups: list[tuple[str, int]] = []
    for group, _ in table.columns:
        if groups and groups[-1][0] == group:
            groups[-1] = (group, groups[-1][1] + 1)
        else:
            groups.append((group, 1))
    rules, first = [], 2
    for _, width in groups:
        rules.append(rf"\cmidrule(lr){{{first}-{first + width - 1}}}")
        first += width
    body = [
        " & ".join([_tex(name), *(rf"\textbf{{{_tex(c.text)}}}" if c.best else _tex(c.text) for c in cells)]) + r" \\"
        for name, cells in table.rows()
    ]
    return "\n".join(
        [
            "% needs \\usepackage{booktabs}",
            r"\begin{table}",
            r"\centering\small\setlength{\tabcolsep}{4pt}",
            rf"\caption{{{_tex(table.title)}}}",
            rf"\begin{{tabular}}{{l{'r' * len(table.columns)}}}",
            r"\toprule",
            " & ".join(["", *(rf"\multicolumn{{{width}}}{{c}}{{{_tex(group)}}}" for group, width in groups)]) + r" \\",
            "".join(rules),
            " & ".join(["Model", *(_tex(metric) for _, metric in table.columns)]) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def csv(table: Table) -> str:
    """Return full-precision means, standard deviations and numbers of seeds; a hole is an empty field."""
    frame = pd.DataFrame({"profile": table.profile}, index=pd.Index(table.mean.index, name="model"))
    for column in table.columns:
        name = " ".join(column)
        frame[name], frame[f"{name} std"] = table.mean[column], table.std[column]
        frame[f"{name} seeds"] = table.count[column]
    return frame.to_csv(lineterminator="\n")


_SUFFIX = {"markdown": ".md", "latex": ".tex", "csv": ".csv"}
_COLUMNS = ["task", "model", "dataset", "variant", "seed", "metric", "value"]
_TEX = {
    **{character: rf"\{character}" for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\\": r"\textbackslash{}",
    "±": r"$\pm$",
    HOLE: "---",
}


def _values(record: dict[str, Any], profile: str) -> Iterable[tuple[Any, ...]]:
    if record["profile"] != profile:
        raise ValueError(f"a record of profile {record['profile']} in a table of {profile}")
    head = (record["task"], record["model"], record["dataset"], record["protocol"].get("variant", ""), record["seed"])
    return [(*head, metric, value) for metric, value in record["metrics"].items()]


def _table(key: str, title: str, profile: str, values: pd.DataFrame, models: list[str]) -> Table:
    columns = sorted({tuple(row) for row in values[["task", "dataset", "variant", "metric"]].values.tolist()})
    columns.sort(key=lambda column: column_order(*column))
    names = pd.MultiIndex.from_tuples(
        [(column_name(*column[:3]), METRIC_NAMES.get(column[3], column[3])) for column in columns]
    )
    groups = values.groupby(["model", "task", "dataset", "variant", "metric"])["value"]

    def spread(by_column: pd.Series) -> pd.DataFrame:
        wide = by_column.unstack(["task", "dataset", "variant", "metric"]).reindex(index=models)
        return wide[columns].set_axis(names, axis="columns")

    note = not_comparable(profile)
    full_title = f"{title}, profile {profile}" + (f" ({note})" if note else "")
    counts = spread(groups.count()).fillna(0).astype(int)
    return Table(key, full_title, profile, spread(groups.mean()), spread(groups.std()), counts)


def _write(path: Path, text: str) -> None:
    atomic_write(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _md(text: str) -> str:
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", text)


def _tex(text: str) -> str:
    return "".join(_TEX.get(character, character) for character in text)


if __name__ == "__main__":
    cli.run(main)
