"""The sizes of what the benchmarks measure, and synthetic features with labels."""

from typing import NamedTuple

import numpy as np

# JPEGs of the extraction, in the proportion of Food-101's train + val and test; a fifth of the first are val.
BOTH, TEST = 96, 32
APART = 0.3  # points between the test accuracies of two sweeps, at most


class Problem(NamedTuple):
    """The size and difficulty of a synthetic data set: `n` train + val and `test` images, features like a ResNet-50's.

    There are enough images for 0.3 points not to be chance: with a few hundred val images the two sweeps choose weight
    decays up to two points of test accuracy apart, in both directions.
    """

    classes: int
    noise: float
    n: int = 10_000
    test: int = 10_000
    dim: int = 2048  # of the features

    @property
    def title(self) -> str:
        """The problem in words, for a table."""
        return f"{self.classes} classes, {self.n} + {self.test} images, {self.dim} features"

    @property
    def rows(self) -> tuple[np.ndarray, np.ndarray]:
        """The rows of train and of val, a fifth, in the first `n`."""
        order = np.random.default_rng(1).permutation(self.n)
        return np.sort(order[self.n // 5 :]), order[: self.n // 5]


TEN, HUNDRED = Problem(10, noise=4.0), Problem(100, noise=2.0)


def make_features(problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """Return features (N, D) float32 and labels (N,): a spectrum that falls as 1/k, classes apart in 64 directions.

    All features are positive and far from the origin, as means over ReLUs are.
    """
    rng, dim = np.random.default_rng(0), problem.dim
    deviations = np.arange(1, dim + 1, dtype=np.float32) ** -0.5
    rotation = np.linalg.qr(rng.standard_normal((dim, dim), dtype=np.float32))[0]
    centres = rng.standard_normal((problem.classes, dim), dtype=np.float32)
    centres[:, 64:] = 0
    y = rng.permutation(np.arange(problem.n + problem.test) % problem.classes)
    x = centres[y] + problem.noise * rng.standard_normal((len(y), dim), dtype=np.float32)
    x = (x * deviations) @ rotation
    return np.logaddexp(0, x / x.std() - 1).astype(np.float32), y
