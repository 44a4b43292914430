"""L-BFGS for logistic regression on a device, where SciPy's steps on the host would take most of the time.

The outputs are linear in the weights, so along a search line they are P + t Q: a step takes two products with the
features, however many points its search tries.
"""

from collections import deque
from collections.abc import Callable, MutableSequence

import torch
import torch.nn.functional as F
from torch import Tensor

HISTORY = 10  # steps that determine a direction, as in SciPy
TRIES = 50  # of a search along a line
DECREASE, SLOPE = 1e-4, 0.9  # of the Wolfe conditions
ROUNDING = 64 * 2.0**-52  # of a loss: scikit-learn's ftol


class LogisticRegression:
    """scikit-learn's LogisticRegression(warm_start=True) for torch tensors, as far as `transfer.sweep` uses it.

    It minimises the summed cross-entropy + |coef_|^2 / (2 C) over `coef_` (K, D) and `intercept_` (K,), which have one
    row for two classes. It starts from their values and ends where no entry of the gradient of the mean is above `tol`,
    a number or one per feature and the intercept (D + 1,). Products with the features are in their precision (TF32 only
    where torch's settings allow it), and everything else is in float64, so that a search always resolves its step.
    Steps are scaled for each feature by its curvature where all classes are equally likely.
    """

    C: float
    tol: float | Tensor
    coef_: Tensor
    intercept_: Tensor

    def __init__(self, max_iter: int) -> None:
        self.max_iter = max_iter
        self.n_iter_ = [0]

    def set_params(self, **values: float | Tensor) -> "LogisticRegression":
        """Set `C` or `tol`."""
        vars(self).update(values)
        return self

    def fit(self, x: Tensor, y: Tensor) -> bool:
        """Fit labels (N,) int64 by features (N, D) on the same device. Returns whether the fit converged.

        It does not within `max_iter` steps, or where rounding of the gradient hides the way down.
        """
        weights = torch.cat((self.coef_, self.intercept_[:, None]), 1).double()
        problem = Problem(x, y, 1 / self.C, binary=len(weights) == 1)
        outputs, bound = problem.outputs(weights), self.tol * len(y)
        gradient, start = problem.gradient(outputs, weights), 1 / problem.first_curvature(len(weights)).flatten()
        largest, pairs = float((gradient.abs() / bound).max()), deque[tuple[Tensor, Tensor, Tensor]](maxlen=HISTORY)
        number = 0
        while not largest <= 1 and number < self.max_iter:
            direction = -inverse_curvature(gradient.flatten(), pairs, start).view_as(gradient)
            change = problem.outputs(direction)
            step = search(problem.along(outputs, change, weights, direction))
            if step is None:
                break
            weights, outputs = weights + step * direction, outputs + step * change
            before, gradient = gradient, problem.gradient(outputs, weights)
            moved, bent = (step * direction).flatten(), (gradient - before).flatten()
            product = moved @ bent
            largest, positive = torch.stack(((gradient.abs() / bound).max(), product)).tolist()
            if positive > 0:  # otherwise it is rounding, as the loss is convex
                pairs.append((moved, bent, 1 / product))
            number += 1
        self.coef_, self.intercept_, self.n_iter_ = weights[:, :-1], weights[:, -1], [number]
        return largest <= 1


