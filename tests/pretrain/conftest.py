"""What the tests of the room share: a working folder with a few images, and torch as it was."""

import pytest
import torch

from tests.pretrain.tiny import write_images


@pytest.fixture
def deterministic():
    """Leave torch as it was after runs with --deterministic."""
    cudnn = torch.backends.cudnn
    before = torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark
    yield
    torch.use_deterministic_algorithms(before[0])
    cudnn.deterministic, cudnn.benchmark = before[1:]


@pytest.fixture
def space(tmp_path, monkeypatch):
    """A working folder with a tiny ImageFolder as its data root."""
    write_images(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    return tmp_path
