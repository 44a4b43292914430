"""The tiny copies on disk, with the published numbers replaced by theirs."""

import hashlib
from dataclasses import replace

import pytest

from tests.transfer import layouts
from transfer import datasets
from transfer.datasets import DATASETS


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Return a function that writes the copy of a data set under tmp_path and declares it the published one."""

    def make(name, **options):
        copy = layouts.WRITERS[name](tmp_path, **options)
        monkeypatch.setitem(DATASETS, name, replace(DATASETS[name], classes=len(copy.classes), sizes=copy.sizes))
        if name == "flowers":
            declare_flowers(tmp_path, monkeypatch)
        if name == "caltech101":
            monkeypatch.setattr(datasets, "CALTECH_PER_CLASS", 3)
        return copy

    return make


def declare_flowers(data, monkeypatch):
    """Make the MD5 that torchvision knows those of the files on disk."""
    from torchvision.datasets import Flowers102

    for key, (name, _) in list(Flowers102._file_dict.items()):
        if key != "image":
            content = (data / "flowers-102" / name).read_bytes()
            found = hashlib.md5(content, usedforsecurity=False).hexdigest()
            monkeypatch.setitem(Flowers102._file_dict, key, (name, found))
