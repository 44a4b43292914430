import os
import threading
import time
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from common.errors import UserError
from common.features import Features
from transfer import regularisation
from transfer import sweep as module
from transfer.metrics import mean_average_precision_11
from transfer.regularisation import RegularisationPath, inverse, noting_convergence
from transfer.settings import WEIGHT_DECAYS
from transfer.sweep import sweep


def blobs(n, seed=0, k=3, spread=0.4, dim=5):
    """Return k separable classes around corners, as float32 features far from the origin."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % k
    return Features((2 + 3 * np.eye(k, dim)[y] + spread * rng.standard_normal((n, dim))).astype(np.float32), y)


def split(train, val, test, multilabel=False, seed=0, **options):
    """Return `sweep`'s first four arguments: train and val interleaved, and test."""
    both, tested = blobs(train + val, seed, **options), blobs(test, seed + 100, **options)
    if multilabel:
        both, tested = (
            Features(p.x, np.stack([p.y == 0, p.y == 1, p.y > 0], 1).astype(np.int64)) for p in (both, tested)
        )
    rows = np.random.default_rng(2).permutation(train + val)
    return both, np.sort(rows[:train]), rows[train:], tested


def literal(both, train, val, test, grid):
    """The protocol at its plainest, in float64 and to convergence: each fit by itself and from zero."""
    binary = both.y.max() == 1

    def fit(rows, wd):
        model = LogisticRegression(C=(1 + binary) / wd, max_iter=10_000, tol=1e-10)
        return model.fit(both.x[rows].astype(np.float64), both.y[rows])

    val_scores = [100 * fit(train, wd).score(both.x[val], both.y[val]) for wd in grid]
    best = grid[int(np.argmax(val_scores))]  # the first, which has the larger C
    return val_scores, best, 100 * fit(np.concatenate([train, val]), best).score(test.x, test.y)


def test_grid_is_the_papers():
    assert len(WEIGHT_DECAYS) == 45
    assert (WEIGHT_DECAYS[0], WEIGHT_DECAYS[-1]) == pytest.approx((1e-6, 1e5))
    np.testing.assert_allclose(np.diff(np.log10(WEIGHT_DECAYS)), 0.25)
    assert inverse(1e-6, binary=False) == pytest.approx(1e6)
    assert inverse(1e-6, binary=True) == pytest.approx(2e6)


def test_separable_classes_are_learnt():
    outcome = sweep(*split(60, 30, 45), "accuracy")
    assert outcome.test == outcome.validation == 100
    assert outcome.fits > 46  # the winner's decay is so weak that the refit follows the path to it
    # The first of the grid is already perfect, and later equals do not replace it.
    assert outcome.weight_decay == WEIGHT_DECAYS[0]
    assert outcome.c == pytest.approx(1e6)
    assert outcome.at_edge
    assert outcome.weight_decays == list(WEIGHT_DECAYS)
    assert len(outcome.val) == len(outcome.iterations) == len(outcome.converged) == 45
    assert outcome.val[0] == 100
    assert 0 <= outcome.calibration["ece"] < 1


@pytest.mark.parametrize("k", [2, 3, 5])
@pytest.mark.parametrize("seed", range(3))
def test_the_curve_the_choice_and_the_result_are_those_of_the_literal_protocol(k, seed):
    data = split(120, 60, 200, k=k, seed=seed, spread=3.0, dim=12)
    grid = [float(w) for w in np.logspace(-3, 4, 15)]
    outcome = sweep(*data, "accuracy", grid)
    val, best, test = literal(*data, grid)
    np.testing.assert_allclose(outcome.val, val, atol=200 / 60 + 1e-9)  # two of 60 images may fall on the other side
    assert max(val) - val[grid.index(outcome.weight_decay)] <= 100 / 60 + 1e-9
    if outcome.weight_decay == best:
        assert outcome.test == pytest.approx(test, abs=100 / 200 + 1e-9)
    assert outcome.winner_converged


