"""The table of data sets: every entry has all its facts, and the published ones."""

import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest
import torchvision.datasets

from common.readers import VOC_CLASSES
from common.sources import PAPER, SOURCES, known, make_data, remedy, suite
from tests.layouts import WRITERS
from transfer.metrics import METRICS

ELEVEN = list(WRITERS)


@pytest.mark.parametrize("name", SOURCES)
def test_an_entry_has_all_its_facts(name):
    source = SOURCES[name]
    assert source.title
    assert source.folder
    assert sum(map(bool, (source.archives, source.manual, source.embedded, source.parts))) >= 1
    assert set(source.parts) <= set(SOURCES)
    assert bool(source.reader) == bool(source.splits)
    assert source.reader or source.counts or source.parts
    for function in filter(None, (source.reader, source.unpack)):
        assert callable(pkgutil.resolve_name(function))
    if source.reader:
        assert list(source.splits)[-1] == "test"
        assert source.classes > 1
    if source.profiles:
        assert source.metric in METRICS
        assert source.origin
        assert source.origin.endswith("; val: 20 % of train") == (len(source.splits) == 2)


@pytest.mark.parametrize("name", [name for name, source in SOURCES.items() if source.archives])
def test_every_download_has_an_address_and_a_checksum(name):
    files = SOURCES[name].files()
    assert files == list(SOURCES[name].archives(torchvision.datasets))
    assert len({file.name for file in files}) == len(files) > 0
    for file in files:
        assert file.url.startswith(("http://", "https://"))
        assert len(file.md5) == 32


def test_importing_the_table_costs_nothing():
    code = "import sys, common.sources, analysis.names; print({'torch', 'numpy', 'PIL'} & {*sys.modules})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_profiles_know_their_data_sets():
    assert known("demo") == suite("demo") == ["digits", "scenes"]
    for profile in PAPER:
        assert suite(profile) == ELEVEN
        assert set(known(profile)) == {*ELEVEN, "caltech101-sst"}


def test_the_table_is_the_papers():
    """Classes and the sizes of train + val and test, as PROTOCOLS 4.1 has them."""
    published = {
        "aircraft": (100, "mean_per_class_accuracy", 6_667, 3_333),
        "caltech101": (102, "mean_per_class_accuracy", 3_060, 6_084),
        "caltech101-sst": (102, "mean_per_class_accuracy", 3_060, 6_728),
        "cars": (196, "accuracy", 8_144, 8_041),
        "cifar10": (10, "accuracy", 50_000, 10_000),
        "cifar100": (100, "accuracy", 50_000, 10_000),
        "dtd": (47, "accuracy", 3_760, 1_880),
        "flowers": (102, "mean_per_class_accuracy", 2_040, 6_149),
        "food": (101, "accuracy", 75_750, 25_250),
        "pets": (37, "mean_per_class_accuracy", 3_680, 3_669),
        "sun397": (397, "accuracy", 19_850, 19_850),
        "voc2007": (20, "mAP11", 5_011, 4_952),
    }
    sources = {name: SOURCES[name] for name in known("imagenet")}
    for name, source in sources.items():
        *trainval, test = source.splits.values()
        assert (source.classes, source.metric, sum(trainval), test) == published.pop(name)
    assert published == {}
    assert len(VOC_CLASSES) == 20
    predefined = {n: tuple(s.splits.values())[:2] for n, s in sources.items() if len(s.splits) == 3}
    assert predefined == {
        "aircraft": (3_334, 3_333),
        "dtd": (1_880, 1_880),
        "flowers": (1_020, 1_020),
        "voc2007": (2_501, 2_510),
    }


def test_a_missing_data_set_is_made_by_its_name(tmp_path):
    assert make_data("dtd", Path("data")) == "run `make data DATASET=dtd`"
    assert make_data("dtd", Path("/my data")) == "run `make data DATASET=dtd DATA='/my data'`"
    assert make_data("dtd", Path("data"), tmp_path / "dtd") == "run `make data DATASET=dtd`"
    assert make_data("dtd", Path("data"), tmp_path) == f"move {tmp_path} away and run `make data DATASET=dtd`"
    for name in ("dtd", "stanford_cars"):
        (tmp_path / name).mkdir()
    assert remedy("dtd", tmp_path) == make_data("dtd", tmp_path, tmp_path / "dtd")
    assert remedy("cars", tmp_path) == make_data("cars", tmp_path)  # which the user placed
    assert remedy("scenes", tmp_path) == f"delete {tmp_path / 'demo'} and run the command again"
