"""What `make evaluate` can run: the benchmarks of a profile, and what is known of each before it starts."""

from pathlib import Path
from typing import Any, NamedTuple

from common.config import load_config
from common.sources import SOURCES, suite

ROOT = Path(__file__).resolve().parents[1]
DENSE = (("detection", "voc"), ("detection", "coco"), ("segmentation", "ade20k"))


class Benchmark(NamedTuple):
    """What leaves one record: a task of `common.records` on a data set.

    `view` is the crop and the resize of images whose features are taken, `passes` how often each image is forwarded;
    detection and segmentation, which train the whole network, have no view.
    """

    task: str
    dataset: str
    view: tuple[int, Any] | None = None
    passes: int = 1


class Work(NamedTuple):
    """How many images a benchmark forwards or trains on, and how many a second the warm-up saw."""

    images: int
    per_second: float


class Survey(NamedTuple):
    """Why checkpoints are refused, by name; of each benchmark its work, or why it is left out.

    A benchmark in neither has data that cannot be read: its command will say why.
    """

    refused: dict[str, str]
    work: dict[Benchmark, Work]
    left_out: dict[Benchmark, str]


def config_of(benchmark: Benchmark, profile: str) -> Path:
    """Return the config file of detection or segmentation."""
    return ROOT / benchmark.task / "configs" / profile / f"{benchmark.dataset}.py"


def benchmarks(profile: str) -> list[Benchmark]:
    """Return every benchmark that the profile has settings for."""
    folder = ROOT / "pretrain" / "configs" / profile
    standard: Any = load_config(folder / "knn.py").evaluation
    probe: Any = load_config(folder / "linear.py")
    tested = probe.val_dataloader.dataset
    dense = [Benchmark(task, dataset) for task, dataset in DENSE]
    return [
        Benchmark("knn", standard.images.name, (standard.size, standard.resize)),
        Benchmark("linear", tested.images.name, (tested.size, tested.get("resize")), probe.train_cfg.max_epochs),
        *(Benchmark("recognition", name, (SOURCES[name].size, SOURCES[name].resize)) for name in suite(profile)),
        *(benchmark for benchmark in dense if config_of(benchmark, profile).is_file()),
    ]
