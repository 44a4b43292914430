"""Logistic regression on frozen features by L-BFGS, fit after fit along a path of weight decays.

The protocol of the paper's appendix D.1 and of linusericsson/ssl-transfer (`linear.py` at 416913f), for scikit-learn
1.9; PROTOCOLS 4.4 and 4.5 say what had to be translated. `transfer.sweep` centres the features first: the intercept is
free, so the weights stay the same, and the problem is far better conditioned (in float64 every fit then converges
within 100 iterations, where upstream's often does not). What makes a path fast leaves the optimum of each problem
where it is:

- It goes from strong to weak decay, where W is nearly linear in log(decay). The first fit starts from its first-order
  solution, each later one where the two before it point. Parallel paths over parts of the grid measure slower.
- The features are divided by one power of 256, and the decay by its square. The optimum is the same, and the solver's
  bounds do not depend on the unit of the features.
- Fits are in float32 and end where its losses no longer resolve a step: where the largest entry of the gradient is
  below BALANCE times the penalty's. scikit-learn also ends a fit, without a warning, where the loss as rounded does
  not fall. The path therefore computes the gradient itself and repeats a fit that is far from the optimum in float64;
  where one feature is much larger than another it uses the solver of `transfer.lbfgs`, which scales each of them.
- On a GPU all of L-BFGS runs there (`transfer.lbfgs`), to the same bounds.
"""

import math
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import sklearn.linear_model
import torch
from sklearn import config_context
from sklearn.exceptions import ConvergenceWarning

from transfer import lbfgs
from transfer.settings import BALANCE, FAR, MAX_ITER, SMALL_GAIN, TOL, UNEVEN

CHUNK = 128  # rows read or scored at a time: a page that is touched brings its neighbours into memory


@dataclass
class Fit:
    """A classifier: `weight` (K, D), `bias` (K,), the solver's `iterations`, whether its gradient says `converged`.

    `close` is True if the fit stopped on the relative criterion, BALANCE; one that stopped on TOL, which is looser at
    weak decays, may depend on its start.
    """

    weight: Any
    bias: Any
    iterations: int
    converged: bool
    close: bool

    def scores(self, x: Any) -> np.ndarray:
        """Return the decision values (N, K) of features (N, D)."""
        return on_host(x @ self.weight.T + self.bias)


@dataclass(frozen=True)
class Problem:
    """The labels (N,) of one logistic regression: the data set's, or for one class whether each image shows it."""

    y: np.ndarray
    binary: bool

    def on(self, x: Any) -> Any:
        """Return the labels as an array, or where `x` is a tensor, as a tensor on its device."""
        if is_numpy(x):
            return self.y
        return torch.as_tensor(self.y, dtype=torch.int64, device=x.device)

    def columns(self, scores: np.ndarray) -> np.ndarray:
        """Return the scores (N, K) of a single-label problem: for two classes the solver gives one column."""
        return np.concatenate([-scores, scores], axis=1) / 2 if self.binary else scores


def problems_of(y: np.ndarray) -> list[Problem]:
    """Return the one problem of labels (N,), or the K binary ones of (N, K)."""
    if y.ndim == 2:
        return [Problem(np.ascontiguousarray(column), binary=True) for column in y.T]
    return [Problem(y, binary=bool(y.max() == 1))]


