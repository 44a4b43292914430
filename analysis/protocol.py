"""Compares the records' settings with the paper's."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from analysis.names import benchmark_name, column_order, setting_name
from analysis.records import settings_of
from analysis.table import Settings
from common.records import METRICS

# The settings of the paper's runs: the appendix, and where it is silent the authors' code (PROTOCOLS 2-6).
_RECOGNITION = {"grid": 45, "image_size": 224, "resize": 224}
PAPER: dict[tuple[str, str], dict[str, Any]] = {
    ("knn", "imagenet"): {"k": 200, "temperature": 0.2},
    ("knn", "cifar10"): {"k": 200, "temperature": 0.1},
    ("linear", "imagenet"): {"epochs": 90, "batch": 4096, "optimizer": "LARS"},
    ("detection", "voc"): {"iterations": 144_000, "batch": 2, "lr": 0.0025},
    ("detection", "coco"): {"iterations": 270_000, "batch": 16, "lr": 0.02},
    ("segmentation", "ade20k"): {"iterations": 150_000, "batch": 2, "lr": 0.02},
}
WHAT = {
    "demo": (
        "Demo: a ResNet-18 pretrained for two epochs on 1,437 embedded images of handwritten digits, then every "
        "benchmark on embedded data in the official layouts. It shows that the chain works. The untrained network does "
        "about as well, so its numbers do not say which method is better."
    ),
    "cifar10": (
        "The paper's CIFAR-10 setting (appendix B.2, C.2): a ResNet-18 variant, 200 epochs at batch 128 as in "
        "lightly's benchmark. The paper has no linear evaluation on CIFAR-10; that one is ours."
    ),
    "imagenet": (
        "The paper's ImageNet setting (appendix B.1, C.1, D): ResNet-50, 100 epochs at batch 512, then transfer."
    ),
}


@dataclass(frozen=True)
class Fact:
    """A benchmark's settings: those of most of its records, the paper's, and whether the paper's agree with these."""

    benchmark: str
    here: str
    paper: str
    agrees: bool | None  # None: the paper has no such benchmark


def facts(records: Iterable[Mapping[str, Any]]) -> list[Fact]:
    """Return one fact for each benchmark that has records, in the order of the tables."""
    settings: dict[tuple[str, str, str], Counter[Settings]] = {}
    for record in records:
        key = (record["task"], record["dataset"], record["variant"] or "")
        settings.setdefault(key, Counter())[settings_of(record)] += 1
    shown = []
    for key in sorted(settings, key=lambda key: column_order(key[0], key[1], key[2], METRICS[0])):
        task, dataset, _ = key
        here = dict(settings[key].most_common(1)[0][0])
        of_paper = _RECOGNITION if task == "recognition" else PAPER.get((task, _counterpart(task, dataset)), {})
        agrees = all(here.get(name) == value for name, value in of_paper.items()) if of_paper else None
        shown.append(Fact(benchmark_name(*key), words(here), words(of_paper), agrees))
    return shown


def _counterpart(task: str, dataset: str) -> str:
    return "imagenet" if dataset == "digits" and task in ("knn", "linear") else dataset


def words(settings: Mapping[str, Any]) -> str:
    """Return a record's or the paper's settings in words, without hashes and without what nobody changed."""
    shown = {name: value for name, value in settings.items() if name not in ("data", "config")}
    return ", ".join(
        f"{setting_name(name)} {f'{value:,}' if type(value) is int else value}"
        for name, value in shown.items()
        if value is not None and value is not False and value != "float32"
    )
