"""Logistic regression by L-BFGS on frozen features, its weight decay chosen on a validation set.

The protocol of the paper's appendix D.1 and of linusericsson/ssl-transfer (`linear.py` at 416913f), for
scikit-learn 1.9; PROTOCOLS 4.4 and 4.5 say what had to be translated. What makes it fast leaves each problem's
optimum as it is:

- features minus their mean: the intercept is free, so the weights are the same, and the problem is far better
  conditioned (in float64 every fit then converges within 100 iterations, where upstream's often does not);
- one path from strong to weak decay, where W is nearly linear in log(decay): a fit starts where the last two point
  to, the first from its first-order solution. Paths side by side over parts of the grid measure slower;
- features divided by one power of 256, and the decay by its square: the optimum is the same, and the bounds of the
  solver do not depend on the unit of the features;
- float32, and an end where its losses no longer resolve a step: the gradient's largest entry is below BALANCE of
  the penalty's. scikit-learn also ends a fit, without a warning, where the loss as rounded does not fall. `Path`
  therefore computes the gradient itself, and makes a fit that is far from the optimum again in float64, by the
  solver of `transfer.lbfgs` where one feature is much larger than another: it knows the scale of each;
- BLAS threads in the products alone: SciPy's, in L-BFGS's own steps, would wait for NumPy's. The features exist once;
- on a GPU the whole of L-BFGS there (`transfer.lbfgs`), to the same bounds.
"""

import math
import mmap
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from common.errors import UserError
from transfer.calibration import calibrate
from transfer.metrics import METRICS

if TYPE_CHECKING:
    import torch

WEIGHT_DECAYS = tuple(float(w) for w in np.logspace(-6, 5, 45))
MAX_ITER = 100  # scikit-learn's default, and upstream's
TOL = 1e-4
BALANCE = 0.02  # of the penalty's gradient: about what float32 losses resolve
FAR = 0.02  # of the largest gradient that the residuals could have; float32 leaves about a tenth of that
TYPICAL = 0.35  # a ResNet's features deviate by about as much from their mean
UNEVEN = 16  # between the deviations of features: scikit-learn's solver takes all for equally large
UNIT = 256.0  # a power of two: dividing by it rounds nothing
SMALL_GAIN = 0.02  # of the mean loss, so small that the first-order solution is near the optimum
CHUNK = 128  # rows read or scored at a time: a page that is touched brings its neighbours into memory
NOT_FINITE = "the features are not finite: the checkpoint's weights are damaged or diverged; pretrain again"

# Everything here that a result depends on besides its data: part of a record's config_sha256.
SETTINGS = (
    f"L-BFGS, weight decays {WEIGHT_DECAYS}, C = 1/wd (binary 2/wd), max_iter {MAX_ITER}, tol {TOL}/n or {BALANCE} of "
    f"the penalty's gradient, checked to {FAR} of the residuals', features minus their mean, by the power of {UNIT} "
    f"next to their median deviation over {TYPICAL}, beyond {UNEVEN} times the median by a solver that scales each, "
    "float32, from strong to weak decay (multi-label: each class), "
    "first-order start, then from where the last two fits point to, highest validation metric (ties: larger C), "
    "refit on train + val from the chosen or the last close fit on"
)


@dataclass(frozen=True)
class Part:
    """Features `x` (N, D) float32, which may be memory-mapped, with labels `y`: (N,) indices, or (N, K) of 0 and 1."""

    x: np.ndarray
    y: np.ndarray


