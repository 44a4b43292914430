"""The results record: one JSON file per run, and the only thing that analysis reads of it.

`results/<profile>/<task>/<model>/<dataset>[-<variant>]-seed<k>.json`. A failed run leaves none.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from math import inf
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple

from common.errors import UserError
from common.files import sha256_of_text
from common.names import PROFILES

SCHEMA = 2  # 1 had the variant in the protocol, whose names were free; its records are still read

TASKS = ("knn", "linear", "recognition", "detection", "segmentation", "study")

METRICS = (
    "top1",
    "top5",
    "best_top1",
    "best_top5",
    "knn_top1",
    "linear_top1",
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

Kind = type | tuple[type, ...]
REAL = (int, float)


class Fact(NamedTuple):
    """A name that `protocol` may hold.

    Records may be compared only if their settings are equal. What is not a setting is found out in the run, follows
    from another fact, or describes the files.
    """

    kind: Kind
    means: str
    is_setting: bool = True


PROTOCOL: dict[str, Fact] = {
    "k": Fact(int, "neighbours that vote"),
    "temperature": Fact(REAL, "of the votes' weights, exp(similarity / temperature)"),
    "epochs": Fact(int, "passes over the training images"),
    "iterations": Fact(int, "optimiser steps"),
    "batch": Fact(int, "images per optimiser step, over all processes"),
    "lr": Fact(REAL, "base learning rate, as the optimiser gets it"),
    "optimizer": Fact(str, "its class"),
    "precision": Fact(str, "of the forward pass: float32, float16 or bfloat16"),
    "frozen_stages": Fact(int, "the backbone's last frozen stage; 0 is its stem alone, -1 is none"),
    "grid": Fact(int, "weight decays that the sweep tries"),
    "metric": Fact(str, "what the sweep selects by"),
    "evaluation": Fact(str, "how the task's metric is computed"),
    "n_train": Fact(int, "training images, without those of validation"),
    "n_val": Fact(int, "validation images"),
    "n_test": Fact(int, "test images"),
    "classes": Fact(int, "number of classes"),
    "image_size": Fact(int, "side of the square crop in pixels"),
    "resize": Fact((int, NoneType), "the shorter side before the crop in pixels; null is the image as it is"),
    "test_scales": Fact(list, "(longest, shorter) side in pixels of each scale that is tested"),
    "any_size": Fact(bool, "the data set may have other than its published size"),
    "copy": Fact(str, "which copy of the data set the numbers are on"),
    "splits": Fact(str, "where the train, validation and test lists come from"),
    "C": Fact(REAL, "inverse weight decay of the chosen fit", is_setting=False),
    "weight_decay": Fact(REAL, "of the chosen fit", is_setting=False),
    "validation": Fact(REAL, "the chosen fit's metric on the validation images, 0-100", is_setting=False),
    "fits": Fact(int, "logistic regressions in all", is_setting=False),
    "unconverged": Fact(int, "fits that reached the limit of iterations", is_setting=False),
    "winner_converged": Fact(bool, "the chosen fit converged", is_setting=False),
    "winner_at_edge": Fact(bool, "the chosen weight decay is the grid's first or last", is_setting=False),
    "feature_dim": Fact(int, "width of the features", is_setting=False),
    "backbone_depth": Fact(int, "layers of the ResNet", is_setting=False),
    "padding_label": Fact(int, "class of the pixels that pad an image", is_setting=False),
    "split_file": Fact(str, "the lists that our code drew, below the results folder", is_setting=False),
    "split_sha256": Fact(str, "of the split file", is_setting=False),
}

# What --amp says, as the fact `precision` has it.
PRECISIONS = {None: "float32", "fp16": "float16", "bf16": "bfloat16"}
# Facts by the names that they had when records began; `amp` had the values of --amp.
FORMER_NAMES = {"batch_size": "batch", "amp": "precision"}

_FIELDS: dict[str, Kind] = {
    "schema": int,
    "profile": str,
    "task": str,
    "model": str,
    "dataset": str,
    "variant": (str, NoneType),
    "seed": int,
    "metrics": dict,
    "protocol": dict,
    "provenance": dict,
}

DEEPEST = 20  # lists and objects in each other; our own records have four

_OPTIONAL: dict[str, Kind] = {"details": dict, "sha256": str}

_PROVENANCE: dict[str, Kind] = {
    "checkpoint_sha256": str,
    "config_sha256": str,
    "data_fingerprint": str,
    "git_commit": str,
    "git_dirty": bool,
    "versions": dict,
    "host": str,
    "device": str,
    "started": str,
    "seconds": REAL,
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
    """Raise ValueError naming the first field that does not fit the record's schema."""
    if not isinstance(record, dict):
        raise ValueError(f"a record is an object, not {type(record).__name__}")
    schema = record.get("schema", SCHEMA)
    wanted = {name: kind for name, kind in _FIELDS.items() if (name, schema) != ("variant", 1)}
    _check_fields(record, wanted | {name: kind for name, kind in _OPTIONAL.items() if name in record}, "")
    if schema not in (1, SCHEMA):
        raise ValueError(f"schema is {schema}, this code reads 1 to {SCHEMA}")
    if record["profile"] not in PROFILES:
        raise ValueError(f"profile '{record['profile']}' is none of {', '.join(PROFILES)}")
    if record["task"] not in TASKS:
        raise ValueError(f"task '{record['task']}' is none of {', '.join(TASKS)}")
    _check_metrics(record["metrics"])
    if schema == SCHEMA:
        protocol = _renamed(record["protocol"])
        _check_fields(protocol, {name: fact.kind for name, fact in PROTOCOL.items() if name in protocol}, "protocol.")
    _check_fields(record["provenance"], _PROVENANCE, "provenance.")
    for name, value in record.items():
        _check_values(name, value)


