import warnings

import numpy as np
import pytest

from common.cli import UserError
from transfer import sweep as module
from transfer.sweep import WEIGHT_DECAYS, Part, Probe, check_labels, inverse, sweep


def blobs(n, seed=0, k=3, spread=0.4, dim=5):
    """Return k separable classes around corners, as float32 features."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % k
    return Part((3 * np.eye(k, dim)[y] + spread * rng.standard_normal((n, dim))).astype(np.float32), y)


def joined(a, b):
    return Part(np.concatenate([a.x, b.x]), np.concatenate([a.y, b.y]))


def test_grid_is_the_papers_and_goes_from_large_c_to_small():
    assert len(WEIGHT_DECAYS) == 45
    assert (WEIGHT_DECAYS[0], WEIGHT_DECAYS[-1]) == pytest.approx((1e-6, 1e5))
    np.testing.assert_allclose(np.diff(np.log10(WEIGHT_DECAYS)), 0.25)
    assert inverse(1e-6, binary=False) == pytest.approx(1e6)
    assert inverse(1e-6, binary=True) == pytest.approx(2e6)


def test_separable_classes_are_learnt():
    train, val = blobs(60), blobs(30, 1)
    outcome = sweep(train, val, joined(train, val), blobs(45, 2), "accuracy")
    assert outcome.test == outcome.validation == 100
    assert outcome.fits == 46
    # The first of the grid is already perfect, and later equals do not replace it.
    assert outcome.weight_decay == WEIGHT_DECAYS[0]
    assert outcome.c == pytest.approx(1e6)


@pytest.mark.parametrize(
    ("reached", "chosen"), [([1, 3, 3, 2], 1), ([0, 0, 0, 0], 0), ([1, 2, 3, 4], 3), ([4, 4, 4, 4], 0)]
)
def test_selection_takes_the_first_of_the_best(monkeypatch, reached, chosen):
    scores = iter([*reached, 50])
    monkeypatch.setitem(module.METRICS, "accuracy", lambda labels, scored: next(scores))
    part, grid = blobs(12), [1e-2, 1e-1, 1.0, 10.0]
    outcome = sweep(part, part, part, part, "accuracy", grid)
    assert (outcome.weight_decay, outcome.validation, outcome.test) == (grid[chosen], reached[chosen], 50)


def test_one_warm_estimator_serves_the_sweep_and_the_refit(monkeypatch):
    """A literal loop over scikit-learn with the same order gives the same fits, bit for bit."""
    from sklearn.linear_model import LogisticRegression

    grid, (train, val, test) = [1e-3, 1.0, 1e3], (blobs(n, s, spread=2.0) for n, s in ((60, 0), (30, 1), (30, 2)))
    both = joined(train, val)
    estimator = LogisticRegression(warm_start=True)
    best = (0, 0)
    for wd in grid:
        estimator.set_params(C=1 / wd, tol=1e-4 / 60).fit(train.x, train.y)
        best = max(best, (100 * estimator.score(val.x, val.y), 1 / wd))
    estimator.set_params(C=best[1], tol=1e-4 / 90).fit(both.x, both.y)
    outcome = sweep(train, val, both, test, "accuracy", grid)
    assert (outcome.c, outcome.test) == pytest.approx((best[1], 100 * estimator.score(test.x, test.y)))


def test_class_k_starts_from_class_k_minus_1():
    from sklearn.linear_model import LogisticRegression

    x = blobs(40, spread=1.5).x
    y = (np.random.default_rng(0).random((40, 3)) < 0.4).astype(np.int64)
    estimator, want = LogisticRegression(warm_start=True), []
    for wd in (1e-2, 1.0):
        want = [
            estimator.set_params(C=2 / wd, tol=1e-4 / 40).fit(x, y[:, k]).decision_function(x).copy() for k in range(3)
        ]
    probe = Probe(multilabel=True)
    for wd in (1e-2, 1.0):
        probe.fit(Part(x, y), wd)
    np.testing.assert_allclose(probe.scores(x), np.stack(want, 1), rtol=1e-4, atol=1e-5)


def test_binary_probe_is_the_two_column_softmax():
    """PROTOCOLS 4.5: C = 2/wd with one column is C = 1/wd with two; compared with direct minimisation."""
    from scipy.optimize import minimize
    from scipy.special import logsumexp

    part, wd = blobs(40, k=2, spread=3.0, dim=2), 2.0
    x, y = part.x.astype(np.float64), part.y

    def loss(flat):
        w, b = flat[:4].reshape(2, 2), flat[4:]
        z = x @ w.T + b
        return (logsumexp(z, axis=1) - z[np.arange(40), y]).sum() + wd / 2 * (w**2).sum()

    probe = Probe(multilabel=False)
    probe.fit(Part(x, y), wd)
    w = minimize(loss, np.zeros(6), tol=1e-10).x[:4].reshape(2, 2)
    np.testing.assert_allclose(probe._weight, w, atol=1e-3)


def test_multilabel_sweep():
    parts = [blobs(30, seed, spread=0.8) for seed in range(3)]
    a, b, c = (Part(p.x, np.stack([p.y == 0, p.y == 1, p.y > 0], 1).astype(np.int64)) for p in parts)
    outcome = sweep(a, b, joined(a, b), c, "mAP11", [1e-2, 1.0, 1e2])
    assert outcome.test > 90
    assert outcome.fits == 3 * 3 + 3
    assert outcome.c == pytest.approx(2 / outcome.weight_decay)


def test_unconverged_fits_are_counted_and_silent():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((300, 40)) * np.logspace(0, 3, 40)  # ill-conditioned
    part = Part(x.astype(np.float32), rng.integers(0, 5, 300))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        outcome = sweep(part, part, part, part, "accuracy", [1e-6])
    assert 1 <= outcome.unconverged <= outcome.fits == 2


def test_features_that_are_not_finite_are_refused():
    part = blobs(12)
    part.x[3, 2] = np.nan
    with pytest.raises(UserError, match="not finite"):
        sweep(part, part, part, part, "accuracy")


def test_check_labels_names_what_is_missing():
    classes = ["cat", "dog", "fox"]
    whole, lacking = np.array([0, 1, 2]), np.array([0, 2, 2])
    check_labels(classes, train=whole, val=lacking, both=whole, test=whole)
    with pytest.raises(UserError, match="train set has no image of dog"):
        check_labels(classes, train=lacking, val=whole, both=whole, test=whole)
    with pytest.raises(UserError, match="test set has no image of dog"):
        check_labels(classes, train=whole, val=whole, both=whole, test=lacking)
    many = np.array([[1, 0], [1, 1]])
    with pytest.raises(UserError, match="every image of the train set is cat"):
        check_labels(classes[:2], train=many, val=many, both=many, test=many)
    with pytest.raises(UserError, match="val set has no image of dog"):
        check_labels(classes[:2], train=1 - np.eye(2, dtype=int), val=many * [1, 0], both=many, test=many)
