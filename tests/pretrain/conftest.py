"""What the tests of the room share: a working folder with a few images, and torch as it was."""

import numpy as np
import pytest
import torch
from PIL import Image


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
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 3)):
        for k, name in enumerate("ab"):
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 128, (32, 32, 3), dtype=np.uint8) + np.uint8(100 * k)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path