def digest(record: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a record's content, which its field `sha256` keeps: a flipped digit is valid JSON."""
    return sha256_of_text(json.dumps(record, sort_keys=True))


def read_record(path: Path) -> dict[str, Any]:
    """Read and validate one record; one of schema 1 is returned as the present schema has it.

    Raises UserError naming the file and the field.
    """
    try:
        if not path.is_file():
            raise OSError("it is not a readable file")
        record = json.loads(path.read_text(encoding="utf-8"))
        validate(record)
        if record.pop("sha256", None) not in (None, digest(record)):
            raise ValueError("it does not fit its sha256: it was changed or damaged after it was written")
        protocol = _renamed(record["protocol"])
        if record["schema"] == 1:
            record |= {"schema": SCHEMA, "variant": protocol.pop("variant", None)}
            _check_fields({"variant": record["variant"]}, {"variant": _FIELDS["variant"]}, "protocol.")
    except (ValueError, RecursionError, OSError) as error:
        why = _printable(str(error))[:300]
        remedy = "make it readable" if isinstance(error, OSError) else "delete it and run its command again"
        raise UserError(f"{_printable(str(path))} is not a valid results record: {why}; {remedy}") from None
    return {**record, "protocol": protocol}


def read_records(root: Path, profile: str) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the valid records of one profile in the order of their paths, and the problems.

    A problem is one line that names a file that is not a valid record, or that lies in another record's place.
    """
    records, problems = [], []
    for path in sorted(_files(root / profile)):
        try:
            record = read_record(path)
            _check_place(path, record, root, profile)
        except UserError as error:
            problems.append(str(error))
        else:
            records.append(record)
    return records, problems


def _files(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """Yield the JSON files below a folder, also behind links to folders unless one leads back above itself."""
    if (real := folder.resolve()) in above or not folder.is_dir():
        return
    try:
        entries = [Path(entry) for entry in os.scandir(folder)]
    except OSError:
        yield folder  # it cannot be listed, and so is named among the problems
        return
    for path in entries:
        if path.suffix == ".json":
            yield path
        else:
            yield from _files(path, (*above, real))


def key_of(record: Mapping[str, Any]) -> RecordKey:
    """Return what a record, as `read_record` returns it, is about."""
    return RecordKey(**{name: record[name] for name in RecordKey.__dataclass_fields__})


def _check_place(path: Path, record: Mapping[str, Any], root: Path, profile: str) -> None:
    if record["profile"] != profile:
        raise UserError(f"{path} is a record of profile '{record['profile']}'; move it where it belongs")
    if (place := key_of(record).path(root)) != path:
        raise UserError(f"{path} is the record that belongs at {place}; move it there or delete it")


def _renamed(protocol: Mapping[str, Any]) -> dict[str, Any]:
    """Return the protocol with the present names of its facts."""
    renamed = {FORMER_NAMES.get(name, name): value for name, value in protocol.items()}
    if "amp" in protocol:
        amp = protocol["amp"]
        renamed["precision"] = next((name for flag, name in PRECISIONS.items() if flag == amp), amp)
    return renamed


def _check_metrics(metrics: Mapping[str, Any]) -> None:
    if not metrics:
        raise ValueError("metrics is empty")
    for name, value in metrics.items():
        if name not in METRICS:
            raise ValueError(f"metrics.{name} is none of {', '.join(METRICS)}")
        if isinstance(value, bool) or not isinstance(value, int | float) or value in (inf, -inf) or value != value:
            raise ValueError(f"metrics.{name} is {value!r}, not a finite number")
        if not 0 <= value <= 100:
            raise ValueError(f"metrics.{name} is {value}, not a percentage in 0-100")


def _check_values(name: str, value: Any, depth: int = 0) -> None:
    """Raise ValueError naming the field if tables and pages could not show a value in it."""
    if depth > DEEPEST:
        raise ValueError(f"{name} is nested more than {DEEPEST} deep")
    if isinstance(value, dict):
        for key, inner in value.items():
            _check_values(f"{name}'s keys", key)
            _check_values(f"{name}.{key}", inner, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            _check_values(name, inner, depth + 1)
    elif isinstance(value, str) and value != value.encode(errors="replace").decode():
        raise ValueError(f"{name} is {value!a}, which is not Unicode text")
    elif isinstance(value, int | float) and not abs(value) <= sys.float_info.max:
        raise ValueError(f"{name} is {value}, not a finite number")


def _printable(text: str) -> str:
    """Return the text in one line that any terminal shows: what is not printable becomes its escape."""
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)


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
    installed = {}
    for package in PACKAGES:
        try:
            installed[package] = version(package)
        except PackageNotFoundError:
            continue
    return installed


def _check_fields(content: Any, fields: Mapping[str, Kind], prefix: str) -> None:
    for name, kind in fields.items():
        if name not in content:
            raise ValueError(f"{prefix}{name} is missing")
        value = content[name]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise ValueError(f"{prefix}{name} is {value!r}, of the wrong type")
    extra = sorted(set(content) - set(fields))
    if extra:
        raise ValueError(f"{prefix}{extra[0]} is not part of the schema")