@dataclass(frozen=True)
class Outcome:
    """What a sweep chose and found.

    `cs`, `val` (metric), `iterations` (summed over the fits of a weight decay) and `converged` (all of them) follow
    `weight_decays`, in ascending order. `winner_converged` is of the chosen fit and the refit. `calibration` is that
    of `transfer.calibration.calibrate`, None for multi-label data.
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


@dataclass
class Fit:
    """A classifier: `weight` (K, D), `bias` (K,), the solver's `iterations`, whether its gradient says `converged`.

    `close`: the bound on the gradient was BALANCE's. At weaker decays TOL is looser, and lets W depend on its start.
    """

    weight: Any
    bias: Any
    iterations: int
    converged: bool
    close: bool

    def scores(self, x: Any) -> np.ndarray:
        """Return the decision values (N, K) of features (N, D)."""
        found = x @ self.weight.T + self.bias
        return found if isinstance(found, np.ndarray) else found.cpu().numpy()


@dataclass(frozen=True)
class Problem:
    """The labels (N,) of one logistic regression: those of the data set, or whether an image is of one class."""

    y: np.ndarray
    binary: bool

    def on(self, x: Any) -> Any:
        """Return the labels where the features are."""
        if _is_numpy(x):
            return self.y
        import torch

        return torch.as_tensor(self.y, dtype=torch.int64, device=x.device)

    def columns(self, scores: np.ndarray) -> np.ndarray:
        """Return the scores (N, K) of a single-label problem: of two classes, the solver gives one column."""
        return np.concatenate([-scores, scores], axis=1) / 2 if self.binary else scores


def problems_of(y: np.ndarray) -> list[Problem]:
    """Return the one problem of labels (N,), or the K binary ones of (N, K)."""
    if y.ndim == 2:
        return [Problem(np.ascontiguousarray(column), binary=True) for column in y.T]
    return [Problem(y, binary=bool(y.max() == 1))]


class Path:
    """A regularisation path: each fit of labels `y` (N,), `binary` if they are 0 and 1, starts from the previous two.

    `x` (N, D) are the features divided by `scale`; weight decays are those of the features themselves.
    """

    def __init__(self, x: Any, y: Any, binary: bool, start: Fit | None = None, scale: float = 1.0) -> None:
        self._x, self._y, self._binary, self._scale = x, y, binary, scale
        self._on_host = _is_numpy(x)
        self._deviation = _deviations(x)
        self._estimator = _estimator(x, MAX_ITER)
        self._last: list[tuple[float, Any, Any]] = []  # log(weight decay), weight and bias of the last two fits
        if start is not None:
            self._estimator.coef_, self._estimator.intercept_ = start.weight, start.bias
        present = self._deviation[self._deviation > 0]
        self._uneven = self._on_host and present.max() > UNEVEN * present.min()
        if self._on_host and present.max() > UNEVEN * np.median(present):
            self._use_own_solver()

    def fit(self, weight_decay: float) -> Fit:
        """Minimise the summed loss + weight_decay / 2 * |W|^2 over the linear classifier W.

        Ends where no entry of the gradient is above TOL (upstream's bound) or BALANCE times the largest entry of the
        penalty's. As the curvature is the penalty's at least, that bounds W's distance from the optimum likewise.
        """
        self._estimator.set_params(C=inverse(weight_decay / self._scale**2, self._binary))
        self._start(weight_decay)
        balance = BALANCE * float(abs(self._estimator.coef_).max()) / self._estimator.C
        converged = self._converges(balance)
        if not converged and self._uneven and _is_numpy(self._x) and self._is_far(balance):
            self._use_own_solver()
            converged = self._converges(balance)
        weight, bias = self._estimator.coef_, self._estimator.intercept_
        weight, bias = (a.astype(np.float32) if _is_numpy(a) else a.float() for a in (weight, bias))
        self._last = [*self._last[-1:], (math.log(weight_decay), weight, bias)]
        if self._on_host and not _is_numpy(weight):
            weight, bias = weight.numpy(), bias.numpy()
        return Fit(weight, bias, int(self._estimator.n_iter_[0]), converged, balance > TOL)

    def _converges(self, balance: float) -> bool:
        """Fit in the features' precision and, where that cannot tell which way is down, in float64."""
        converged = self._fits(self._x, balance)
        if not converged and int(self._estimator.n_iter_[0]) < MAX_ITER and str(self._x.dtype).endswith("float32"):
            converged = self._fits(self._x.astype(np.float64) if _is_numpy(self._x) else self._x.double(), balance)
        return converged

    def _fits(self, x: Any, balance: float) -> bool:
        """Fit features of either precision. Returns whether the outcome is near the optimum."""
        # The solvers' tol bounds the mean gradient where upstream's bounded the sum, hence the division by n.
        if not _is_numpy(x):
            # A feature of large deviation may have a gradient as much larger, unless the penalty outweighs the data.
            of_data = len(self._y) / (len(self._y) + 4 / self._estimator.C)
            bound = max(TOL, balance) * (1 + of_data * (self._deviation - 1).clip(0))
            return self._estimator.set_params(tol=bound / len(self._y)).fit(x, self._y)
        from sklearn import config_context

        _warned.fit = False
        with config_context(assume_finite=True):  # `_centred` has looked
            self._estimator.set_params(tol=max(TOL, balance) / len(self._y)).fit(x, self._y)
        return not _warned.fit and not self._is_far(balance)

    def _is_far(self, balance: float) -> bool:
        """Whether the gradient at scikit-learn's solution says that the optimum lies elsewhere.

        That is so if an entry is above the bound and above FAR of what the residuals of its class times the deviation
        of its feature allow, whatever unit the feature has.
        """
        weight, bias = (a.astype(self._x.dtype) for a in (self._estimator.coef_, self._estimator.intercept_))
        residual = self._x @ weight.T + bias
        if self._binary:
            residual = np.concatenate([np.zeros_like(residual), residual], axis=1)
        residual -= residual.max(1, keepdims=True)
        np.exp(residual, out=residual)
        residual /= residual.sum(1, keepdims=True)
        residual[np.arange(len(residual)), np.searchsorted(np.unique(self._y), self._y)] -= 1
        residual = residual[:, 1:] if self._binary else residual
        gradient = np.c_[residual.T @ self._x + weight * (1 / self._estimator.C), residual.sum(0)]
        possible = np.abs(residual).sum(0, dtype=np.float64)[:, None] * self._deviation
        return not (np.abs(gradient) <= np.maximum(2 * max(TOL, balance), FAR * possible)).all()

    def _use_own_solver(self) -> None:
        """Go on with the solver for devices, on the CPU in float64, from where scikit-learn's ended."""
        import torch

        theirs = self._estimator
        self._x, self._deviation = torch.from_numpy(self._x).double(), torch.from_numpy(self._deviation)
        self._y = torch.as_tensor(self._y, dtype=torch.int64)
        self._last = [(at, torch.from_numpy(weight), torch.from_numpy(bias)) for at, weight, bias in self._last]
        self._estimator = _estimator(self._x, theirs.max_iter).set_params(C=theirs.C)
        if hasattr(theirs, "coef_"):
            self._estimator.coef_, self._estimator.intercept_ = map(torch.from_numpy, (theirs.coef_, theirs.intercept_))

    def _start(self, weight_decay: float) -> None:
        """Set the estimator's weights to where this fit begins."""
        estimator = self._estimator
        if len(self._last) == 2:
            (before, *earlier), (last, *later) = self._last
            ahead = (math.log(weight_decay) - last) / (last - before)
            estimator.coef_, estimator.intercept_ = (b + ahead * (b - a) for a, b in zip(earlier, later, strict=True))
        elif not hasattr(estimator, "coef_"):
            self._first_order(estimator.C)

    def _first_order(self, c: float) -> None:
        """Set the weights to the optimum's first-order term in C, -C times the gradient at zero, where C is small."""
        x, y = self._x, self._y if _is_numpy(self._y) else self._y.cpu().numpy()
        classes, counts = np.unique(y, return_counts=True)
        prior = counts / len(y)
        residual: Any = np.tile(-prior.astype(np.float32), (len(y), 1))
        residual[np.arange(len(y)), np.searchsorted(classes, y)] += 1
        intercept: Any = np.log(prior).astype(np.float32)
        if self._binary:
            residual, intercept = residual[:, 1:], intercept[1:] - intercept[:1]
        if not _is_numpy(x):
            import torch

            residual, intercept = (torch.as_tensor(a, dtype=x.dtype, device=x.device) for a in (residual, intercept))
        ascent = residual.T @ x
        gain = c * float((ascent**2).sum()) / (2 * len(y))  # of the mean loss, by a step of c
        self._estimator.coef_ = (c if gain < SMALL_GAIN else 0.0) * ascent
        self._estimator.intercept_ = intercept


def _estimator(x: Any, max_iter: int) -> Any:
    """Return the solver for features where they are: scikit-learn's, or on a device ours, which has its interface."""
    if not _is_numpy(x):
        from transfer import lbfgs

        return lbfgs.LogisticRegression(max_iter=max_iter)
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(max_iter=max_iter, warm_start=True)


_warned = threading.local()


@contextmanager
def noting_convergence() -> Iterator[None]:
    """Let scikit-learn's convergence warnings set a flag of their thread instead of being shown.

    `warnings.catch_warnings` alone is one for all threads.
    """
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("always", ConvergenceWarning)
        show = warnings.showwarning

        def note(message: Any, category: type[Warning], *args: Any, **kwargs: Any) -> None:
            if issubclass(category, ConvergenceWarning):
                _warned.fit = True
            else:
                show(message, category, *args, **kwargs)

        warnings.showwarning = note
        yield


def inverse(weight_decay: float, binary: bool) -> float:
    """Return scikit-learn's C for a weight decay of upstream's grid.

    A binary fit has one column of weights where upstream's softmax has two; C = 2/wd is the same model.
    """
    return (2 if binary else 1) / weight_decay


def sweep(
    both: Part,
    train: np.ndarray,
    val: np.ndarray,
    test: Part,
    metric: str,
    weight_decays: Sequence[float] = WEIGHT_DECAYS,
    device: "torch.device | None" = None,
) -> Outcome:
    """Fit on `train` for every weight decay, choose on `val`, refit on both, score `test`.

    The refit starts from the chosen fit or, where that may remember its own start, from the last close one, and goes
    on along the path: at weak decays the weights of the smaller set pass TOL, a point or more from the optimum.

    `train` and `val` are the rows of `both`; `metric` is a key of `transfer.metrics.METRICS`: mAP11 takes
    multi-label data, the others single labels. The higher metric wins, at equality the larger C. The labels must
    have passed `check_labels`. Features are copied once, as float32, for scikit-learn or, with a `device`, to
    there. Raises UserError for features that are not finite.
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
        one = Path(x[:n], problem.on(x)[:n], problem.binary, scale=scale)
        fits: dict[float, Fit] = {}
        for weight_decay in weight_decays[::-1]:
            if stop.is_set():
                break
            fits[weight_decay] = one.fit(weight_decay)
            if not multilabel:  # whose metric needs all classes
                reached[weight_decay] = score(y[n:], problem.columns(fits[weight_decay].scores(x[n:])))
                _forget_losers(fits, reached)
            bar.update()
        return fits

    def refit(job: tuple[Problem, dict[float, Fit]]) -> list[Fit]:
        problem, fits = job
        begin = max(chosen, _last_close(fits))
        one = Path(x, problem.on(x), problem.binary, fits[begin], scale)
        return [one.fit(weight_decay) for weight_decay in weight_decays[::-1] if chosen <= weight_decay <= begin]

    reached: dict[float, float] = {}
    cores, stop = _cores(), threading.Event()
    workers = min(len(problems), cores) if device is None else 1
    with noting_convergence(), _threads(cores if workers == 1 else 1), _bar(len(weight_decays) * len(problems)) as bar:
        found = _in_threads(path, problems, workers, stop)
        fits = {wd: [path[wd] for path in found] for wd in weight_decays}
        if multilabel:
            for wd, of_class in fits.items():
                reached[wd] = score(y[n:], np.concatenate([fit.scores(x[n:]) for fit in of_class], axis=1))
        chosen = max(weight_decays, key=lambda wd: (reached[wd], -wd))
        bar.set_description("refit")
        refits = _in_threads(refit, list(zip(problems, found, strict=True)), workers, stop)
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
    """Yield the rows of `x` in chunks with their places among `rows`, in the order of `x`.

    Of a memory-mapped file, no page stays in memory; scattered rows would map up to 2 MiB each.
    """
    order = np.argsort(rows, kind="stable")
    for start in range(0, len(rows), CHUNK):
        place = order[start : start + CHUNK]
        if isinstance(x, np.memmap) and isinstance(x.base, mmap.mmap):  # a whole file: a map of its own a chunk
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


def _centred(x: np.ndarray, rows: np.ndarray, mean: np.ndarray, device: "torch.device | None") -> Any:
    """Return the rows minus `mean` as a NumPy array or, with a `device`, as a tensor there."""
    result: Any = np.empty((len(rows), x.shape[1]), dtype=np.float32) if device is None else None
    if device is not None:
        import torch

        result = torch.empty((len(rows), x.shape[1]), device=device)
    for place, chunk in read_chunks(x, rows):
        if device is None:
            result[place] = chunk - mean
        else:
            result[torch.as_tensor(place, device=device)] = torch.as_tensor(chunk - mean, device=device)
    if not math.isfinite(float(result.sum())):
        raise UserError(NOT_FINITE)
    return result


def _deviations(x: Any) -> Any:
    """Return the root mean square of each centred feature, and 1 for the intercept: (D + 1,) float64, on x's device."""
    total: Any = 0.0
    for start in range(0, len(x), CHUNK):
        rows = x[start : start + CHUNK]
        rows = rows.astype(np.float64) if _is_numpy(x) else rows.double()
        total = total + (rows * rows).sum(0)
    found = (total / len(x)) ** 0.5
    if _is_numpy(x):
        return np.append(found, 1.0)
    import torch

    return torch.cat((found, found.new_ones(1)))


def _unit(x: Any) -> float:
    """Return the power of UNIT by which to divide centred features (N, D), so that most deviate by about TYPICAL.

    Those of a ResNet stay as they are. Their bits do in any case, and a few that are much larger do not count.
    """
    found = _deviations(x)[:-1]
    found = found if _is_numpy(found) else found.cpu().numpy()
    found = found[found > 0]
    return UNIT ** round(math.log(float(np.median(found)) / TYPICAL, UNIT)) if found.size else 1.0


def _scores(x: np.ndarray, mean: np.ndarray, scale: float, fit: Fit) -> np.ndarray:
    weight, bias = (a if _is_numpy(a) else a.cpu().numpy() for a in (fit.weight, fit.bias))
    chunks = ((chunk - mean) / np.float32(scale) for _, chunk in read_chunks(x, np.arange(len(x))))
    return np.concatenate([chunk @ weight.T + bias for chunk in chunks])


def _forget_losers(fits: dict[float, Fit], reached: dict[float, float]) -> None:
    """Keep the weights alone that the refit may start from: those of many classes are large."""
    kept = {max(fits, key=lambda weight_decay: (reached[weight_decay], -weight_decay)), _last_close(fits)}
    for weight_decay, fit in fits.items():
        if weight_decay not in kept:
            fit.weight = fit.bias = None


def _last_close(fits: dict[float, Fit]) -> float:
    return min((weight_decay for weight_decay, fit in fits.items() if fit.close), default=max(fits))


def _in_threads(do: Callable[[Any], Any], jobs: Sequence[Any], workers: int, stop: threading.Event) -> list[Any]:
    if workers == 1:  # no thread, whose memory would not serve the next
        return [do(job) for job in jobs]
    with ThreadPoolExecutor(workers) as pool:
        try:
            return list(pool.map(do, jobs))
        except BaseException:
            stop.set()  # Ctrl-C need not wait for more than the fit at hand
            raise


def _cores() -> int:
    """Return how many threads BLAS would use: the cores, or what the environment allows."""
    import sklearn.linear_model  # noqa: F401  (brings SciPy's BLAS, which counts and is limited too)
    from threadpoolctl import threadpool_info  # type: ignore[import-untyped]

    return max((pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"), default=1)


@contextmanager
def _threads(threads: int) -> Iterator[None]:
    """Let BLAS use so many threads, but SciPy's own library, if it has one, a single one."""
    from threadpoolctl import ThreadpoolController

    blas = ThreadpoolController().select(user_api="blas")
    scipys = [library.filepath for library in blas.lib_controllers if "scipy.libs" in library.filepath]
    with blas.limit(limits=threads), blas.select(filepath=scipys).limit(limits=1):
        yield


def _bar(fits: int) -> Any:
    from tqdm import tqdm

    interval = 0.5 if sys.stderr.isatty() else 20
    return tqdm(total=fits, desc="weight decays", unit="fit", leave=False, mininterval=interval)


def _is_numpy(x: Any) -> bool:
    return isinstance(x, np.ndarray)


def check_labels(classes: Sequence[str], **parts: np.ndarray) -> None:
    """Raise UserError naming the classes that a part lacks; `parts` are the labels of train, val, both, test.

    Single labels: every class must have images in train and test, else the probe's classes are not the data
    set's, or a mean over classes is not over all of them; val may lack one. Multi-label: every class must
    occur in every part, and no label may be constant where a classifier is fitted.
    """
    for name, labels in parts.items():
        multilabel = labels.ndim == 2
        counts = labels.sum(0) if multilabel else np.bincount(labels, minlength=len(classes))
        missing = [word for word, count in zip(classes, counts, strict=True) if count == 0]
        if missing and (multilabel or name != "val"):
            raise UserError(f"the {name} set has no image of {', '.join(missing)}; restore the data set")
        always = [word for word, count in zip(classes, counts, strict=True) if count == len(labels)]
        if always and multilabel and name in ("train", "both"):
            raise UserError(f"every image of the {name} set is {', '.join(always)}: nothing to learn; check the labels")
