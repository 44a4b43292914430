"""Weighted kNN against brute force and against a literal vote."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.neighbors import NearestNeighbors

from common.backbones import build_backbone
from common.errors import UserError
from common.features import Features, forward
from pretrain import hooks, neighbours
from pretrain.hooks import KnnMonitor
from pretrain.neighbours import knn_accuracy, nearest_neighbours, vote


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(3, 60),
    d=st.integers(2, 16),
    chunk=st.integers(1, 70),
    query_chunk=st.integers(1, 6),
    seed=st.integers(0, 999),
)
def test_neighbours_are_those_of_brute_force_whatever_the_chunks(n, d, chunk, query_chunk, seed):
    rng = np.random.default_rng(seed)
    bank, queries = rng.normal(size=(n, d)).astype(np.float32), rng.normal(size=(5, d)).astype(np.float32)
    k = min(3, n)
    similarity, index = nearest_neighbours(queries, bank, k, chunk=chunk, query_chunk=query_chunk)
    brute = NearestNeighbors(n_neighbors=k, metric="cosine", algorithm="brute").fit(bank)
    distance, want = brute.kneighbors(queries)
    np.testing.assert_allclose(similarity.numpy(), 1 - distance, atol=1e-5)
    assert (index.numpy() == want).mean() > 0.99  # equal but for ties within rounding


class Counted:
    """A bank that counts how often each of its rows is read."""

    def __init__(self, rows):
        self.rows, self.reads = rows, np.zeros(len(rows), int)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, part):
        self.reads[part] += 1
        return self.rows[part]


def test_each_row_of_the_bank_is_read_once():
    bank = Counted(np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32))
    _, index = nearest_neighbours(bank.rows, bank, 1, chunk=7, query_chunk=3)
    assert index[:, 0].tolist() == list(range(50))
    assert bank.reads.tolist() == [1] * 50


def test_an_autocast_of_the_callers_does_not_reach_the_distances():
    rows = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
    plain, _ = nearest_neighbours(rows, rows, 3)
    with torch.autocast("cpu", torch.bfloat16):
        mixed, _ = nearest_neighbours(rows, rows, 3)
    assert mixed.dtype == torch.float32
    assert torch.equal(plain, mixed)


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
    bank, query = (Features(part.x, 1 - part.y, "") for part in (bank, query))
    assert knn_accuracy(bank, query, k=3, temperature=1e-4) == 100.0  # where exp(similarity / temperature) overflows


def test_all_queries_are_counted():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(4, 8)).astype(np.float32)
    y = np.arange(50) % 4
    x = centres[y] + 0.01 * rng.normal(size=(50, 8)).astype(np.float32)
    features = Features(x, y, "")
    assert knn_accuracy(features, features, k=5, temperature=0.1) == 100.0
    wrong = Features(x, np.where(np.arange(50) < 5, (y + 1) % 4, y), "")
    assert knn_accuracy(features, wrong, k=5, temperature=0.1) == 90.0


def test_k_beyond_the_bank_is_refused():
    features = Features(np.ones((3, 2), np.float32), np.zeros(3, np.int64), "")
    with pytest.raises(UserError, match="k=5"):
        knn_accuracy(features, features, k=5, temperature=0.1)


def test_parts_of_the_bank_in_several_processes_give_what_the_whole_gives(monkeypatch):
    """Two processes, one with fewer images than k; what the other would send is given here."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 4, 60)
    x = (np.eye(4)[y] @ rng.normal(size=(4, 6)) + 1.5 * rng.normal(size=(60, 6))).astype(np.float32)
    whole, queries = Features(x[:40], y[:40], ""), Features(x[40:], y[40:], "")
    want = knn_accuracy(whole, queries, k=9, temperature=0.1)
    assert 30 < want < 90
    few, rest = Features(x[:5], y[:5], ""), Features(x[5:40], y[5:40], "")
    sent = {}
    monkeypatch.setattr(neighbours, "get_world_size", lambda: 2)
    for mine, other in ((few, rest), (rest, few), (few, rest)):  # the first call's result is of a part alone
        calls = iter(range(2))

        def gather(tensor, mine=mine, other=other, calls=calls):
            call = next(calls)
            sent[len(mine.y), call] = tensor
            assert tensor.shape == (20, 9)
            return [tensor, sent.get((len(other.y), call), tensor)]

        monkeypatch.setattr(neighbours, "all_gather_object", lambda n: [5, 35])
        monkeypatch.setattr(neighbours, "all_gather", gather)
        found = knn_accuracy(mine, queries, k=9, temperature=0.1)
    assert found == want


class Noise:
    """Ten images of noise."""

    name, classes, fingerprint = "noise", ("noise",), "noise"
    labels = np.arange(10)

    def image(self, index):
        return Image.fromarray(np.random.default_rng(index).integers(0, 256, (32, 32, 3), np.uint8))


@pytest.mark.parametrize(("local", "workers"), [(1, 4), (3, 2)])
def test_the_monitor_takes_its_share_of_images_and_of_a_nodes_workers(monkeypatch, local, workers):
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(local))
    asked = []

    def alone(*args, **options):
        asked.append(options["workers"])
        return forward(*args, **{**options, "workers": 0})

    monkeypatch.setattr(hooks, "forward", alone)
    evaluation = dict(images={}, size=32, resize=None, batch_size=2, workers=4, k=1, temperature=0.1)
    backbone = build_backbone("test_resnet").train()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    runner = SimpleNamespace(rank=1, world_size=3, launcher="pytorch")
    monitor = KnnMonitor()
    monitor.evaluation = evaluation
    found = monitor._features(backbone, Noise(), runner)
    assert asked == [workers]
    assert found.y.tolist() == [1, 4, 7]
    assert backbone.training
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    with torch.no_grad():
        view = neighbours.evaluation_view(evaluation)
        want = backbone.eval()(torch.stack([view(Noise().image(k)) for k in (1, 4, 7)]))
    torch.testing.assert_close(torch.from_numpy(found.x), want, rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
def test_neighbours_and_accuracy_on_a_gpu_are_the_cpus(device, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    bank, queries = (torch.randn(n, 256, generator=generator) for n in (5000, 700))
    near, _ = nearest_neighbours(queries.double(), bank.double(), 20)
    similarity, index = nearest_neighbours(queries.numpy(), bank.numpy(), 20, chunk=999, query_chunk=300, device=device)
    assert similarity.device.type == device.type
    torch.testing.assert_close(similarity.cpu().double(), near, rtol=0, atol=1e-6)
    picked = torch.nn.functional.cosine_similarity(queries[:, None].double(), bank[index.cpu()].double(), dim=2)
    torch.testing.assert_close(picked, near, rtol=0, atol=1e-6)  # also where two are as near as rounding tells
    y, truth = (torch.randint(0, 7, (n,), generator=generator).numpy() for n in (5000, 700))
    parts = Features(bank.numpy(), y, ""), Features(queries.numpy(), truth, "")
    found = knn_accuracy(*parts, k=20, temperature=0.1)
    monkeypatch.setattr("common.features.pick_device", lambda: torch.device("cpu"))
    assert found == pytest.approx(knn_accuracy(*parts, k=20, temperature=0.1), abs=100 * 2 / 700)
