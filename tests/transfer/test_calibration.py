import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transfer.calibration import calibrate, expected_calibration_error, temperature


def softmax(scores):
    e = np.exp(scores - scores.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def drawn(n, scale, seed=0):
    """Return labels and scores; the labels are drawn from the softmax of the scores at temperature `scale`."""
    rng = np.random.default_rng(seed)
    scores = 2 * rng.standard_normal((n, 4))
    cumulative = softmax(scores).cumsum(1)
    return (rng.random((n, 1)) > cumulative).sum(1).clip(max=3), scores * scale


def literal_ece(labels, probabilities, bins=15):
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    total = 0.0
    for k in range(bins):
        low, high = k / bins, (k + 1) / bins
        inside = (confidence >= low) & ((confidence < high) | (k == bins - 1))
        if inside.any():
            total += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return 100 * total


@given(st.integers(1, 200), st.integers(0, 99), st.floats(0.1, 5))
@settings(max_examples=50, deadline=None)
def test_the_error_is_guo_s(n, seed, scale):
    labels, scores = drawn(n, scale, seed)
    error = expected_calibration_error(labels, softmax(scores))
    assert error == pytest.approx(literal_ece(labels, softmax(scores)), abs=1e-9)


def test_the_error_by_hand():
    # 0.95 confident and right in half of the cases: 45 points off; 0.60 confident and always right: 40 off.
    probabilities = np.array([[0.95, 0.05]] * 2 + [[0.6, 0.4]] * 2)
    assert expected_calibration_error(np.array([0, 1, 0, 0]), probabilities) == pytest.approx((45 + 40) / 2)
    assert expected_calibration_error(np.array([0]), np.array([[1.0, 0.0]])) == 0  # the last bin holds 1


@pytest.mark.parametrize("scale", [0.25, 1.0, 4.0])
def test_the_temperature_is_found(scale):
    assert temperature(*drawn(20_000, scale)) == pytest.approx(scale, rel=0.05)


def test_scaling_mends_what_is_overconfident():
    ours = calibrate(*drawn(5_000, 5.0))
    assert ours["ece"] > 15
    assert ours["ece_scaled"] < 4
    assert ours["temperature"] == pytest.approx(5, rel=0.1)


def test_each_fold_is_fitted_alone_and_judged_on_the_others():
    """Upstream's steps: the order of the legacy generator, the rest in no fold, the mean of five."""
    labels, scores = drawn(53, 3.0)
    np.random.seed(0)
    order = np.arange(53)
    np.random.shuffle(order)
    folds, errors = [order[k : k + 10] for k in range(0, 50, 10)], []
    for k in range(5):
        rest = np.concatenate([fold for j, fold in enumerate(folds) if j != k])
        t = temperature(labels[folds[k]], scores[folds[k]])
        errors.append(literal_ece(labels[rest], softmax(scores[rest] / t)))
    ours = calibrate(labels, scores)
    assert ours["ece_scaled"] == pytest.approx(np.mean(errors))
    assert ours["ece"] == pytest.approx(literal_ece(labels, softmax(scores)))


def test_too_few_images_have_no_calibration():
    assert calibrate(*drawn(4, 1.0)) is None
    assert calibrate(*drawn(5, 1.0)) is not None