@pytest.mark.parametrize(
    ("reached", "chosen"), [([1, 3, 3, 2], 1), ([0, 0, 0, 0], 0), ([1, 2, 3, 4], 3), ([4, 4, 4, 4], 0)]
)
def test_selection_takes_the_largest_c_of_the_best(monkeypatch, reached, chosen):
    grid = [1e-2, 1e-1, 1.0, 10.0]
    fit = RegularisationPath.fit

    def marked(self, wd):
        result = fit(self, wd)
        result.scores = lambda x: np.full((len(x), 3), wd)
        return result

    monkeypatch.setattr(RegularisationPath, "fit", marked)
    score = lambda labels, scores: reached[grid.index(scores[0, 0])] if len(labels) == 6 else 50  # noqa: E731
    monkeypatch.setitem(module.METRICS, "accuracy", score)
    outcome = sweep(*split(12, 6, 9), "accuracy", grid)
    assert (outcome.weight_decay, outcome.validation, outcome.test) == (grid[chosen], reached[chosen], 50)
    assert outcome.val == reached
    assert outcome.at_edge == (chosen in (0, 3))


def test_binary_fits_are_the_two_column_softmax():
    """PROTOCOLS 4.5: C = 2/wd with one column is C = 1/wd with two; compared with direct minimisation."""
    from scipy.optimize import minimize
    from scipy.special import logsumexp

    part, wd = blobs(40, k=2, spread=3.0, dim=2), 2.0
    x, y = part.x.astype(np.float64), part.y

    def loss(flat):
        w, b = flat[:4].reshape(2, 2), flat[4:]
        z = x @ w.T + b
        return (logsumexp(z, axis=1) - z[np.arange(40), y]).sum() + wd / 2 * (w**2).sum()

    ours = RegularisationPath(x, y, binary=True).fit(wd)
    w = minimize(loss, np.zeros(6), tol=1e-10).x[:4].reshape(2, 2)
    np.testing.assert_allclose(ours.weight[0], w[1] - w[0], atol=1e-3)
    scores = module.problems_of(y)[0].columns(ours.scores(x))
    np.testing.assert_allclose(scores[:, 1] - scores[:, 0], x @ (w[1] - w[0]) + ours.bias[0], atol=1e-2)


def test_multilabel_data_get_a_binary_fit_a_class_and_one_weight_decay():
    data = split(60, 30, 60, multilabel=True, spread=1.5)
    grid = [1e-2, 1.0, 1e2]
    outcome = sweep(*data, "mAP11", grid)
    both, train, val, test = data
    assert outcome.fits == 3 * 3 + 3
    assert outcome.c == pytest.approx(2 / outcome.weight_decay)
    assert outcome.calibration is None

    def plain(rows, x, wd):
        models = (LogisticRegression(C=2 / wd, tol=1e-10, max_iter=1000).fit(both.x[rows], y) for y in both.y[rows].T)
        return np.stack([model.decision_function(x) for model in models], 1)

    want = [mean_average_precision_11(both.y[val], plain(train, both.x[val], wd)) for wd in grid]
    np.testing.assert_allclose(outcome.val, want, atol=1.5)
    scores = plain(np.concatenate([train, val]), test.x, outcome.weight_decay)
    assert outcome.test == pytest.approx(mean_average_precision_11(test.y, scores), abs=1.5)


def test_a_shift_of_all_features_changes_nothing():
    data = split(90, 45, 90, spread=2.0)
    shifted = [Features(p.x + np.float32(3), p.y) if isinstance(p, Features) else p for p in data]
    one, other = (sweep(*d, "accuracy", [1e-2, 1.0, 1e2]) for d in (data, shifted))
    assert one.val == pytest.approx(other.val, abs=100 / 45 + 1e-9)
    assert one.test == pytest.approx(other.test, abs=100 / 90 + 1e-9)


def test_the_number_of_cores_changes_nothing(monkeypatch):
    data = split(90, 45, 90, spread=2.0)
    outcomes = []
    for cores in (1, 2, 8):
        monkeypatch.setattr(module, "_cores", lambda cores=cores: cores)
        outcome = sweep(*data, "accuracy")
        outcomes.append((outcome.val, outcome.iterations, outcome.test))
    assert outcomes[0] == outcomes[1] == outcomes[2]


def test_features_are_read_from_a_memory_map_and_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 7)
    both, train, val, test = split(60, 30, 45, spread=2.0)
    mapped = []
    for name, part in (("both", both), ("test", test)):
        np.save(tmp_path / f"{name}.npy", part.x)
        mapped.append(Features(np.load(tmp_path / f"{name}.npy", mmap_mode="c"), part.y))
    plain, other = (sweep(b, train, val, t, "accuracy", [1.0]) for b, t in ((both, test), mapped))
    assert (plain.val, plain.test) == (other.val, other.test)
    np.testing.assert_array_equal(mapped[0].x, both.x)


