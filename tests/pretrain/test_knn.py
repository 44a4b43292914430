"""Weighted kNN against brute force and against a literal vote."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors

from common.cli import UserError
from common.features import Features
from pretrain.knn import knn_accuracy, nearest_neighbours, vote


@settings(max_examples=25, deadline=None)
@given(n=st.integers(3, 60), d=st.integers(2, 16), chunk=st.integers(1, 70), seed=st.integers(0, 999))
def test_neighbours_are_those_of_brute_force_whatever_the_chunk(n, d, chunk, seed):
    rng = np.random.default_rng(seed)
    bank, queries = rng.normal(size=(n, d)).astype(np.float32), rng.normal(size=(5, d)).astype(np.float32)
    k = min(3, n)
    similarity, index = nearest_neighbours(torch.from_numpy(queries), bank, k, chunk=chunk)
    brute = NearestNeighbors(n_neighbors=k, metric="cosine", algorithm="brute").fit(bank)
    distance, want = brute.kneighbors(queries)
    np.testing.assert_allclose(similarity.numpy(), 1 - distance, atol=1e-5)
    assert (index.numpy() == want).mean() > 0.99  # equal but for ties within rounding


def test_the_vote_is_the_sum_of_exponentials():
    similarity, labels = torch.tensor([[0.9, 0.5, 0.4]]), torch.tensor([[1, 0, 0]])
    scores = vote(similarity, labels, temperature=0.5, num_classes=3)
    want = [math.exp(1.0) + math.exp(0.8), math.exp(1.8), 0.0]
    torch.testing.assert_close(scores, torch.tensor([want]))


def test_the_temperature_can_turn_a_vote():
    bank = Features(np.float32([[1, 0], [0.6, 0.8], [0.6, -0.8]]), np.array([0, 1, 1]), "")
    query = Features(np.float32([[2, 0]]), np.array([0]), "")
    assert knn_accuracy(bank, query, k=3, temperature=0.1) == 100.0  # the near one outweighs two
    assert knn_accuracy(bank, query, k=3, temperature=10.0) == 0.0  # the majority wins


def test_chunked_queries_are_all_counted():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(4, 8)).astype(np.float32)
    y = np.arange(50) % 4
    x = centres[y] + 0.01 * rng.normal(size=(50, 8)).astype(np.float32)
    features = Features(x, y, "")
    assert knn_accuracy(features, features, k=5, temperature=0.1, query_chunk=7) == 100.0
    wrong = Features(x, np.where(np.arange(50) < 5, (y + 1) % 4, y), "")
    assert knn_accuracy(features, wrong, k=5, temperature=0.1, query_chunk=7) == 90.0


def test_k_beyond_the_bank_is_refused():
    features = Features(np.ones((3, 2), np.float32), np.zeros(3, np.int64), "")
    with pytest.raises(UserError, match="k=5"):
        knn_accuracy(features, features, k=5, temperature=0.1)
