"""What `make evaluate` can run: the benchmarks of a profile, and what is known of each before it starts."""

from pathlib import Path
from typing import Any, NamedTuple

from common.config import load_config
from common.errors import UserError
from common.sources import SOURCES, add_folder, own_name, suite

ROOT = Path(__file__).resolve().parents[1]
# Each task that trains the whole network and each of its layouts, and what a folder in that layout holds.
DENSE = {
    ("detection", "voc"): "ImageSets/Main/*.txt",
    ("detection", "coco"): "annotations/instances_*.json",
    ("segmentation", "ade20k"): "annotations/*/*.png",
}


class Benchmark(NamedTuple):
    """What leaves one record: a task of `common.records` on a data set.

    `view` is the crop and the resize of images whose features are taken, `passes` how often each image is forwarded;
    detection and segmentation, which train the whole network, have no view, but a `layout`: the data set whose config
    they use.
    """

    task: str
    dataset: str
    view: tuple[int, Any] | None = None
    passes: int = 1
    layout: str = ""


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
    return ROOT / benchmark.task / "configs" / profile / f"{benchmark.layout}.py"


def benchmarks(profile: str, root: Path | None = None) -> list[Benchmark]:
    """Return every benchmark that the profile has settings for: on its own data sets, or on the user's folder `root`.

    Raises UserError for a folder in which no task finds its data.
    """
    if root is not None:
        return _of_folder(profile, root)
    dense = [Benchmark(task, layout, layout=layout) for task, layout in DENSE]
    return [
        *_standard(profile),
        *(_recognition(name) for name in suite(profile)),
        *(benchmark for benchmark in dense if config_of(benchmark, profile).is_file()),
    ]


def _of_folder(profile: str, root: Path) -> list[Benchmark]:
    name = own_name(root)
    dense = [Benchmark(task, name, layout=layout) for (task, layout), sign in DENSE.items() if any(root.glob(sign))]
    for benchmark in dense:
        if not config_of(benchmark, profile).is_file():
            raise UserError(f"profile {profile} has no {benchmark.task}, which {root} is for; choose another PROFILE")
    if dense:
        return dense
    if not (root / "train").is_dir():
        signs = ", ".join(DENSE.values())
        raise UserError(
            f"--data-root {root} (DATA_ROOT) has neither train/ and val/, with one folder per class, nor {signs}; "
            "place one of them there"
        )
    return [*_standard(profile, add_folder(root, profile)), _recognition(name)]


def _standard(profile: str, dataset: str = "") -> list[Benchmark]:
    """Return kNN and linear evaluation, on the profile's own data set or on `dataset`."""
    folder = ROOT / "pretrain" / "configs" / profile
    knn: Any = load_config(folder / "knn.py").evaluation
    linear: Any = load_config(folder / "linear.py")
    tested = linear.val_dataloader.dataset
    return [
        Benchmark("knn", dataset or knn.images.name, (knn.size, knn.resize)),
        Benchmark(
            "linear", dataset or tested.images.name, (tested.size, tested.get("resize")), linear.train_cfg.max_epochs
        ),
    ]


def _recognition(dataset: str) -> Benchmark:
    return Benchmark("recognition", dataset, (SOURCES[dataset].size, SOURCES[dataset].resize))
