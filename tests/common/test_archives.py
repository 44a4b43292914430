"""From the official archives to the readers: a tiny copy of every recognition data set that can be downloaded."""

import shutil

import pytest

from common import download
from common.download import provide
from common.sources import SOURCES, read_splits
from tests.layouts import WRITERS

# For each official archive the folder, relative to the data root, to pack from, and what to pack there.
MEMBERS = {
    "fgvc-aircraft-2013b.tar.gz": (".", "fgvc-aircraft-2013b"),
    "101_ObjectCategories.tar.gz": ("caltech101", "101_ObjectCategories"),
    "cifar-10-python.tar.gz": (".", "cifar-10-batches-py"),
    "cifar-100-python.tar.gz": (".", "cifar-100-python"),
    "dtd-r1.0.1.tar.gz": ("dtd", "dtd"),
    "102flowers.tgz": ("flowers-102", "jpg"),
    "food-101.tar.gz": (".", "food-101"),
    "images.tar.gz": ("oxford-iiit-pet", "images"),
    "annotations.tar.gz": ("oxford-iiit-pet", "annotations"),
    "SUN397.tar.gz": (".", "SUN397"),
    "VOCtrainval_06-Nov-2007.tar": (".", "VOCdevkit"),
    "VOCtest_06-Nov-2007.tar": (".", "VOCdevkit"),
}
PARTITIONS = ("Training_01.txt", "Testing_01.txt")


def pack(archive, base, member):
    """Pack a folder into `archive`, whose suffix gives the format."""
    kind = {".tgz": "gztar", ".gz": "gztar", ".tar": "tar", ".zip": "zip"}[archive.suffix]
    made = shutil.make_archive(str(archive.parent / "made"), kind, base, member)
    shutil.move(made, archive)


def put(archive, data):
    """Make the official file `archive` from the copy under `data`."""
    if archive.name == "caltech-101.zip":
        inner = archive.parent / "caltech-101"
        inner.mkdir()
        put(inner / "101_ObjectCategories.tar.gz", data)
        pack(archive, archive.parent, "caltech-101")
        shutil.rmtree(inner)
    elif archive.name == "Partitions.zip":
        lists = archive.parent / "lists"
        lists.mkdir()
        for name in PARTITIONS:
            (data / "SUN397" / name).rename(lists / name)
        pack(archive, lists, ".")
        shutil.rmtree(lists)
    elif archive.suffix == ".mat":
        shutil.copy(data / "flowers-102" / archive.name, archive)
    else:
        base, member = MEMBERS[archive.name]
        pack(archive, data / base, member)


@pytest.mark.parametrize("name", [name for name in WRITERS if SOURCES[name].archives])
def test_the_official_archives_become_what_is_read(name, tiny, tmp_path, monkeypatch):
    tiny(name)
    before = {split: images.fingerprint for split, images in read_splits(name, tmp_path).items()}
    folder = tmp_path / SOURCES[name].folder
    place = tmp_path / "downloads" / name
    place.mkdir(parents=True)
    for file in sorted(SOURCES[name].files(), key=lambda file: file.name != "Partitions.zip"):  # takes its lists first
        put(place / file.name, tmp_path)
    shutil.rmtree(folder)
    monkeypatch.setattr(download, "_verify", lambda *args: None)
    provide(name, tmp_path)
    assert {split: images.fingerprint for split, images in read_splits(name, tmp_path).items()} == before
    assert sorted(f.name for f in tmp_path.iterdir() if f.name.startswith(".")) == []
