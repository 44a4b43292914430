"""Logistic regression by L-BFGS on frozen features, its weight decay chosen on a validation set.

The protocol of the paper's appendix D.1 and of linusericsson/ssl-transfer (`linear.py` at 416913f), for
scikit-learn 1.9; PROTOCOLS 4.4 and 4.5 say what had to be translated.
"""

import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from common.cli import UserError
from transfer.metrics import METRICS

WEIGHT_DECAYS = tuple(float(w) for w in np.logspace(-6, 5, 45))
MAX_ITER = 100  # scikit-learn's default; fits may stop unconverged, so warm start and order matter
TOL = 1e-4
SMALL = 64 * 2**20  # bytes of features below which BLAS threads cost more than they bring

# Everything here that a result depends on besides its data: part of a record's config_sha256.
SETTINGS = (
    f"L-BFGS, weight decays {WEIGHT_DECAYS}, C = 1/wd (binary 2/wd), max_iter {MAX_ITER}, tol {TOL}/n, warm start, "
    "highest validation metric (ties: larger C), refit on train + val from the last fit"
)


@dataclass(frozen=True)
class Part:
    """Features `x` (N, D) float32 with labels `y`: (N,) class indices, or (N, K) of 0 and 1."""

    x: np.ndarray
    y: np.ndarray


@dataclass(frozen=True)
class Outcome:
    """The chosen weight decay, its C, its validation metric, the test metric, and how many fits did not converge."""

    weight_decay: float
    c: float
    validation: float
    test: float
    fits: int
    unconverged: int


class Probe:
    """One warm logistic regression: every fit starts from the one before.

    Multi-label problems are K binary ones, fitted one after another, so class k starts from class k - 1.
    """

    def __init__(self, multilabel: bool) -> None:
        from sklearn.linear_model import LogisticRegression

        self._estimator = LogisticRegression(max_iter=MAX_ITER, warm_start=True)
        self._multilabel = multilabel
        self.fits = self.unconverged = 0

    def fit(self, part: Part, weight_decay: float) -> None:
        """Minimise the summed loss + weight_decay / 2 * |W|^2 over the linear classifier W."""
        targets = part.y.T if self._multilabel else [part.y]
        fitted = [self._fit_one(part.x, target, weight_decay) for target in targets]
        self._weight = np.concatenate([w for w, _ in fitted])  # (K, D)
        self._bias = np.concatenate([b for _, b in fitted])  # (K,)

    def scores(self, x: np.ndarray) -> np.ndarray:
        """Return the decision values (N, K) of features (N, D)."""
        return x @ self._weight.T + self._bias

    def _fit_one(self, x: np.ndarray, y: np.ndarray, weight_decay: float) -> tuple[np.ndarray, np.ndarray]:
        from sklearn.exceptions import ConvergenceWarning

        binary = self._multilabel or y.max() == 1
        # A binary fit has one column of weights where upstream's softmax has two; C = 2/wd is the same model.
        # tol bounds the mean gradient where upstream's bounded the sum, hence the division by n.
        self._estimator.set_params(C=inverse(weight_decay, binary), tol=TOL / len(y))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ConvergenceWarning)
            self._estimator.fit(x, y)
        self.fits += 1
        self.unconverged += any(issubclass(w.category, ConvergenceWarning) for w in caught)
        weight, bias = self._estimator.coef_, self._estimator.intercept_
        if binary and not self._multilabel:
            weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
        return weight.copy(), bias.copy()


def inverse(weight_decay: float, binary: bool) -> float:
    """Return scikit-learn's C for a weight decay of upstream's grid."""
    return (2 if binary else 1) / weight_decay


def sweep(
    train: Part, val: Part, both: Part, test: Part, metric: str, weight_decays: Sequence[float] = WEIGHT_DECAYS
) -> Outcome:
    """Fit on `train` for every weight decay, choose on `val`, refit on `both` (train and val), score `test`.

    `metric` is a key of `transfer.metrics.METRICS`; mAP11 takes multi-label data, the others single labels.
    The higher metric wins, at equality the first, which is the larger C. The labels must have passed
    `check_labels`. Raises UserError for features that are not finite.
    """
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
    from tqdm import tqdm

    if not all(np.isfinite(part.x).all() for part in (both, test)):
        raise UserError("the features are not finite: the checkpoint's weights are damaged or diverged; pretrain again")
    score, probe = METRICS[metric], Probe(multilabel=train.y.ndim == 2)
    best = (-np.inf, weight_decays[0])
    with threadpool_limits(1 if both.x.nbytes < SMALL else None, user_api="blas"):
        interval = 0.5 if sys.stderr.isatty() else 20
        for weight_decay in tqdm(weight_decays, desc="weight decays", unit="fit", leave=False, mininterval=interval):
            probe.fit(train, weight_decay)
            reached = score(val.y, probe.scores(val.x))
            if reached > best[0]:
                best = (reached, weight_decay)
        validation, chosen = best
        probe.fit(both, chosen)
        reached = score(test.y, probe.scores(test.x))
    binary = train.y.ndim == 2 or train.y.max() == 1
    return Outcome(chosen, inverse(chosen, binary), validation, reached, probe.fits, probe.unconverged)


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
