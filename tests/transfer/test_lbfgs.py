"""The solver for devices, here on CPU tensors, against scikit-learn's optimum and the formulas."""

import numpy as np
import pytest
import sklearn.linear_model
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.transfer.test_sweep import blobs, hard, newton, split
from transfer import regularisation
from transfer.lbfgs import LogisticRegression, inverse_curvature, search
from transfer.regularisation import RegularisationPath, noting_convergence
from transfer.settings import WEIGHT_DECAYS
from transfer.sweep import sweep

CPU = torch.device("cpu")


def solver(k, dim, **options):
    """Return our solver at zero for k classes and features (N, dim)."""
    rows = 1 if k == 2 else k
    model = LogisticRegression(max_iter=1000).set_params(**options)
    model.coef_, model.intercept_ = torch.zeros(rows, dim), torch.zeros(rows)
    return model


@pytest.mark.parametrize("k", [2, 3, 5])
@pytest.mark.parametrize("c", [1e-3, 1.0, 100.0])
def test_the_optimum_is_scikit_learns(k, c):
    part = blobs(200, k=k, spread=3.0, dim=12)
    x, y = torch.as_tensor(part.x).double(), torch.as_tensor(part.y)
    model = solver(k, 12, C=c, tol=1e-11)
    assert model.fit(x, y)
    want = sklearn.linear_model.LogisticRegression(C=c, tol=1e-13, max_iter=10_000).fit(x.numpy(), part.y)
    np.testing.assert_allclose(model.coef_.numpy(), want.coef_, atol=1e-5)
    bias, wanted = model.intercept_.numpy(), want.intercept_
    if k > 2:  # of which only differences matter
        bias, wanted = bias - bias.mean(), wanted - wanted.mean()
    np.testing.assert_allclose(bias, wanted, atol=1e-4)


@pytest.mark.parametrize("k", [2, 4])
def test_features_of_every_size_take_no_more_steps(k):
    part, size = blobs(300, k=k, spread=3.0, dim=8), 10.0 ** np.arange(-4, 4)
    x, y = torch.as_tensor(part.x - part.x.mean(0)).double(), torch.as_tensor(part.y)
    model, other = solver(k, 8, C=1e6, tol=1e-9), solver(k, 8, C=1e6, tol=1e-9 * torch.as_tensor(np.append(size, 1.0)))
    assert model.fit(x, y)
    assert other.fit(x * torch.as_tensor(size), y)
    assert other.n_iter_[0] < 1.5 * model.n_iter_[0] < 150
    want = newton(x.numpy() * size, part.y, (2 if k == 2 else 1) * 1e-6)[0]
    weight = other.coef_.numpy()
    if k == 2:
        want = want[1:] - want[:1]
    np.testing.assert_allclose(weight * size, want * size, atol=1e-4)


def test_a_fit_ends_at_its_bound_or_its_steps_and_begins_where_the_last_ended():
    part = blobs(90, spread=3.0)
    x, y = torch.as_tensor(part.x), torch.as_tensor(part.y)
    model = solver(3, 5, C=1.0, tol=1e-5)
    model.max_iter = 2
    assert not model.fit(x, y)
    assert model.n_iter_ == [2]
    model.max_iter = 1000
    assert model.fit(x, y)
    assert 2 < model.n_iter_[0] < 100
    p = (x @ model.coef_.float().T + model.intercept_.float()).softmax(1) - torch.eye(3)[y]
    assert (p.T @ x + model.coef_).abs().max() / 90 < 2e-5
    assert p.sum(0).abs().max() / 90 < 2e-5
    assert model.fit(x, y)
    assert model.n_iter_ == [0]


def test_features_that_are_not_finite_end_a_fit_at_once():
    model = solver(3, 5, C=1.0, tol=1e-5)
    assert not model.fit(torch.full((6, 5), torch.nan), torch.arange(6) % 3)
    assert model.n_iter_ == [0]


