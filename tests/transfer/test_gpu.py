"""The sweep of a GPU against the CPU's; `make gpu-check DEVICE=cpu` rehearses it on CPU tensors."""

import numpy as np
import pytest

from common.features import Features
from tests.transfer.test_sweep import split
from transfer.sweep import sweep
from transfer.synthetic import Problem, make_features

pytestmark = pytest.mark.gpu


def test_the_45_values_give_the_cpus_curve_and_accuracy(device):
    """Within four of 800 validation images, as the bounds of both let the weights differ slightly."""
    problem = Problem(7, noise=2.0, n=4000, test=4000, dim=96)
    x, y = make_features(problem)
    both, test = Features(x[:4000], y[:4000]), Features(x[4000:], y[4000:])
    plain, ours = (sweep(both, *problem.rows, test, "accuracy", device=where) for where in (None, device))
    assert 30 < plain.test < 95
    assert len(ours.val) == 45
    np.testing.assert_allclose(ours.val, plain.val, atol=100 * 4 / 800 + 1e-9)
    assert ours.test == pytest.approx(plain.test, abs=0.3)
    assert ours.winner_converged
    assert ours.unconverged <= plain.unconverged
    assert ours.calibration["ece"] == pytest.approx(plain.calibration["ece"], abs=1)


@pytest.mark.parametrize("k", [2, 5])
def test_labels_of_two_classes_and_of_many_at_once_are_fitted_there_too(device, k):
    metric = "accuracy" if k == 2 else "mAP11"
    data, grid = split(120, 60, 120, multilabel=k > 2, spread=2.0, k=k), [1e-2, 1.0, 1e2]
    plain, ours = (sweep(*data, metric, grid, where) for where in (None, device))
    np.testing.assert_allclose(ours.val, plain.val, atol=100 / 60 + 1e-9)
    assert ours.test == pytest.approx(plain.test, abs=1)
    assert ours.unconverged == 0
