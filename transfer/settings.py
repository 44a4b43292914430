"""The constants of the sweep over weight decays, and SETTINGS, their text in the hash of every record."""

import numpy as np

WEIGHT_DECAYS = tuple(float(w) for w in np.logspace(-6, 5, 45))
MAX_ITER = 100  # scikit-learn's default, and upstream's
TOL = 1e-4
BALANCE = 0.02  # of the penalty's gradient, about what float32 losses resolve
FAR = 0.02  # of the largest gradient that the residuals could have; float32 errors are about a tenth of that
TYPICAL = 0.35  # about the standard deviation of a ResNet's features
UNEVEN = 16  # ratio of the features' deviations: scikit-learn's solver assumes that all are of one size
UNIT = 256.0  # a power of two, so dividing by it rounds nothing
SMALL_GAIN = 0.02  # of the mean loss: below it the first-order solution is near the optimum

# Everything here that a result depends on besides its data: part of a record's config_sha256.
SETTINGS = (
    f"L-BFGS, weight decays {WEIGHT_DECAYS}, C = 1/wd (binary 2/wd), max_iter {MAX_ITER}, tol {TOL}/n or {BALANCE} of "
    f"the penalty's gradient, checked to {FAR} of the residuals', features minus their mean, by the power of {UNIT} "
    f"next to their median deviation over {TYPICAL}, beyond {UNEVEN} times the median by a solver that scales each, "
    "float32, from strong to weak decay (multi-label: each class), "
    "first-order start, then from where the last two fits point to, highest validation metric (ties: larger C), "
    "refit on train + val from the chosen or the last close fit on"
)