def test_unconverged_fits_are_counted_and_silent(monkeypatch):
    monkeypatch.setattr(regularisation, "MAX_ITER", 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        outcome = sweep(*split(90, 45, 60, spread=3.0), "accuracy", [1e-6, 1e-5, 1e5])
    assert outcome.fits == 3 + 3  # the refit follows the path from the one close fit
    assert outcome.unconverged == sum(not converged for converged in outcome.converged) + 3
    assert not outcome.winner_converged
    assert max(outcome.iterations) == 3
    assert not any(outcome.converged[:2])


def test_what_float32_cannot_resolve_is_fitted_in_float64(monkeypatch):
    """A line search that finds no lower loss ends a fit with a warning, before the iterations are used up."""
    precisions, fit = [], LogisticRegression.fit

    def failing(self, x, y):
        precisions.append(x.dtype)
        fit(self, x, y)
        if x.dtype == np.float32:
            from sklearn.exceptions import ConvergenceWarning

            warnings.warn("lbfgs failed to converge (status=2): ABNORMAL", ConvergenceWarning, stacklevel=1)
        return self

    monkeypatch.setattr(LogisticRegression, "fit", failing)
    part = blobs(30, spread=2.0)
    with noting_convergence():
        ours = RegularisationPath(part.x, part.y, binary=False).fit(1.0)
    assert precisions == [np.float32, np.float64]
    assert ours.converged
    assert ours.weight.dtype == np.float32


def newton(x, y, decay):
    """Return the softmax's optimum, weight (K, D) and bias (K,), by Newton's method on features of unit size."""
    size, k = np.sqrt((x**2).mean(0, dtype=np.float64)), y.max() + 1
    z, right = np.c_[x / size, np.ones(len(x))], np.eye(k)[y]
    penalty = np.tile(np.append(decay / size**2, 0.0), k)
    flat = np.zeros(len(penalty))

    def shares(flat):
        logits = z @ flat.reshape(k, -1).T
        shifted = logits - logits.max(1, keepdims=True)
        share = np.exp(shifted) / np.exp(shifted).sum(1, keepdims=True)
        loss = (np.log(np.exp(shifted).sum(1)) - (right * shifted).sum(1)).sum()
        return share, loss + (penalty * flat**2).sum() / 2

    for _ in range(100):
        share, loss = shares(flat)
        gradient = ((share - right).T @ z).ravel() + penalty * flat
        curvature = np.einsum("na,nb,ab,ni,nj->aibj", share, -share, 1 - np.eye(k), z, z, optimize=True)
        curvature += np.einsum("na,ab,ni,nj->aibj", share * (1 - share), np.eye(k), z, z, optimize=True)
        step = np.linalg.lstsq(curvature.reshape(len(flat), -1) + np.diag(penalty), gradient, rcond=1e-13)[0]
        if step @ gradient < 1e-13 * loss:
            weights = flat.reshape(k, -1)
            return weights[:, :-1] / size, weights[:, -1]
        t = 1.0
        while shares(flat - t * step)[1] > loss - 0.1 * t * (step @ gradient):
            t /= 2
        flat = flat - t * step
    raise AssertionError("Newton's method did not converge")


UNITS = {
    "one large": np.r_[1e5, np.ones(11)],
    "one small": np.r_[1e-5, np.ones(11)],
    "two sizes": np.r_[np.full(7, 1e-3), np.ones(5)],
    "half large": np.r_[np.full(6, 1e4), np.ones(6)],
    "most large": np.r_[np.full(10, 1e6), np.ones(2)],
    "every size": 10.0 ** np.linspace(-4, 4, 12),
    "all small": np.full(12, 1e-4),
    "all tiny": np.full(12, 1e-9),
    "all large": np.full(12, 1e4),
}


@pytest.mark.parametrize("device", [None, torch.device("cpu")], ids=["scikit-learn", "ours"])
@pytest.mark.parametrize("k", [2, 5])
@pytest.mark.parametrize("units", UNITS)
def test_features_in_any_unit_are_fitted_to_the_optimum(units, k, device):
    """The penalty applies to the weights of the features as given."""
    both, train, val, test = split(150, 100, 200, k=k, spread=3.0, dim=12)
    both, test = (Features((part.x * UNITS[units]).astype(np.float32), part.y) for part in (both, test))
    mean = both.x[train].mean(0, dtype=np.float64)
    unit = 1 if units in ("half large", "most large") else np.median(UNITS[units])  # the small ones count, too
    grid = [float(decay * unit**2) for decay in np.logspace(-3, 4, 15)]
    outcome = sweep(both, train, val, test, "accuracy", grid, device)

    def optimum(rows, wd):
        weight, bias = newton(both.x[rows] - mean, both.y[rows], wd)
        return lambda x, y: 100 * (((x - mean) @ weight.T + bias).argmax(1) == y).mean()

    want = [optimum(train, wd)(both.x[val], both.y[val]) for wd in grid]
    np.testing.assert_allclose(outcome.val, want, atol=2 + 1e-9)  # two of 100 images may fall on the other side
    best = optimum(np.arange(250), outcome.weight_decay)(test.x, test.y)
    assert outcome.test == pytest.approx(best, abs=1 + 1e-9)
    assert outcome.winner_converged
    assert outcome.unconverged <= 1


@pytest.mark.parametrize("k", [2, 5])
def test_a_stop_far_from_the_optimum_is_no_convergence(monkeypatch, k):
    """scikit-learn gives no warning where the rounded loss stops falling."""
    fit = LogisticRegression.fit

    def stopping(self, x, y):
        weights = self.coef_ * 0.9, self.intercept_
        fit(self, x, y)
        self.coef_, self.intercept_, self.n_iter_ = *weights, np.array([1])
        return self

    part = blobs(200, k=k, spread=3.0)
    x = part.x - part.x.mean(0)
    with noting_convergence():
        start = RegularisationPath(x, part.y, binary=k == 2).fit(1.0)
        assert start.converged
        monkeypatch.setattr(LogisticRegression, "fit", stopping)
        assert not RegularisationPath(x, part.y, binary=k == 2, start=start).fit(1.0).converged


def test_a_power_of_256_is_the_same_problem_bit_for_bit():
    both, train, val, test = split(60, 30, 45, spread=2.0)
    centred = [Features(part.x - both.x.mean(0), part.y) for part in (both, test)]
    grid = [1e-2, 1.0, 1e2]
    one = sweep(centred[0], train, val, centred[1], "accuracy", grid)
    scaled = [Features(part.x * np.float32(256), part.y) for part in centred]
    other = sweep(scaled[0], train, val, scaled[1], "accuracy", [wd * 2**16 for wd in grid])
    assert (one.val, one.test, one.iterations) == (other.val, other.test, other.iterations)


def test_a_warning_is_of_the_thread_that_got_it():
    part, results = blobs(60, spread=3.0), {}

    def run(wd, iterations):
        path = RegularisationPath(part.x, part.y, binary=False)
        path._estimator.set_params(max_iter=iterations)
        results[wd, iterations] = path.fit(wd).converged

    with noting_convergence():
        threads = [threading.Thread(target=run, args=(wd, n)) for wd in (1e-3, 1e-2) for n in (1, 1000)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert results == {(wd, n): n == 1000 for wd in (1e-3, 1e-2) for n in (1, 1000)}


def test_an_interrupt_stops_the_other_paths(monkeypatch):
    fits = []

    def fit(self, wd):
        fits.append(wd)
        if len(fits) == 1:
            time.sleep(0.2)
            raise KeyboardInterrupt
        time.sleep(0.1)
        return original(self, wd)

    original = RegularisationPath.fit
    monkeypatch.setattr(RegularisationPath, "fit", fit)
    monkeypatch.setattr(module, "_cores", lambda: 2)
    with pytest.raises(KeyboardInterrupt):
        sweep(*split(30, 15, 15, multilabel=True), "mAP11")
    assert 1 < len(fits) < 10


def test_blas_multiplies_in_all_cores_and_steps_in_one(monkeypatch):
    from threadpoolctl import threadpool_info

    def threads():
        of = {os.path.basename(os.path.dirname(lib["filepath"])): lib["num_threads"] for lib in threadpool_info()}
        return of.get("numpy.libs"), of.get("scipy.libs")

    seen = []
    fit = RegularisationPath.fit
    monkeypatch.setattr(RegularisationPath, "fit", lambda self, wd: (seen.append(threads()), fit(self, wd))[1])
    monkeypatch.setattr(module, "_cores", lambda: 2)
    before = threads()
    if None in before:
        pytest.skip("NumPy and SciPy have no BLAS of their own here")
    sweep(*split(12, 6, 9), "accuracy", [1.0])
    sweep(*split(30, 15, 15, multilabel=True), "mAP11", [1.0])
    assert seen[:2] == [(2, 1)] * 2  # train, train + val
    assert seen[2:] == [(1, 1)] * 6
    assert threads() == before


@given(st.integers(0, 1000), st.floats(-2, 3))
@settings(max_examples=20, deadline=None)
def test_a_path_ends_where_a_fit_from_zero_does(seed, log_wd):
    part, wd = blobs(60, seed, spread=3.0), 10**log_wd
    path = RegularisationPath(part.x - part.x.mean(0), part.y, binary=False)
    for stronger in (1e5, 1e4):
        with noting_convergence():
            path.fit(stronger)
    with noting_convergence():
        ours = path.fit(wd).scores(part.x - part.x.mean(0))
    alone = LogisticRegression(C=1 / wd, tol=1e-10, max_iter=10_000).fit(part.x.astype(np.float64), part.y)
    want = alone.decision_function(part.x)
    np.testing.assert_allclose(ours - ours.mean(1, keepdims=True), want - want.mean(1, keepdims=True), atol=0.05)


def hard(n=400, k=5, dim=60):
    """Return train and val in float32, each of half the rows, that weak decay overfits."""
    rng = np.random.default_rng(0)
    y = np.arange(n) % k
    x = (rng.standard_normal((k, dim))[y] + 2.5 * rng.standard_normal((n, dim))) * np.arange(1, dim + 1) ** -0.5
    return Features(x.astype(np.float32), y), np.arange(0, n, 2), np.arange(1, n, 2)


def evaluations(monkeypatch):
    """Return a list that gets the number of function evaluations of every fit from now on."""
    from scipy import optimize

    counted, minimize = [], optimize.minimize

    def counting(*args, **kwargs):
        result = minimize(*args, **kwargs)
        counted.append(result.nfev)
        return result

    monkeypatch.setattr(optimize, "minimize", counting)
    return counted


def test_a_fit_starts_where_the_last_two_point_to(monkeypatch):
    both, train, _ = hard()
    x, y = both.x[train] - both.x[train].mean(0), both.y[train]
    grid, counted = WEIGHT_DECAYS[::-1], evaluations(monkeypatch)
    with noting_convergence():
        path = RegularisationPath(x, y, binary=False)
        ours = [path.fit(wd) for wd in grid]
        ahead = sum(counted)
        counted.clear()
        last = None
        for wd in grid:
            last = RegularisationPath(x, y, binary=False, start=last).fit(wd)
    assert ahead < 0.7 * sum(counted), (ahead, sum(counted))
    # The grid's steps are equal; where steps are not, the extrapolation is in proportion.
    path._last = [(np.log(4.0), np.ones((5, 60)), np.zeros(5)), (np.log(2.0), np.full((5, 60), 2.0), np.ones(5))]
    path._start(0.5)
    assert path._estimator.coef_ == pytest.approx(4)
    assert path._estimator.intercept_ == pytest.approx(3)
    assert [fit.close for fit in ours] == sorted((fit.close for fit in ours), reverse=True)  # at strong decays
    assert ours[0].close
    assert not ours[-1].close


@pytest.mark.parametrize("wd", [1e-6, 1e-3, 1.0])
def test_the_refit_does_not_remember_the_smaller_set(wd, monkeypatch):
    """Its scores are those of a converged fit in float64, also where TOL accepts many weights."""
    both, train, val = hard()
    scored = []
    monkeypatch.setitem(
        module.METRICS, "accuracy", lambda y, scores: (scored.append(scores), 100.0 * (len(y) == 200))[1]
    )
    grid = [decay for decay in WEIGHT_DECAYS if decay >= wd]
    outcome = sweep(both, train, val, both, "accuracy", grid)  # every decay is as good: the weakest is chosen
    assert outcome.weight_decay == grid[0]
    mean = both.x.mean(0, dtype=np.float64)
    exact = LogisticRegression(C=1 / grid[0], tol=1e-13, max_iter=100_000).fit(both.x - mean, both.y)
    want = exact.decision_function(both.x - mean)
    ours = scored[-1] - scored[-1].mean(1, keepdims=True)
    want -= want.mean(1, keepdims=True)
    assert np.abs(ours - want).max() < 0.05 * np.abs(want).max()


def test_features_that_are_not_finite_are_refused():
    for where in range(3):
        data = split(12, 6, 9)
        (data[0].x, data[0].x, data[3].x)[where][(3, 14, 3)[where], 2] = np.nan  # in train, val, test
        for device in (None, torch.device("cpu")):
            with pytest.raises(UserError, match="not finite"):
                sweep(*data, "accuracy", [1.0], device)
