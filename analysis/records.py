"""Records as tables read them: which of them may be compared, what their seeds amount to, and a pandas frame."""

import sys
import warnings
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.names import model_order, setting_name
from analysis.statistics import mean
from analysis.table import Cell, Settings
from common.errors import UserError
from common.names import PROFILES
from common.records import PROTOCOL, TASKS, key_of, read_records

if TYPE_CHECKING:
    import pandas as pd

DIRTY = "from code with uncommitted changes, so its commit does not reproduce it"
NO_COMMIT = "from code outside a git checkout, so no commit reproduces it"

Key = tuple[str, str, str, str]  # task, data set, variant, metric
Record = Mapping[str, Any]


def load_records(results: str | Path = "results", profile: str | None = None) -> "pd.DataFrame":
    """Return the records of a profile, or of all of them, as a frame with one row per metric.

    Columns: profile, task, model, dataset, variant ("" for none), seed, metric, value (0-100); protocol and details
    as the record's dicts; and each field of the provenance. A file that is not a valid record is named in a warning
    and left out.

    `load_records().pivot_table("value", "model", ["task", "dataset", "metric"])` is a table of means over seeds.
    """
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for one in PROFILES if profile is None else (profile,):
        records, problems = read_records(Path(results), one)
        for record in records:
            head = {name: record[name] for name in ("profile", "task", "model", "dataset")}
            head |= {"variant": record["variant"] or "", "seed": record["seed"]}
            tail = {"protocol": record["protocol"], "details": record.get("details", {}), **record["provenance"]}
            for metric, value in record["metrics"].items():
                rows.append({**head, "metric": metric, "value": float(value), **tail})
        for problem in problems:
            warnings.warn(problem, stacklevel=2)
    names = ["profile", "task", "model", "dataset", "variant", "seed", "metric", "value"]
    return pd.DataFrame(rows, columns=None if rows else pd.Index(names))


def in_order(records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the records in the tables' order: by task, data set, variant, model and seed."""
    records = list(records)
    place = {model: k for k, model in enumerate(model_order(record["model"] for record in records))}
    return sorted(
        records,
        key=lambda r: (TASKS.index(r["task"]), r["dataset"], r["variant"] or "", place[r["model"]], r["seed"]),
    )


def settings_of(record: Record) -> Settings:
    """Return the record's settings as (name, value) pairs; records with equal settings may be compared.

    What the vocabulary of the protocol does not list shows in the hash of the config.
    """
    protocol, made_of = record["protocol"], record["provenance"]
    settings = [(name, _frozen(protocol[name])) for name, f in PROTOCOL.items() if f.is_setting and name in protocol]
    return (*settings, ("data", made_of["data_fingerprint"][:8]), ("config", made_of["config_sha256"][:8]))


def departures(settings: Settings, reference: Settings, place: str = "elsewhere") -> str:
    """Return in words how `settings` differ from `reference`, which are the settings at that place."""
    usual, mine = dict(reference), dict(settings)
    names = [name for name in {**usual, **mine} if usual.get(name, "unknown") != mine.get(name, "unknown")]
    # The config's hash follows from the settings: name it only where nothing else shows the difference.
    named = [name for name in names if name != "config"] or names
    return "; ".join(
        f"{setting_name(name)} {mine.get(name, 'unknown')}, {place} {usual.get(name, 'unknown')}" for name in named
    )


def cells_of(records: Iterable[Record], results: Path) -> dict[tuple[str, Key], Cell]:
    """Return the cell of each model and column, with notes on what departs from the column's usual settings."""
    by_model: dict[str, dict[Key, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        for metric in record["metrics"]:
            key = (record["task"], record["dataset"], record["variant"] or "", metric)
            by_model[record["model"]][key].append(record)
    columns: dict[Key, Counter[Settings]] = defaultdict(Counter)
    for model in model_order(by_model):  # of equally frequent settings, those of the first model are usual
        for key, of_cell in by_model[model].items():
            columns[key].update(settings_of(record) for record in of_cell)
    usual = {key: counter.most_common(1)[0][0] for key, counter in columns.items()}
    return {
        (model, key): _cell(of_cell, key[3], usual[key], results)
        for model, by_key in by_model.items()
        for key, of_cell in by_key.items()
    }


def report_problems(problems: list[str]) -> None:
    """Print each problem that reading files met, and raise UserError if there was one. Called last."""
    for problem in problems:
        print(f"skipped: {problem}", file=sys.stderr)
    if problems:
        raise UserError(f"skipped {len(problems)} file{'s' * (len(problems) > 1)}, see above")


def _cell(records: list[Record], metric: str, usual: Settings, results: Path) -> Cell:
    """Return the number of a model's seeds. Seeds with other settings than most are left out, with a note."""
    settings = Counter(settings_of(record) for record in records)
    mine = usual if usual in settings else settings.most_common(1)[0][0]
    notes = [] if mine == usual else [departures(mine, usual)]
    kept = []
    for record in records:
        if (of_record := settings_of(record)) == mine:
            kept.append(record)
        else:
            notes.append(f"seed {record['seed']} left out: {departures(of_record, mine)}")
    if any(record["provenance"]["git_dirty"] for record in kept):
        notes.append(DIRTY)
    if any(record["provenance"]["git_commit"] == "unknown" for record in kept):
        notes.append(NO_COMMIT)
    number = mean({record["seed"]: float(record["metrics"][metric]) for record in kept})
    sources = tuple(str(key_of(record).path(results)) for record in kept)
    return replace(number, notes=tuple(notes), sources=sources, settings=(mine,), usual=mine == usual)


def _frozen(value: Any) -> Hashable:
    if isinstance(value, list):
        return tuple(map(_frozen, value))
    return str(value) if isinstance(value, dict) else value  # only records of schema 1 have such facts
