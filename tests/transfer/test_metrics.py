import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import precision_recall_curve, recall_score

from transfer.metrics import accuracy, average_precision_11, mean_average_precision_11, mean_per_class_accuracy


def literal_ap(positive, score):
    """Upstream's computation, step by step, on scikit-learn's curve."""
    precision, recall, _ = precision_recall_curve(positive, score)
    total = 0.0
    for t in np.linspace(0, 1, 11):
        reached = [p for p, r in zip(precision, recall, strict=True) if r >= t]
        total += max(reached, default=0.0) / 11
    return total


@st.composite
def ranked(draw):
    n = draw(st.integers(2, 60))
    positive = draw(st.lists(st.integers(0, 1), min_size=n, max_size=n).filter(any))
    score = draw(st.lists(st.integers(-6, 6), min_size=n, max_size=n))  # few values: many ties
    return np.array(positive), np.array(score, dtype=float)


@given(ranked())
def test_ap_is_upstreams(case):
    assert average_precision_11(*case) == pytest.approx(literal_ap(*case), abs=1e-12)


def test_ap_by_hand():
    # Ranking: 1 0 1 0 0. Precision 1 up to recall 1/2 (t = 0 ... 0.5), then 2/3 (t = 0.6 ... 1).
    positive, score = np.array([1, 0, 1, 0, 0]), np.array([5.0, 4, 3, 2, 1])
    assert average_precision_11(positive, score) == pytest.approx((6 * 1 + 5 * 2 / 3) / 11)
    # The only positive last of four: 1 at t = 0 (the artificial point), 1/4 ten times.
    assert average_precision_11(np.array([0, 0, 0, 1]), score[:4]) == pytest.approx((1 + 10 / 4) / 11)
    # All scores equal: the images enter together, precision = prevalence.
    assert average_precision_11(positive, np.zeros(5)) == pytest.approx((1 + 10 * 2 / 5) / 11)


def test_map_is_the_mean_in_percent():
    labels = np.array([[1, 0], [0, 1]])
    scores = np.array([[1.0, 1.0], [0.0, 0.0]])  # class 0 perfect, class 1 reversed
    assert mean_average_precision_11(labels, scores) == pytest.approx(100 * (1 + (1 + 10 / 2) / 11) / 2)


def test_accuracies_by_hand():
    labels = np.array([0, 0, 0, 1])
    scores = np.array([[1, 0], [1, 0], [0, 1], [0, 1]])
    assert accuracy(labels, scores) == 75
    assert mean_per_class_accuracy(labels, scores) == pytest.approx(100 * (2 / 3 + 1) / 2)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40))
def test_mean_per_class_accuracy_is_macro_recall(pairs):
    labels, predicted = np.array(pairs).T
    want = 100 * recall_score(labels, predicted, labels=np.unique(labels), average="macro")
    assert mean_per_class_accuracy(labels, np.eye(4)[predicted]) == pytest.approx(want)
