"""What the tests of the room share: a working folder with a few images."""

import pytest

from tests.pretrain.tiny import write_images


@pytest.fixture
def space(tmp_path, monkeypatch):
    """A working folder with a tiny ImageFolder as its data root."""
    write_images(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    return tmp_path
