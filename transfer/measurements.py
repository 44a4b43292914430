"""What `transfer.bench` measures; the reference is a plain rendering of ssl-transfer's procedure."""

import multiprocessing
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torch.utils.data import DataLoader

from common.backbones import build_backbone
from common.bench import Found, device_peak, peak_memory, silence, write_photos
from common.checkpoint import Checkpoint
from common.features import (
    BATCH,
    FEW,
    Features,
    Transformed,
    cores,
    evaluation_transform,
    extract_features,
    pick_workers,
)
from common.images import ImageFiles
from transfer.settings import WEIGHT_DECAYS
from transfer.sweep import read_chunks, sweep
from transfer.synthetic import APART, BOTH, HUNDRED, TEST, Problem, make_features

REPEATS = 3


def reference_sweep(
    x: np.ndarray, y: np.ndarray, problem: Problem, weight_decays: Sequence[float] = WEIGHT_DECAYS
) -> float:
    """Return the test accuracy of ssl-transfer's `linear.py`, in float64, with scikit-learn's defaults."""
    train, val = problem.rows
    model = LogisticRegression(warm_start=True)
    x_train, x_val = in_float64(x, train), in_float64(x, val)
    best, chosen = 0.0, weight_decays[0]
    with warnings.catch_warnings(action="ignore"):  # fits that do not converge are used all the same
        for weight_decay in weight_decays:
            score = model.set_params(C=1 / weight_decay).fit(x_train, y[train]).score(x_val, y[val])
            if score > best:
                best, chosen = score, weight_decay
        del x_train, x_val
        x_both, x_test = in_float64(x, np.arange(problem.n)), in_float64(x, np.arange(problem.n, len(x)))
        model.set_params(C=1 / chosen).fit(x_both, y[: problem.n])
    return 100 * model.score(x_test, y[problem.n :])


