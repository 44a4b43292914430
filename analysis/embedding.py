"""The t-SNE map of features, and scores of how well the map and the features separate the classes."""

import numpy as np
from openTSNE import TSNE
from sklearn.manifold import trustworthiness
from sklearn.metrics import silhouette_score
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from analysis.scope import PERPLEXITY

SEED = 0  # of every panel
NEIGHBOURS = 10  # for trustworthiness and purity
SMALL = 2000  # images, below which threads wait for each other longer than they compute


def embed(x: np.ndarray, perplexity: float = PERPLEXITY) -> np.ndarray:
    """Return the t-SNE (N, 2) of features (N, D): exact neighbours, PCA initialisation, a fixed seed.

    The perplexity is at most a third of the number of samples. For 10,000 x 512 features on two cores, openTSNE took
    12 s with exact neighbours and 24 s with approximate ones; scikit-learn took 48 s and ended at the highest KL
    divergence.
    """
    few = len(x) < SMALL
    tsne = TSNE(
        perplexity=min(perplexity, max(1.0, (len(x) - 1) / 3)),
        initialization="pca" if np.ptp(x, axis=0).any() else "random",  # a collapsed network's have no components
        neighbors="exact",
        random_state=SEED,
        n_jobs=1 if few else -1,
    )
    with threadpool_limits(1 if few else None):
        return np.asarray(tsne.fit(x))


def scores(x: np.ndarray, points: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return the scores of a panel, whose features x (N, D) are mapped to `points` (N, 2).

    trustworthiness: how far neighbours on the map are neighbours among the features (Venna and Kaski, 2001), at most
    1. silhouette, purity: of the features; map_silhouette, map_purity: of the map. Silhouette (Rousseeuw, 1987) is in
    [-1, 1]; purity is the share of the nearest neighbours that have the point's own class.
    """
    k = min(NEIGHBOURS, max(1, (len(x) - 1) // 2))
    values = {"trustworthiness": trustworthiness(x, points, n_neighbors=k)} if len(x) > 2 else {}
    for prefix, data in (("", x), ("map_", points)):
        if 1 < len(set(labels.tolist())) < len(labels):
            values[f"{prefix}silhouette"] = silhouette_score(data, labels)
        values[f"{prefix}purity"] = purity(data, labels, k)
    return {name: round(float(value), 4) for name, value in values.items()}


def purity(x: np.ndarray, labels: np.ndarray, k: int = NEIGHBOURS) -> float:
    """Return the share of points of the same class among each point's k nearest, without the point itself.

    >>> purity(np.array([[0.0], [1.0], [9.0], [10.0]]), np.array([0, 0, 1, 0]), k=1)
    0.5
    """
    nearest = NearestNeighbors(n_neighbors=k).fit(x).kneighbors(return_distance=False)
    return float((labels[nearest] == labels[:, None]).mean())