class Problem:
    """The loss of features `x` and labels `y`; weights and bias stand side by side in (K, D + 1) float64.

    Outputs are (N, K) float64, for two classes (N, 2) with zeros first.
    """

    def __init__(self, x: Tensor, y: Tensor, decay: float, binary: bool) -> None:
        self._x, self._y, self._decay, self._binary = x, y[:, None], decay, binary

    def outputs(self, weights: Tensor) -> Tensor:
        """Return the outputs, or how they change with a change of the weights."""
        outputs = (self._x @ weights[:, :-1].to(self._x.dtype).T).double() + weights[:, -1]
        return F.pad(outputs, (1, 0)) if self._binary else outputs

    def gradient(self, outputs: Tensor, weights: Tensor) -> Tensor:
        """Return the loss's gradient (K, D + 1)."""
        residual = outputs.softmax(1)
        residual.scatter_add_(1, self._y, -torch.ones_like(self._y, dtype=residual.dtype))
        residual = residual[:, 1:] if self._binary else residual
        of_weight = (residual.to(self._x.dtype).T @ self._x).double() + self._decay * weights[:, :-1]
        return torch.cat((of_weight, residual.sum(0)[:, None]), 1)

    def first_curvature(self, rows: int) -> Tensor:
        """Return the loss's second derivative by each weight (rows, D + 1) where all classes are equally likely."""
        number = 2 if self._binary else rows
        squares = torch.linalg.vector_norm(self._x, dim=0).double() ** 2
        curvature = torch.cat((squares, squares.new_full((1,), len(self._x)))) * (number - 1) / number**2
        curvature[:-1] += self._decay
        return curvature.expand(rows, -1)

    def along(
        self, outputs: Tensor, change: Tensor, weights: Tensor, direction: Tensor
    ) -> Callable[[float], tuple[float, ...]]:
        """Return the function from t to the loss, its slope and its curvature at weights + t * direction."""
        weight, ahead = weights[:, :-1], direction[:, :-1]
        square, product, length = (weight * weight).sum(), (weight * ahead).sum(), (ahead * ahead).sum()
        right = (outputs.gather(1, self._y).sum(), change.gather(1, self._y).sum())

        def at(t: float) -> tuple[float, ...]:
            moved = outputs + t * change
            share = moved.softmax(1)
            mean = (share * change).sum(1)
            loss = moved.logsumexp(1).sum() - right[0] - t * right[1]
            loss = loss + self._decay / 2 * (square + 2 * t * product + t * t * length)
            slope = mean.sum() - right[1] + self._decay * (product + t * length)
            curvature = (share * change * change).sum() - (mean * mean).sum() + self._decay * length
            return tuple(torch.stack((loss, slope, curvature)).tolist())

        return at


def search(at: Callable[[float], tuple[float, ...]]) -> float | None:
    """Return a t > 0 that meets the strong Wolfe conditions for a convex function, or None if it rises from 0 on.

    `at` gives value, slope and curvature. Newton's method is kept within the interval known to hold the minimum.
    """
    value, slope, curvature = at(0.0)
    if not slope < 0:
        return None
    low, high, start, descent = 0.0, float("inf"), value, slope
    t = -slope / curvature if curvature > 0 else 1.0
    for _ in range(TRIES):
        value, slope, curvature = at(t)
        if value <= start + DECREASE * t * descent + ROUNDING * abs(start) and abs(slope) <= -SLOPE * descent:
            return t
        low, high = (t, high) if slope < 0 else (low, t)
        further = t - slope / curvature if curvature > 0 else high
        t = further if low < further < min(high, 10 * t) else min(10 * t, (low + high) / 2)
    return None


def inverse_curvature(
    gradient: Tensor, pairs: MutableSequence[tuple[Tensor, Tensor, Tensor]], start: Tensor | float = 1.0
) -> Tensor:
    """Return the gradient (n,) times the inverse Hessian estimated from the last steps (Nocedal's two loops).

    A pair holds a step (n,), the change of the gradient over it, and the inverse of their product. `start` (n,) is the
    diagonal of the inverse Hessian before any step; once there are steps, only up to a factor.
    """
    product, factors = gradient, []
    for moved, bent, inverse in reversed(pairs):
        factors.append(inverse * (moved @ product))
        product = torch.addcmul(product, factors[-1], bent, value=-1)
    product = product * start
    if pairs:
        _, bent, inverse = pairs[-1]
        product = product / (inverse * (bent @ (bent * start)))
    for (moved, bent, inverse), factor in zip(pairs, reversed(factors), strict=True):
        product = torch.addcmul(product, factor - inverse * (bent @ product), moved)
    return product
