"""The results record: one JSON file a run, written atomically, and all that analysis reads.

`results/<profile>/<task>/<model>/<dataset>[-<variant>]-seed<k>.json`. A failed run leaves none.
"""

import json
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from math import inf
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.names import PROFILES

SCHEMA = 1

TASKS = ("knn", "linear", "recognition", "detection", "segmentation", "study")

METRICS = (
    "top1",
    "top5",
    "best_top1",
    "best_top5",
    "accuracy",
    "mean_per_class_accuracy",
    "mAP11",
    "AP",
    "AP50",
    "AP75",
    "mIoU",
    "aAcc",
)

PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "scikit-learn",
    "onedl-mmengine",
    "onedl-mmdetection",
    "onedl-mmsegmentation",
)

_FIELDS: dict[str, type] = {
    "schema": int,
    "profile": str,
    "task": str,
    "model": str,
    "dataset": str,
    "seed": int,
    "metrics": dict,
    "protocol": dict,
    "provenance": dict,
}

_OPTIONAL: dict[str, type] = {"details": dict}

_PROVENANCE: dict[str, type | tuple[type, ...]] = {
    "checkpoint_sha256": str,
    "config_sha256": str,
    "data_fingerprint": str,
    "git_commit": str,
    "git_dirty": bool,
    "versions": dict,
    "host": str,
    "device": str,
    "started": str,
    "seconds": (int, float),
}


@dataclass(frozen=True)
class RecordKey:
    """What a record is about; it fixes the file's place."""

    profile: str
    task: str
    model: str
    dataset: str
    seed: int
    variant: str | None = None

    @property
    def stem(self) -> str:
        """The data set and, where there is one, the variant."""
        return self.dataset if self.variant is None else f"{self.dataset}-{self.variant}"

    def path(self, root: Path) -> Path:
        """Return the record's file under the results folder `root`."""
        return root / self.profile / self.task / self.model / f"{self.stem}-seed{self.seed}.json"


def validate(record: Any) -> None:
    """Raise ValueError naming the first field that does not fit the schema."""
    if not isinstance(record, dict):
        raise ValueError(f"a record is an object, not {type(record).__name__}")
    _check_fields(record, {**_FIELDS, **{name: _OPTIONAL[name] for name in _OPTIONAL if name in record}}, "")
    if record["schema"] != SCHEMA:
        raise ValueError(f"schema is {record['schema']}, this code reads {SCHEMA}")
    if record["profile"] not in PROFILES:
        raise ValueError(f"profile '{record['profile']}' is none of {', '.join(PROFILES)}")
    if record["task"] not in TASKS:
        raise ValueError(f"task '{record['task']}' is none of {', '.join(TASKS)}")
    if not record["metrics"]:
        raise ValueError("metrics is empty")
    for name, value in record["metrics"].items():
        if name not in METRICS:
            raise ValueError(f"metrics.{name} is none of {', '.join(METRICS)}")
        if isinstance(value, bool) or not isinstance(value, int | float) or value in (inf, -inf) or value != value:
            raise ValueError(f"metrics.{name} is {value!r}, not a finite number")
        if not 0 <= value <= 100:
            raise ValueError(f"metrics.{name} is {value}, not a percentage in 0-100")
    _check_fields(record["provenance"], _PROVENANCE, "provenance.")


def read_record(path: Path) -> dict[str, Any]:
    """Read and validate one record. Raises UserError naming the file and the field."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        validate(record)
    except (ValueError, OSError) as error:
        raise UserError(f"{path} is no valid results record: {error}; delete it and run its command again") from None
    return record


def read_records(root: Path, profile: str, problems: list[str] | None = None) -> Iterator[dict[str, Any]]:
    """Yield the valid records of one profile, in the order of their paths.

    A file that is none, or lies in another record's place, raises UserError; with a list of `problems`, its line
    goes there and reading goes on.
    """
    for path in sorted((root / profile).rglob("*.json")):
        try:
            record = read_record(path)
            _check_place(path, record, root, profile)
        except UserError as error:
            if problems is None:
                raise
            problems.append(str(error))
        else:
            yield record


def key_of(record: Mapping[str, Any]) -> RecordKey:
    """Return what a valid record is about."""
    names = ("profile", "task", "model", "dataset", "seed")
    return RecordKey(**{name: record[name] for name in names}, variant=record["protocol"].get("variant"))


def _check_place(path: Path, record: Mapping[str, Any], root: Path, profile: str) -> None:
    if record["profile"] != profile:
        raise UserError(f"{path} is a record of profile '{record['profile']}'; move it where it belongs")
    if (place := key_of(record).path(root)) != path:
        raise UserError(f"{path} is the record that belongs into {place}; move it there or delete it")


@cache
def git_state() -> tuple[str, bool]:
    """Return (commit, dirty) of this code; ("unknown", False) outside a git checkout."""

    def git(*args: str) -> str:
        here = Path(__file__).resolve().parent
        return subprocess.run(["git", *args], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.CalledProcessError):
        return "unknown", False


def versions() -> dict[str, str]:
    """Return the installed versions of the packages that results depend on."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _check_fields(content: Any, fields: Mapping[str, type | tuple[type, ...]], prefix: str) -> None:
    for name, kind in fields.items():
        if name not in content:
            raise ValueError(f"{prefix}{name} is missing")
        value = content[name]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise ValueError(f"{prefix}{name} is {value!r}, of the wrong type")
    extra = sorted(set(content) - set(fields))
    if extra:
        raise ValueError(f"{prefix}{extra[0]} is not part of the schema")
