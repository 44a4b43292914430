"""Choose the weight decay of a logistic regression on a validation set, refit, and score the test set.

`transfer.regularisation` fits; here are the grid, the choice and the threads. BLAS may use several threads only in the
products: in L-BFGS's own steps SciPy's threads would wait for NumPy's. The features are in memory once.
"""

import math
import mmap
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from threadpoolctl import ThreadpoolController, threadpool_info  # type: ignore[import-untyped]
from tqdm import tqdm

from common.errors import UserError
from common.features import Features
from transfer.calibration import calibrate
from transfer.metrics import METRICS
from transfer.regularisation import (
    CHUNK,
    Fit,
    Problem,
    RegularisationPath,
    deviations,
    inverse,
    noting_convergence,
    on_host,
    problems_of,
    usual,
)
from transfer.settings import TYPICAL, UNIT, WEIGHT_DECAYS

NOT_FINITE = "the features are not finite: the checkpoint's weights are damaged or diverged; pretrain again"


@dataclass(frozen=True)
class Outcome:
    """What a sweep chose, and the scores it reached.

    `cs`, `val` (the metric), `iterations` (summed over the fits of a weight decay) and `converged` (all of them) are
    in the order of `weight_decays`, which ascend. `winner_converged` covers the chosen fit and the refit.
    `calibration` comes from `transfer.calibration.calibrate`; it is None for multi-label data.
    """

    weight_decay: float
    c: float
    validation: float
    test: float
    fits: int
    unconverged: int
    winner_converged: bool
    refit_iterations: int
    weight_decays: list[float]
    cs: list[float]
    val: list[float]
    iterations: list[int]
    converged: list[bool]
    seconds: float
    calibration: dict[str, float] | None

    @property
    def at_edge(self) -> bool:
        """Whether the winner is the first or last of the grid: the best may lie beyond."""
        return self.weight_decay in (self.weight_decays[0], self.weight_decays[-1])


def sweep(
    both: Features,
    train: np.ndarray,
    val: np.ndarray,
    test: Features,
    metric: str,
    weight_decays: Sequence[float] = WEIGHT_DECAYS,
    device: torch.device | None = None,
) -> Outcome:
    """Fit on `train` for every weight decay, choose on `val`, refit on both, score `test`.

    The refit starts from the chosen fit or, where that may depend on its own start, from the last close one, and
    follows the path from there: at weak decays the weights of the smaller set meet TOL a point or more from the
    optimum.

    `train` and `val` are rows of `both`; `metric` is a key of `transfer.metrics.METRICS`: mAP11 takes multi-label
    data, the others single labels. The higher metric wins, and of equal ones the larger C. The labels must have
    passed `transfer.datasets.check_labels`. Features are copied once, as float32, for scikit-learn or, with a
    `device`, to it. Raises UserError for features that are not finite.
    """
    started = time.monotonic()
    weight_decays = sorted(weight_decays)
    multilabel, order = both.y.ndim == 2, np.concatenate([train, val])
    mean = _mean(both.x, train)
    x = _centred(both.x, order, mean, device)
    scale = _unit(x)
    x *= 1 / scale
    y, n = both.y[order], len(train)
    problems = problems_of(y)
    score = METRICS[metric]

    def path(problem: Problem) -> dict[float, Fit]:
        fitter = RegularisationPath(x[:n], problem.on(x)[:n], problem.binary, scale=scale)
        fits: dict[float, Fit] = {}
        for weight_decay in weight_decays[::-1]:
            if stop.is_set():
                break
            fits[weight_decay] = fitter.fit(weight_decay)
            if not multilabel:  # multi-label metrics need all classes
                reached[weight_decay] = score(y[n:], problem.columns(fits[weight_decay].scores(x[n:])))
                _forget_losers(fits, reached)
            bar.update()
        return fits

    def refit(job: tuple[Problem, dict[float, Fit]]) -> list[Fit]:
        problem, fits = job
        begin = max(chosen, _last_close(fits))
        fitter = RegularisationPath(x, problem.on(x), problem.binary, fits[begin], scale)
        return [fitter.fit(weight_decay) for weight_decay in weight_decays[::-1] if chosen <= weight_decay <= begin]

    reached: dict[float, float] = {}
    cores, stop = _cores(), threading.Event()
    workers = min(len(problems), cores) if device is None else 1
    with noting_convergence(), _threads(cores if workers == 1 else 1), _bar(len(weight_decays) * len(problems)) as bar:
        paths = _in_threads(path, problems, workers, stop)
        fits = {wd: [fits_of[wd] for fits_of in paths] for wd in weight_decays}
        if multilabel:
            for wd, of_class in fits.items():
                reached[wd] = score(y[n:], np.concatenate([fit.scores(x[n:]) for fit in of_class], axis=1))
        chosen = max(weight_decays, key=lambda wd: (reached[wd], -wd))
        bar.set_description("refit")
        refits = _in_threads(refit, list(zip(problems, paths, strict=True)), workers, stop)
    scores = np.concatenate([_scores(test.x, mean, scale, path[-1]) for path in refits], axis=1)
    scores = problems[0].columns(scores) if not multilabel else scores
    if not np.isfinite(scores).all():
        raise UserError(NOT_FINITE)
    every = [fit for of_class in (*fits.values(), *refits) for fit in of_class]
    return Outcome(
        weight_decay=chosen,
        c=inverse(chosen, problems[0].binary),
        validation=reached[chosen],
        test=score(test.y, scores),
        fits=len(every),
        unconverged=sum(not fit.converged for fit in every),
        winner_converged=all(fit.converged for fit in (*fits[chosen], *(path[-1] for path in refits))),
        refit_iterations=sum(fit.iterations for path in refits for fit in path),
        weight_decays=list(weight_decays),
        cs=[inverse(wd, problems[0].binary) for wd in weight_decays],
        val=[reached[wd] for wd in weight_decays],
        iterations=[sum(fit.iterations for fit in fits[wd]) for wd in weight_decays],
        converged=[all(fit.converged for fit in fits[wd]) for wd in weight_decays],
        seconds=time.monotonic() - started,
        calibration=None if multilabel else calibrate(test.y, scores),
    )


