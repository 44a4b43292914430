"""What the transfer suite saves, against a straightforward rendering of ssl-transfer's procedure, in one run.

make bench, or one of them: python -m transfer.bench --only transfer_sweep_ratio_10
"""

import multiprocessing
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from common import cli
from common.bench import Benchmark, DeviceBenchmark, Found, device_peak, peak_memory, run_room, silence, write_photos
from transfer.sweep import WEIGHT_DECAYS, Part, read_chunks, sweep

if TYPE_CHECKING:
    import torch

DIM = 2048
# Images of the extraction in the proportion of Food-101's train + val and test; the fifth of the first are val.
BOTH, TEST = 96, 32
REPEATS = 3
APART = 0.3  # points between the test accuracies of two sweeps, at most


class Problem(NamedTuple):
    """Features like a ResNet-50's, of `n` train + val and `test` images.

    Enough of them for 0.3 points to be no luck of the draw: with a few hundred val images the two sweeps choose
    weight decays up to two points of test accuracy apart, in both directions.
    """

    classes: int
    noise: float
    n: int = 10_000
    test: int = 10_000
    dim: int | None = None  # of the features, DIM if None

    @property
    def said(self) -> str:
        """What a table calls it."""
        return f"{self.classes} classes, {self.n} + {self.test} images, {self.dim or DIM} features"

    @property
    def rows(self) -> tuple[np.ndarray, np.ndarray]:
        """The rows of train and of val, a fifth, in the first `n`."""
        order = np.random.default_rng(1).permutation(self.n)
        return np.sort(order[self.n // 5 :]), order[: self.n // 5]


TEN, HUNDRED = Problem(10, noise=4.0), Problem(100, noise=2.0)
LARGE = 30_000, 10_000  # images of the comparison of memory; of fewer, the arrays of L-BFGS take more than the features


def make_features(problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """Return features (N, D) float32 and labels (N,): a spectrum that falls as 1/k, classes apart in 64 directions.

    All positive and far from the origin, as a mean over ReLUs is.
    """
    rng, dim = np.random.default_rng(0), problem.dim or DIM
    deviations = np.arange(1, dim + 1, dtype=np.float32) ** -0.5
    rotation = np.linalg.qr(rng.standard_normal((dim, dim), dtype=np.float32))[0]
    centres = rng.standard_normal((problem.classes, dim), dtype=np.float32)
    centres[:, 64:] = 0
    y = rng.permutation(np.arange(problem.n + problem.test) % problem.classes)
    x = centres[y] + problem.noise * rng.standard_normal((len(y), dim), dtype=np.float32)
    x = (x * deviations) @ rotation
    return np.logaddexp(0, x / x.std() - 1).astype(np.float32), y


def reference_sweep(
    x: np.ndarray, y: np.ndarray, problem: Problem, weight_decays: Sequence[float] = WEIGHT_DECAYS
) -> float:
    """Return the test accuracy as ssl-transfer's `linear.py` finds it, in float64, with scikit-learn's defaults."""
    from sklearn.linear_model import LogisticRegression

    train, val = problem.rows
    model = LogisticRegression(warm_start=True)
    x_train, x_val = in_float64(x, train), in_float64(x, val)
    best, chosen = 0.0, weight_decays[0]
    with warnings.catch_warnings(action="ignore"):  # of fits that do not converge: it does not look at them
        for weight_decay in weight_decays:
            score = model.set_params(C=1 / weight_decay).fit(x_train, y[train]).score(x_val, y[val])
            if score > best:
                best, chosen = score, weight_decay
        del x_train, x_val
        x_both, x_test = in_float64(x, np.arange(problem.n)), in_float64(x, np.arange(problem.n, len(x)))
        model.set_params(C=1 / chosen).fit(x_both, y[: problem.n])
    return 100 * model.score(x_test, y[problem.n :])


def in_float64(x: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return the rows as float64, with no more memory than they take."""
    result = np.empty((len(rows), x.shape[1]))
    for place, chunk in read_chunks(x, rows):
        result[place] = chunk
    return result


def our_sweep(
    x: np.ndarray,
    y: np.ndarray,
    problem: Problem,
    weight_decays: Sequence[float] = WEIGHT_DECAYS,
    device: "torch.device | None" = None,
) -> float:
    """Return the test accuracy as `transfer.sweep` finds it."""
    both, test = Part(x[: problem.n], y[: problem.n]), Part(x[problem.n :], y[problem.n :])
    with silence():
        return sweep(both, *problem.rows, test, "accuracy", weight_decays, device).test


@cache
def sweeps(problem: Problem) -> tuple[float, float, float, float]:
    """Return seconds and accuracy of the reference's sweep, and of ours on the same features."""
    x, y = make_features(problem)
    found: list[float] = []
    for run in (reference_sweep, our_sweep):
        started = time.perf_counter()
        accuracy = run(x, y, problem)
        found += [time.perf_counter() - started, accuracy]
    return found[0], found[1], found[2], found[3]


@cache
def extractions() -> tuple[float, float]:
    """Return the median seconds of the reference's extraction and of ours: ResNet-50, JPEGs, in turn."""
    import torch

    from common.backbones import build_backbone
    from common.checkpoint import Checkpoint
    from common.features import evaluation_transform
    from common.images import ImageFiles

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_photos(root / "images", BOTH + TEST)
        paths = sorted(path.name for path in (root / "images").iterdir())
        labels = np.zeros(BOTH + TEST, dtype=np.int64)

        def images(name: str, start: int, stop: int) -> ImageFiles:
            return ImageFiles(name, root / "images", paths[start:stop], labels[start:stop], ["photo"])

        torch.manual_seed(0)
        state = build_backbone("resnet50").state_dict()
        checkpoint = Checkpoint(root, "0", state, {"arch": "resnet50"})
        both, test = images("both", 0, BOTH), images("test", BOTH, BOTH + TEST)
        train, val = images("train", BOTH // 5, BOTH), images("val", 0, BOTH // 5)
        transform = evaluation_transform(224, resize=224)
        times: dict[str, list[float]] = {"reference": [], "ours": []}
        for repeat in range(REPEATS):
            for name, run in (
                ("reference", partial(reference_extraction, checkpoint, [train, val, both, test], transform)),
                ("ours", partial(our_extraction, checkpoint, [both, test], transform, root / f"cache{repeat}")),
            ):
                started = time.perf_counter()
                run()
                times[name].append(time.perf_counter() - started)
    return statistics.median(times["reference"]), statistics.median(times["ours"])


def reference_extraction(checkpoint: Any, parts: Sequence[Any], transform: Any) -> list[np.ndarray]:
    """Return the features of train, val, train + val and test as ssl-transfer has them: each a pass of its own."""
    import torch
    from torch.utils.data import DataLoader

    from common.features import Transformed

    network, found = checkpoint.backbone(), []
    for images in parts:
        rows: list[np.ndarray] = []
        with torch.no_grad():
            for batch, _ in DataLoader(Transformed(images, transform), 64, num_workers=1):
                rows.extend(network(batch).numpy())
        found.append(np.array(rows))
    return found


def our_extraction(checkpoint: Any, parts: Sequence[Any], transform: Any, cache: Path) -> list[np.ndarray]:
    """Return the features of train + val and of test as the transfer suite has them."""
    from common.features import FEW, extract_features, pick_workers

    workers = pick_workers(FEW)  # as for a real data set
    with silence():
        return [extract_features(checkpoint, images, transform, cache, workers=workers).x for images in parts]


def total_ratio(problem: Problem) -> float:
    """Return the reference's time over ours for extraction, in proportion to the images, and sweep."""
    images = (problem.n + problem.test) / (BOTH + TEST)
    reference, ours = (images * seconds for seconds in extractions())
    reference_seconds, _, our_seconds, _ = sweeps(problem)
    return (reference + reference_seconds) / (ours + our_seconds)


def memory_ratio(problem: Problem) -> float:
    """Return the peak memory of our sweep over the reference's: what a process grew by for it (Linux).

    Both read the features from a memory-mapped file; three weight decays, as all take the same.
    """
    with tempfile.TemporaryDirectory() as folder:
        x, y = make_features(problem)
        for name, part in (("all", x), ("both", x[: problem.n]), ("test", x[problem.n :])):
            np.save(Path(folder) / f"{name}.npy", part)
        context = multiprocessing.get_context("spawn")
        with context.Pool(1, maxtasksperchild=1) as pool:  # a process each: its peak never falls
            jobs = [(ours, folder, y, problem) for ours in (True, False)]
            ours, reference = pool.starmap(sweep_memory, jobs, chunksize=1)
    return ours / reference


def sweep_memory(ours: bool, folder: str, y: np.ndarray, problem: Problem) -> int:
    """Return by how many KiB a sweep raised this process's peak."""
    import sklearn.linear_model  # noqa: F401  (what is loaded is no part of it)
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    every, both, test = (np.load(Path(folder) / f"{name}.npy", mmap_mode="c") for name in ("all", "both", "test"))
    few, before = WEIGHT_DECAYS[36:39], peak_memory()  # strong ones take few iterations, and the same memory
    with threadpool_limits(2), silence():
        if ours:
            sweep(Part(both, y[: problem.n]), *problem.rows, Part(test, y[problem.n :]), "accuracy", few)
        else:
            reference_sweep(every, y, problem, few)
    return peak_memory() - before


class Pictures:
    """`count` labelled images in memory, a few in turn, so that no decoding is measured."""

    name, classes, fingerprint = "pictures", ("picture",), "pictures"

    def __init__(self, count: int, size: int) -> None:
        from PIL import Image

        rng = np.random.default_rng(0)
        self.labels = np.zeros(count, dtype=np.int64)
        self._images = [Image.fromarray(rng.integers(0, 256, (size, size, 3), np.uint8)) for _ in range(32)]

    def image(self, index: int) -> Any:
        """Return image `index` in RGB."""
        return self._images[index % len(self._images)]


def gpu_extraction(name: str) -> Found:
    """Measure `extract_features` against a loop of forward passes over a batch that is on the device already.

    By what many images take longer than few: the workers' start and the network's are the same for a real data set.
    """
    import torch

    from common.backbones import build_backbone
    from common.checkpoint import Checkpoint
    from common.features import BATCH, FEW, evaluation_transform, extract_features, pick_workers

    device = torch.device(name)
    arch, size, many, few = ("resnet50", 224, 36_864, 4096) if name == "cuda" else ("test_resnet", 32, 320, 64)
    torch.manual_seed(0)
    checkpoint = Checkpoint(Path(), "0", build_backbone(arch).state_dict(), {"arch": arch})
    transform, batch_size = evaluation_transform(size), BATCH[name]
    pictures = Pictures(batch_size, size)
    batch = torch.stack([transform(pictures.image(k)) for k in range(batch_size)])
    batch = batch.to(device).contiguous(memory_format=torch.channels_last)
    network: Any = checkpoint.backbone().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.inference_mode()
    def bare(images: int) -> float:
        started = time.perf_counter()
        with torch.autocast(name, torch.bfloat16):
            for _ in range(images // batch_size):
                network(batch)
        _wait(name)
        return time.perf_counter() - started

    # Memory where there is enough, as the disk is not what is measured.
    memory = Path("/dev/shm")  # noqa: S108
    in_memory = memory.is_dir() and shutil.disk_usage(memory).free > 2**33
    with tempfile.TemporaryDirectory(dir=memory if in_memory else None) as folder, silence():
        workers = pick_workers(FEW)

        def ours(images: int) -> float:
            cache = Path(tempfile.mkdtemp(dir=folder))
            started = time.perf_counter()
            extract_features(checkpoint, Pictures(images, size), transform, cache, workers=workers, amp="bf16")
            return time.perf_counter() - started

        bare(few)
        ours(few)
        used = device_peak(name)
        more = many - few
        before, start, extraction, after = bare(more // 2), ours(few), ours(many), bare(more // 2)
    passes, ours_more = before + after, max(extraction - start, 1e-3)
    said = (
        f"{more / ours_more:.0f} images/s of {more / passes:.0f}, {workers} workers, batches of {batch_size}; "
        f"{start - few * ours_more / more:.1f} s to start are left out"
    )
    return Found(100 * passes / ours_more, said, used())


def gpu_sweep(name: str) -> Found:
    """Measure the sweep by scikit-learn on the CPU against the one on the device; 0 if they find another accuracy."""
    import torch

    from common.features import cores

    problem = HUNDRED._replace(n=20_000) if name == "cuda" else Problem(5, noise=1.0, n=200, test=1000, dim=32)
    x, y = make_features(problem)
    device = torch.device(name)
    our_sweep(x, y, problem, WEIGHT_DECAYS[30:32], device)  # brings the libraries
    used = device_peak(name)
    seconds, accuracies = [], []
    for where in (device, None):
        started = time.perf_counter()
        accuracies.append(our_sweep(x, y, problem, device=where))
        seconds.append(time.perf_counter() - started)
    gap = abs(accuracies[0] - accuracies[1])
    said = (
        f"{problem.said}: {seconds[1]:.1f} s on {cores()} cores, {seconds[0]:.2f} s on the "
        f"device; test accuracy {gap:.2f} points apart, at most {APART} allowed"
    )
    return Found(seconds[1] / seconds[0] if gap <= APART else 0.0, said, used())


def _wait(name: str) -> None:
    if name == "cuda":
        import torch

        torch.cuda.synchronize()


def _benchmarks() -> dict[str, Benchmark]:
    found: dict[str, Benchmark] = {
        "transfer_extract_ratio": Benchmark(
            f"feature extraction, ssl-transfer's four passes / ours (ResNet-50, {BOTH} + {TEST} JPEGs of 500x375)",
            2.2,
            "higher",
            lambda: extractions()[0] / extractions()[1],
        )
    }
    for problem in (TEN, HUNDRED):
        mark = "" if problem is HUNDRED else f"_{problem.classes}"  # the plain ids are of the larger problem
        large = problem._replace(n=LARGE[0], test=LARGE[1])
        for name, what, of, target, better, run in (
            ("transfer_sweep_ratio", "sweep and refit, float64 ascending / ours", problem, 3.0, "higher",
             lambda problem: sweeps(problem)[0] / sweeps(problem)[2]),
            ("transfer_total_ratio", "extraction and sweep, theirs / ours", problem, 2.0, "higher", total_ratio),
            ("transfer_metric_difference", "test accuracy, points between the two", problem, APART, "lower",
             lambda problem: abs(sweeps(problem)[1] - sweeps(problem)[3])),
            ("transfer_memory_ratio", "peak memory of the sweep, ours / theirs", large, 0.5, "lower", memory_ratio),
        ):  # fmt: skip
            found[name + mark] = Benchmark(f"{what} ({of.said})", target, better, partial(run, of))
    return found


BENCHMARKS = _benchmarks()
DEVICE_BENCHMARKS = {
    "gpu_extract_percent": DeviceBenchmark(
        "feature extraction / bare forward passes over a batch on the device, in percent (ResNet-50 at 224, bf16)",
        90.0,
        "higher",
        gpu_extraction,
    ),
    "gpu_sweep_ratio": DeviceBenchmark(
        "45-value sweep and refit, scikit-learn on the CPU / on the device", 10.0, "higher", gpu_sweep
    ),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print the table, and write it where asked."""
    run_room("transfer.bench", __doc__ or "", BENCHMARKS, argv, DEVICE_BENCHMARKS)


if __name__ == "__main__":
    cli.run(main)