class RegularisationPath:
    """Fits of one problem at decreasing weight decay, each warm-started from the previous two.

    `x` (N, D) are the centred features divided by `scale`, an array or a tensor; weight decays are meant for the
    features as they were. The labels `y` (N,) are `binary` if they are 0 and 1. `start` begins the first fit.
    """

    def __init__(self, x: Any, y: Any, binary: bool, start: Fit | None = None, scale: float = 1.0) -> None:
        self._x, self._y, self._binary, self._scale = x, y, binary, scale
        self._on_host = is_numpy(x)
        self._deviation = deviations(x)
        self._estimator = _estimator(x, MAX_ITER)
        self._last: list[tuple[float, Any, Any]] = []  # log(weight decay), weight and bias of the last two fits
        if start is not None:
            self._estimator.coef_, self._estimator.intercept_ = start.weight, start.bias
        present = self._deviation[self._deviation > 0]
        self._uneven = self._on_host and present.max() > UNEVEN * present.min()
        if self._on_host and present.max() > UNEVEN * usual(present):
            self._use_own_solver()

    def fit(self, weight_decay: float) -> Fit:
        """Minimise the summed loss + weight_decay / 2 * |W|^2 over the linear classifier W.

        It ends where no entry of the gradient is above TOL (upstream's bound) or BALANCE times the largest entry of
        the penalty's. The loss curves at least as much as the penalty, so that also bounds W's distance from the
        optimum.
        """
        self._estimator.set_params(C=inverse(weight_decay / self._scale**2, self._binary))
        self._start(weight_decay)
        balance = BALANCE * float(abs(self._estimator.coef_).max()) / self._estimator.C
        converged = self._converges(balance)
        if not converged and self._uneven and is_numpy(self._x) and self._is_far(balance):
            self._use_own_solver()
            converged = self._converges(balance)
        weight, bias = self._estimator.coef_, self._estimator.intercept_
        weight, bias = (a.astype(np.float32) if is_numpy(a) else a.float() for a in (weight, bias))
        self._last = [*self._last[-1:], (math.log(weight_decay), weight, bias)]
        if self._on_host and not is_numpy(weight):
            weight, bias = weight.numpy(), bias.numpy()
        return Fit(weight, bias, int(self._estimator.n_iter_[0]), converged, balance > TOL)

    def _converges(self, balance: float) -> bool:
        """Fit in the features' precision and, where that cannot tell which way is down, in float64."""
        converged = self._fits(self._x, balance)
        if not converged and int(self._estimator.n_iter_[0]) < MAX_ITER and str(self._x.dtype).endswith("float32"):
            converged = self._fits(self._x.astype(np.float64) if is_numpy(self._x) else self._x.double(), balance)
        return converged

    def _fits(self, x: Any, balance: float) -> bool:
        """Fit features of either precision. Returns whether the solution is near the optimum."""
        # The solvers' tol bounds the mean gradient where upstream's bounded the sum, hence the division by n.
        if not is_numpy(x):
            # The gradient of a feature scales with its deviation, unless the penalty outweighs the data.
            of_data = len(self._y) / (len(self._y) + 4 / self._estimator.C)
            bound = max(TOL, balance) * (1 + of_data * (self._deviation - 1).clip(0))
            return self._estimator.set_params(tol=bound / len(self._y)).fit(x, self._y)
        _warned.fit = False
        with config_context(assume_finite=True):  # the sweep has checked
            self._estimator.set_params(tol=max(TOL, balance) / len(self._y)).fit(x, self._y)
        return not _warned.fit and not self._is_far(balance)

    def _is_far(self, balance: float) -> bool:
        """Whether the gradient at scikit-learn's solution shows that the optimum lies elsewhere.

        It does if an entry is above the bound and above FAR times the largest value that the residuals of its class
        and the deviation of its feature allow, a limit that does not depend on the unit of the feature.
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
        """Continue from scikit-learn's weights with the solver for devices, on the CPU in float64."""
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
        x, y = self._x, on_host(self._y)
        classes, counts = np.unique(y, return_counts=True)
        prior = counts / len(y)
        residual: Any = np.tile(-prior.astype(np.float32), (len(y), 1))
        residual[np.arange(len(y)), np.searchsorted(classes, y)] += 1
        intercept: Any = np.log(prior).astype(np.float32)
        if self._binary:
            residual, intercept = residual[:, 1:], intercept[1:] - intercept[:1]
        if not is_numpy(x):
            residual, intercept = (torch.as_tensor(a, dtype=x.dtype, device=x.device) for a in (residual, intercept))
        ascent = residual.T @ x
        gain = c * float((ascent**2).sum()) / (2 * len(y))  # of the mean loss, by a step of c
        self._estimator.coef_ = (c if gain < SMALL_GAIN else 0.0) * ascent
        self._estimator.intercept_ = intercept


def _estimator(x: Any, max_iter: int) -> Any:
    """Return the solver for the features: scikit-learn's for an array, ours with the same interface for a tensor."""
    if not is_numpy(x):
        return lbfgs.LogisticRegression(max_iter=max_iter)
    return sklearn.linear_model.LogisticRegression(max_iter=max_iter, warm_start=True)


_warned = threading.local()


@contextmanager
def noting_convergence() -> Iterator[None]:
    """Let scikit-learn's convergence warnings set a flag of their thread instead of being shown.

    `warnings.catch_warnings` alone would record those of all threads together.
    """
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


def deviations(x: Any) -> Any:
    """Return the root mean square of each centred feature and 1 for the intercept: (D + 1,) float64, on x's device."""
    total: Any = 0.0
    for start in range(0, len(x), CHUNK):
        rows = x[start : start + CHUNK]
        rows = rows.astype(np.float64) if is_numpy(x) else rows.double()
        total = total + (rows * rows).sum(0)
    of_features = (total / len(x)) ** 0.5
    if is_numpy(x):
        return np.append(of_features, 1.0)
    return torch.cat((of_features, of_features.new_ones(1)))


def usual(sizes: np.ndarray) -> float:
    """Return the deviation that bounds are meant for: the median, or the tenth's from below if that is far smaller.

    The median ignores a few features that are much larger. Where most are, the small ones decide at weak decays.
    """
    low, middle = np.quantile(sizes, 0.1, method="lower"), np.median(sizes)
    return float(low if middle > UNEVEN**2 * low else middle)


def is_numpy(x: Any) -> bool:
    """Return whether x is an array rather than a tensor."""
    return isinstance(x, np.ndarray)


def on_host(x: Any) -> np.ndarray:
    """Return an array or a tensor as an array."""
    return x if is_numpy(x) else x.cpu().numpy()