def read_chunks(x: np.ndarray, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the places among `rows`, and the rows of `x`, in chunks that follow the order of `x`.

    No page of a memory-mapped file stays in memory; scattered rows would map up to 2 MiB each.
    """
    order = np.argsort(rows, kind="stable")
    for start in range(0, len(rows), CHUNK):
        place = order[start : start + CHUNK]
        if isinstance(x, np.memmap) and isinstance(x.base, mmap.mmap):  # a whole file: one map per chunk
            mapped: np.ndarray = np.memmap(x.filename, x.dtype, "r", x.offset, x.shape)
            yield place, mapped[rows[place]]
        else:
            yield place, x[rows[place]]


def _mean(x: np.ndarray, rows: np.ndarray) -> np.ndarray:
    total = np.zeros(x.shape[1])
    for _, chunk in read_chunks(x, rows):
        total += chunk.sum(0, dtype=np.float64)
    if not np.isfinite(total).all():
        raise UserError(NOT_FINITE)
    return (total / len(rows)).astype(np.float32)


def _centred(x: np.ndarray, rows: np.ndarray, mean: np.ndarray, device: torch.device | None) -> Any:
    """Return the rows minus `mean` as a NumPy array or, with a `device`, as a tensor there."""
    shape = len(rows), x.shape[1]
    result: Any = np.empty(shape, dtype=np.float32) if device is None else torch.empty(shape, device=device)
    for place, chunk in read_chunks(x, rows):
        if device is None:
            result[place] = chunk - mean
        else:
            result[torch.as_tensor(place, device=device)] = torch.as_tensor(chunk - mean, device=device)
    if not math.isfinite(float(result.sum())):
        raise UserError(NOT_FINITE)
    return result


def _unit(x: Any) -> float:
    """Return the power of UNIT by which to divide centred features (N, D) so that most deviate by about TYPICAL.

    It is 1 for those of a ResNet.
    """
    sizes = on_host(deviations(x)[:-1])
    sizes = sizes[sizes > 0]
    return UNIT ** round(math.log(usual(sizes) / TYPICAL, UNIT)) if sizes.size else 1.0


def _scores(x: np.ndarray, mean: np.ndarray, scale: float, fit: Fit) -> np.ndarray:
    weight, bias = on_host(fit.weight), on_host(fit.bias)
    chunks = ((chunk - mean) / np.float32(scale) for _, chunk in read_chunks(x, np.arange(len(x))))
    return np.concatenate([chunk @ weight.T + bias for chunk in chunks])


def _forget_losers(fits: dict[float, Fit], reached: dict[float, float]) -> None:
    """Drop all weights but those that the refit may start from: with many classes they are large."""
    kept = {max(fits, key=lambda weight_decay: (reached[weight_decay], -weight_decay)), _last_close(fits)}
    for weight_decay, fit in fits.items():
        if weight_decay not in kept:
            fit.weight = fit.bias = None


def _last_close(fits: dict[float, Fit]) -> float:
    return min((weight_decay for weight_decay, fit in fits.items() if fit.close), default=max(fits))


def _in_threads(do: Callable[[Any], Any], jobs: Sequence[Any], workers: int, stop: threading.Event) -> list[Any]:
    if workers == 1:  # a thread's memory would not be reused by the next
        return [do(job) for job in jobs]
    with ThreadPoolExecutor(workers) as pool:
        try:
            return list(pool.map(do, jobs))
        except BaseException:
            stop.set()  # Ctrl-C waits only for the fit in progress
            raise


def _cores() -> int:
    """Return how many threads BLAS would use: the cores, or what the environment allows."""
    return max((pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"), default=1)


@contextmanager
def _threads(threads: int) -> Iterator[None]:
    """Let BLAS use so many threads, but SciPy's own library, if it has one, only one."""
    blas = ThreadpoolController().select(user_api="blas")
    scipys = [library.filepath for library in blas.lib_controllers if "scipy.libs" in library.filepath]
    with blas.limit(limits=threads), blas.select(filepath=scipys).limit(limits=1):
        yield


def _bar(fits: int) -> Any:
    interval = 0.5 if sys.stderr.isatty() else 20
    return tqdm(total=fits, desc="weight decays", unit="fit", leave=False, mininterval=interval)
