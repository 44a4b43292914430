"""Records as tables read them: which of them may stand side by side, and as a pandas frame."""

import sys
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.names import model_order
from common.errors import UserError
from common.names import PROFILES
from common.records import TASKS, key_of, read_records

if TYPE_CHECKING:
    import pandas as pd

# What of a record's protocol are settings, which must agree before two numbers are compared. The rest is found out
# in the run (C, unconverged fits) or follows from the backbone; what is not listed shows in the config's hash.
SETTINGS = {
    "k": "k",
    "temperature": "temperature",
    "epochs": "epochs",
    "iterations": "iterations",
    "batch_size": "batch",
    "batch": "batch",
    "lr": "learning rate",
    "optimizer": "optimiser",
    "precision": "precision",
    "amp": "mixed precision",
    "frozen_stages": "frozen stages",
    "grid": "weight decays in the C grid",
    "metric": "metric",
    "evaluation": "evaluation",
    "n_train": "training images",
    "n_val": "validation images",
    "n_test": "test images",
    "classes": "classes",
    "image_size": "image size",
    "resize": "resize",
    "test_scales": "test scales",
    "any_size": "any size",
    "splits": "splits",
}


def load_records(results: str | Path = "results", profile: str | None = None) -> "pd.DataFrame":
    """Return the records of a profile, or of all of them, as a frame with a row for each metric.

    Columns: profile, task, model, dataset, variant ("" for none), seed, metric, value (0-100); protocol and details
    as the record's dicts; and each field of the provenance. A file that is no valid record is named in a warning and
    left out.

    `load_records().pivot_table("value", "model", ["task", "dataset", "metric"])` is a table of means over seeds.
    """
    import pandas as pd

    rows: list[dict[str, Any]] = []
    problems: list[str] = []
    for one in PROFILES if profile is None else (profile,):
        for record in read_records(Path(results), one, problems):
            head = {name: record[name] for name in ("profile", "task", "model", "dataset")}
            tail = {"protocol": record["protocol"], "details": record.get("details", {}), **record["provenance"]}
            variant = key_of(record).variant or ""
            for metric, value in record["metrics"].items():
                values = {"variant": variant, "seed": record["seed"], "metric": metric, "value": float(value)}
                rows.append({**head, **values, **tail})
    for problem in problems:
        warnings.warn(problem, stacklevel=2)
    names = ["profile", "task", "model", "dataset", "variant", "seed", "metric", "value"]
    return pd.DataFrame(rows, columns=None if rows else pd.Index(names))


def in_order(records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the records as tables have them: by task, data set, model and seed."""
    found = list(records)
    place = {model: k for k, model in enumerate(model_order(record["model"] for record in found))}
    return sorted(
        found,
        key=lambda r: (TASKS.index(r["task"]), r["dataset"], key_of(r).variant or "", place[r["model"]], r["seed"]),
    )


def settings_of(record: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Return the record's settings as (name, value) pairs; records whose settings are equal may be compared."""
    protocol, made_of = record["protocol"], record["provenance"]
    found = [(name, str(protocol[key])) for key, name in SETTINGS.items() if key in protocol]
    return (*found, ("data", made_of["data_fingerprint"][:8]), ("config", made_of["config_sha256"][:8]))


def difference(settings: tuple[tuple[str, str], ...], reference: tuple[tuple[str, str], ...]) -> str:
    """Return in words what of `settings` is not as in `reference`."""
    usual, found = dict(reference), dict(settings)
    names = [name for name in {**usual, **found} if usual.get(name) != found.get(name)]
    # The config's hash follows from the settings: it is named only where it alone tells of a difference.
    told = [name for name in names if name != "config"] or names
    return "; ".join(f"{name} {found.get(name, 'unknown')}, elsewhere {usual.get(name, 'unknown')}" for name in told)


def report_problems(problems: Iterable[str]) -> None:
    """Print each file that was skipped, and raise UserError if there was one. Called when the work is done."""
    found = list(problems)
    for problem in found:
        print(f"skipped: {problem}", file=sys.stderr)
    if found:
        raise UserError(
            f"skipped {len(found)} file{'s' if len(found) > 1 else ''} that are no valid records, see above"
        )
