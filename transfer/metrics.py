"""The metrics of image recognition transfer, as functions of arrays. All are percentages, 0-100.

Labels are (N,) class indices or, for mAP11, (N, K) of 0 and 1; scores are (N, K), higher = more likely.
"""

import numpy as np


def accuracy(labels: np.ndarray, scores: np.ndarray) -> float:
    """Return the share of images whose highest score is that of their class.

    >>> accuracy(np.array([0, 1]), np.array([[2.0, 1.0], [2.0, 1.0]]))
    50.0
    """
    return float(100 * np.mean(scores.argmax(1) == labels))


def mean_per_class_accuracy(labels: np.ndarray, scores: np.ndarray) -> float:
    """Return the mean, over the classes in `labels`, of the share of their images that is recognised.

    >>> mean_per_class_accuracy(np.array([0, 0, 0, 1]), np.array([[1, 0], [1, 0], [0, 1], [1, 0]]))
    33.333333333333336
    """
    right = scores.argmax(1) == labels
    per_class = [right[labels == label].mean() for label in np.unique(labels)]
    return float(100 * np.mean(per_class))


def mean_average_precision_11(labels: np.ndarray, scores: np.ndarray) -> float:
    """Return the mean over the K classes of the 11-point average precision (VOC2007)."""
    return float(100 * np.mean([average_precision_11(y, s) for y, s in zip(labels.T, scores.T, strict=True)]))


def average_precision_11(positive: np.ndarray, score: np.ndarray) -> float:
    """Return the 11-point average precision, 0-1, of scores (N,) for labels (N,) of 0 and at least one 1.

    It is the mean over t = 0, 0.1, ..., 1 of the highest precision at a recall of at least t. scikit-learn's curve,
    from which upstream computes it, ends with the artificial point (recall 0, precision 1), so that the term for
    t = 0 is always 1 (PROTOCOLS 4.4). Images of equal score enter the ranking together.

    >>> round(average_precision_11(np.array([0, 1]), np.array([0.9, 0.1])), 4)  # (1 + 10 / 2) / 11
    0.5455
    """
    order = np.argsort(-score, kind="stable")
    last = np.append(np.flatnonzero(np.diff(score[order])), len(order) - 1)  # the last image of each score
    hits = np.cumsum(positive[order])[last]
    precision, recall = hits / (last + 1), hits / hits[-1]
    # The thresholds are upstream's floats: linspace's 0.3 is slightly above 3 / 10, so a recall of 3 / 10 misses it.
    best = [precision[recall >= t].max() for t in np.linspace(0, 1, 11)[1:]]
    return float((1 + sum(best)) / 11)


METRICS = {
    "accuracy": accuracy,
    "mean_per_class_accuracy": mean_per_class_accuracy,
    "mAP11": mean_average_precision_11,
}
