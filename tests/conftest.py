"""The device of the tests marked `gpu`: CUDA, or what GSG_TEST_DEVICE names (`make gpu-check DEVICE=cpu`)."""

import os
from unittest.mock import patch

import pytest

from common.sources import SOURCES


@pytest.fixture(autouse=True)
def _sources():
    """Forget the data sets that a command adds for a folder of the user's."""
    with patch.dict(SOURCES):
        yield


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") is None or "GSG_TEST_DEVICE" in os.environ:
        return
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here; `make gpu-check DEVICE=cpu` rehearses the tests marked gpu")


@pytest.fixture
def device():
    """The torch.device on which a test marked `gpu` compares with the CPU; TF32 is off."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    return torch.device(os.environ.get("GSG_TEST_DEVICE", "cuda"))