def in_float64(x: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return the rows as float64, using no memory beyond theirs."""
    result = np.empty((len(rows), x.shape[1]))
    for place, chunk in read_chunks(x, rows):
        result[place] = chunk
    return result


def our_sweep(
    x: np.ndarray,
    y: np.ndarray,
    problem: Problem,
    weight_decays: Sequence[float] = WEIGHT_DECAYS,
    device: torch.device | None = None,
) -> float:
    """Return the test accuracy of `transfer.sweep`."""
    both, test = Features(x[: problem.n], y[: problem.n]), Features(x[problem.n :], y[problem.n :])
    with silence():
        return sweep(both, *problem.rows, test, "accuracy", weight_decays, device).test


@cache
def sweeps(problem: Problem) -> tuple[float, float, float, float]:
    """Return seconds and accuracy of the reference's sweep, and of ours on the same features."""
    x, y = make_features(problem)
    measured: list[float] = []
    for run in (reference_sweep, our_sweep):
        started = time.perf_counter()
        accuracy = run(x, y, problem)
        measured += [time.perf_counter() - started, accuracy]
    return measured[0], measured[1], measured[2], measured[3]


@cache
def extractions() -> tuple[float, float]:
    """Return the median seconds of the reference's extraction and of ours, measured in turn: ResNet-50, JPEGs."""
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


def extraction_ratio() -> float:
    """Return the reference's time over ours for the extraction."""
    reference, ours = extractions()
    return reference / ours


def sweep_ratio(problem: Problem) -> float:
    """Return the reference's time over ours for the sweep."""
    reference, _, ours, _ = sweeps(problem)
    return reference / ours


def metric_difference(problem: Problem) -> float:
    """Return the points between the test accuracies of the two sweeps."""
    _, reference, _, ours = sweeps(problem)
    return abs(reference - ours)


def reference_extraction(checkpoint: Any, parts: Sequence[Any], transform: Any) -> list[np.ndarray]:
    """Return the features of train, val, train + val and test as ssl-transfer makes them: in four passes."""
    network, features = checkpoint.backbone(), []
    for images in parts:
        rows: list[np.ndarray] = []
        with torch.no_grad():
            for batch, _ in DataLoader(Transformed(images, transform), 64, num_workers=1):
                rows.extend(network(batch).numpy())
        features.append(np.array(rows))
    return features


def our_extraction(checkpoint: Any, parts: Sequence[Any], transform: Any, cache: Path) -> list[np.ndarray]:
    """Return the features of train + val and of test as the transfer suite makes them."""
    workers = pick_workers(FEW)  # as for a real data set
    with silence():
        return [extract_features(checkpoint, images, transform, cache, workers=workers).x for images in parts]


def total_ratio(problem: Problem) -> float:
    """Return the reference's time over ours, for the extraction of as many images as `problem` has and the sweep."""
    images = (problem.n + problem.test) / (BOTH + TEST)
    reference, ours = (images * seconds for seconds in extractions())
    reference_seconds, _, our_seconds, _ = sweeps(problem)
    return (reference + reference_seconds) / (ours + our_seconds)


def memory_ratio(problem: Problem) -> float:
    """Return the peak memory of our sweep over the reference's: by how much a process grew for it (Linux).

    Both read the features from a memory-mapped file, for three weight decays, as all need the same memory.
    """
    with tempfile.TemporaryDirectory() as folder:
        x, y = make_features(problem)
        for name, part in (("all", x), ("both", x[: problem.n]), ("test", x[problem.n :])):
            np.save(Path(folder) / f"{name}.npy", part)
        context = multiprocessing.get_context("spawn")
        with context.Pool(1, maxtasksperchild=1) as pool:  # one process for each, as its peak never falls
            jobs = [(ours, folder, y, problem) for ours in (True, False)]
            ours, reference = pool.starmap(sweep_memory, jobs, chunksize=1)
    return ours / reference


def sweep_memory(ours: bool, folder: str, y: np.ndarray, problem: Problem) -> int:
    """Return by how many KiB a sweep raised this process's peak."""
    every, both, test = (np.load(Path(folder) / f"{name}.npy", mmap_mode="c") for name in ("all", "both", "test"))
    few, before = WEIGHT_DECAYS[36:39], peak_memory()  # strong ones take few iterations, and as much memory
    with threadpool_limits(2), silence():
        if ours:
            sweep(Features(both, y[: problem.n]), *problem.rows, Features(test, y[problem.n :]), "accuracy", few)
        else:
            reference_sweep(every, y, problem, few)
    return peak_memory() - before


class Pictures:
    """`count` labelled images from a few in memory, so that no decoding is measured."""

    name, classes, fingerprint = "pictures", ("picture",), "pictures"

    def __init__(self, count: int, size: int) -> None:
        rng = np.random.default_rng(0)
        self.labels = np.zeros(count, dtype=np.int64)
        self._images = [Image.fromarray(rng.integers(0, 256, (size, size, 3), np.uint8)) for _ in range(32)]

    def image(self, index: int) -> Any:
        """Return image `index` in RGB."""
        return self._images[index % len(self._images)]


def gpu_extraction(name: str) -> Found:
    """Measure `extract_features` against a loop of forward passes over a batch that is on the device already.

    Only what many images take longer than few counts: a real data set makes the start of workers and network no longer.
    """
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

    # In memory where it suffices: the disk is not to be measured.
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
    """Measure the sweep on the device against scikit-learn's on the CPU; 0 if their accuracies differ."""
    problem = HUNDRED._replace(n=20_000) if name == "cuda" else Problem(5, noise=1.0, n=200, test=1000, dim=32)
    x, y = make_features(problem)
    device = torch.device(name)
    our_sweep(x, y, problem, WEIGHT_DECAYS[30:32], device)  # loads the libraries
    used = device_peak(name)
    seconds, accuracies = [], []
    for where in (device, None):
        started = time.perf_counter()
        accuracies.append(our_sweep(x, y, problem, device=where))
        seconds.append(time.perf_counter() - started)
    gap = abs(accuracies[0] - accuracies[1])
    said = (
        f"{problem.title}: {seconds[1]:.1f} s on {cores()} cores, {seconds[0]:.2f} s on the "
        f"device; test accuracy {gap:.2f} points apart, at most {APART} allowed"
    )
    return Found(seconds[1] / seconds[0] if gap <= APART else 0.0, said, used())


def _wait(name: str) -> None:
    if name == "cuda":
        torch.cuda.synchronize()
