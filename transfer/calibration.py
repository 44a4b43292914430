"""How far probabilities can be trusted: the expected calibration error before and after temperature scaling.

The procedure is that of linusericsson/ssl-transfer (`temperature_scaling.py` at 416913f): 15 bins; the temperature is
fitted on a fifth of the test set and the error measured on the other four, for each fifth, and averaged.
"""

import numpy as np
from scipy.optimize import minimize_scalar

BINS = 15
FOLDS = 5


def expected_calibration_error(labels: np.ndarray, probabilities: np.ndarray, bins: int = BINS) -> float:
    """Return the error in percent of probabilities (N, K) for labels (N,), by Guo et al. 2017, equation 3.

    The images are put into bins of equal width by their highest probability. The error is the mean over images of the
    distance between the accuracy in their bin and its mean highest probability.

    >>> expected_calibration_error(np.array([0, 1]), np.array([[0.75, 0.25], [0.75, 0.25]]))
    25.0
    """
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = np.bincount(place, weights=right - confidence, minlength=bins)  # times the number of images in the bin
    return float(100 * np.abs(gaps).sum() / len(labels))


def temperature(labels: np.ndarray, scores: np.ndarray) -> float:
    """Return the T that minimises the mean cross-entropy of softmax(scores / T), between e^-7 and e^7."""
    rows = np.arange(len(labels))

    def loss(log_inverse: float) -> float:
        return -_log_softmax(np.exp(log_inverse) * scores)[rows, labels].mean()

    # The loss is convex in 1 / T, so it has one minimum, in log(1 / T) too.
    return float(np.exp(-minimize_scalar(loss, bounds=(-7, 7), method="bounded").x))


def calibrate(labels: np.ndarray, scores: np.ndarray) -> dict[str, float] | None:
    """Return `ece` and `ece_scaled` in percent and the mean `temperature` for scores (N, K) of a test set.

    The result is None for fewer images than folds.
    """
    size = len(labels) // FOLDS
    if size == 0:
        return None
    scores = scores.astype(np.float64)
    order = np.arange(len(labels))
    np.random.RandomState(0).shuffle(order)
    folds = [order[k * size : (k + 1) * size] for k in range(FOLDS)]  # the rest is left out, as upstream
    temperatures, errors = [], []
    for k, fold in enumerate(folds):
        others = np.concatenate(folds[:k] + folds[k + 1 :])
        temperatures.append(temperature(labels[fold], scores[fold]))
        probabilities = np.exp(_log_softmax(scores[others] / temperatures[-1]))
        errors.append(expected_calibration_error(labels[others], probabilities))
    return {
        "ece": expected_calibration_error(labels, np.exp(_log_softmax(scores))),
        "ece_scaled": float(np.mean(errors)),
        "temperature": float(np.mean(temperatures)),
    }


def _log_softmax(scores: np.ndarray) -> np.ndarray:
    shifted = scores - scores.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