def test_what_float32_cannot_resolve_is_fitted_in_float64(monkeypatch):
    monkeypatch.setattr(regularisation, "TOL", 1e-9)
    monkeypatch.setattr(regularisation, "BALANCE", 0.0)
    both, train, _ = hard()
    precisions, fit = [], LogisticRegression.fit

    def noting(self, x, y):
        precisions.append(x.dtype)
        return fit(self, x, y)

    monkeypatch.setattr(LogisticRegression, "fit", noting)
    x, y = (torch.as_tensor(a[train]) for a in (both.x - both.x.mean(0), both.y))
    ours = RegularisationPath(x, y, binary=False).fit(10.0)
    assert precisions == [torch.float32, torch.float64]
    assert ours.converged
    assert ours.weight.dtype == torch.float32


@given(
    minimum=st.floats(1e-6, 1e6),
    sharpness=st.floats(0.1, 15),
    scale=st.floats(1e-3, 1e3),
)
def test_a_search_ends_where_the_wolfe_conditions_hold(minimum, sharpness, scale):
    """On log(cosh), which Newton's method alone overshoots without end."""
    a = sharpness / minimum

    def at(t):
        u = a * (t - minimum)
        return scale * np.logaddexp(u, -u), scale * a * np.tanh(u), scale * a**2 * (1 - np.tanh(u) ** 2)

    t = search(at)
    (start, descent, _), (value, slope, _) = at(0.0), at(t)
    assert t > 0
    assert value <= start + 1e-4 * t * descent + 1e-13 * abs(start)
    assert abs(slope) <= 0.9 * abs(descent)


def test_a_search_uphill_finds_nothing():
    assert search(lambda t: (t * t + t, 2 * t + 1, 2.0)) is None
    assert search(lambda t: (float("nan"),) * 3) is None


def test_the_two_loops_are_bfgs_update_by_update():
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    hessian, pairs = root @ root.T + torch.eye(6), []
    for _ in range(4):
        moved = torch.randn(6, generator=generator, dtype=torch.float64)
        bent = hessian @ moved
        pairs.append((moved, bent, 1 / (moved * bent).sum()))
    moved, bent, inverse = pairs[-1]
    matrix = torch.eye(6, dtype=torch.float64) / (inverse * bent @ bent)
    for moved, bent, inverse in pairs:
        left = torch.eye(6, dtype=torch.float64) - inverse * torch.outer(moved, bent)
        matrix = left @ matrix @ left.T + inverse * torch.outer(moved, moved)
    gradient = torch.randn(6, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(inverse_curvature(gradient, pairs), matrix @ gradient)
    torch.testing.assert_close(inverse_curvature(gradient, []), gradient)


def test_a_path_of_tensors_is_that_of_arrays():
    both, train, _ = hard()
    x, y = both.x[train] - both.x[train].mean(0), both.y[train]
    arrays, tensors = (
        RegularisationPath(x, y, binary=False),
        RegularisationPath(torch.as_tensor(x), torch.as_tensor(y), binary=False),
    )
    with noting_convergence():
        for wd in [decay for decay in WEIGHT_DECAYS[::-1] if decay >= 1e-2]:
            one, other = arrays.fit(wd), tensors.fit(wd)
            assert one.converged
            assert other.converged
            want, ours = (fit.scores(data) for fit, data in ((one, x), (other, torch.as_tensor(x))))
            want, ours = (scores - scores.mean(1, keepdims=True) for scores in (want, ours))
            assert np.abs(ours - want).max() < 0.05 * max(1, np.abs(want).max())


@pytest.mark.parametrize(("metric", "multilabel"), [("accuracy", False), ("mAP11", True)])
def test_a_sweep_on_a_device_is_that_of_scikit_learn(metric, multilabel):
    data, grid = split(90, 45, 90, spread=2.0, multilabel=multilabel), [1e-2, 1.0, 1e2]
    plain, ours = sweep(*data, metric, grid), sweep(*data, metric, grid, CPU)
    np.testing.assert_allclose(ours.val, plain.val, atol=1.5 if multilabel else 100 / 45 + 1e-9)
    assert ours.test == pytest.approx(plain.test, abs=1.5)
    assert (ours.fits, ours.unconverged) == (plain.fits, 0)
