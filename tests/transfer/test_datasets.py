import json
import os
import re
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common import embedded
from common.download import SOURCES
from common.errors import UserError
from common.images import ImageFiles
from tests.transfer.layouts import WRITERS
from transfer import datasets
from transfer.datasets import (
    DATASETS,
    PAPER,
    Spec,
    draw_caltech,
    fifth,
    known,
    load,
    read_split,
    read_voc,
    suite,
)
from transfer.metrics import METRICS

ELEVEN = list(WRITERS)
FILES = [name for name in ELEVEN if not name.startswith("cifar")]  # whose images are files


@pytest.mark.parametrize("n", [5, 9, 1437, 3680])
def test_a_fifth_is_upstreams_split_and_leaves_the_global_generator_alone(n):
    indices = list(range(n))
    np.random.seed(0)
    np.random.shuffle(indices)
    state = np.random.get_state()[1].copy()
    assert fifth(n).tolist() == indices[: int(np.floor(0.2 * n))]
    assert (np.random.get_state()[1] == state).all()


@pytest.fixture(scope="module")
def voc(tmp_path_factory):
    root = tmp_path_factory.mktemp("voc") / "demo"
    embedded.generate(root, scenes={"train": 12, "val": 6, "test": 8})
    return root / "VOCdevkit" / "VOC2007"


def test_voc_labels_are_the_flags(voc):
    found = read_voc(voc, "scenes", embedded.CLASSES, "restore it")
    assert len(found.both.labels) == 18
    assert found.val.tolist() == list(range(12, 18))
    assert found.train.tolist() == list(range(12))
    assert found.test.labels.shape == (8, 10)
    flags = dict(line.split() for line in (voc / "ImageSets/Main/three_test.txt").read_text().splitlines())
    for path, row in zip(found.test.paths, found.test.labels, strict=True):
        assert row[3] == (flags[path[-10:-4]] == "1")
    assert found.both.image(0).size == (160, 160)


def test_difficult_only_is_negative(voc, tmp_path):
    main = tmp_path / "ImageSets" / "Main"
    main.mkdir(parents=True)
    for split in ("train", "val", "test"):
        (main / f"cat_{split}.txt").write_text("000001  1\n000002  0\n000003 -1\n")
    assert read_voc(tmp_path, "x", ["cat"], "restore it").test.labels.tolist() == [[1], [0], [0]]


def test_voc_errors_name_the_file(voc, tmp_path):
    with pytest.raises(UserError, match=r"nowhere is missing; restore it"):
        read_voc(tmp_path / "nowhere", "voc2007", datasets.VOC_CLASSES, "restore it")
    with pytest.raises(UserError, match=r"aeroplane_train\.txt is missing"):
        read_voc(voc, "voc2007", datasets.VOC_CLASSES, "restore it")
    main = tmp_path / "ImageSets" / "Main"
    main.mkdir(parents=True)
    (main / "cat_train.txt").write_text("000001 yes\n")
    with pytest.raises(UserError, match=r"cat_train\.txt is no list"):
        read_voc(tmp_path, "x", ["cat"], "restore it")
    (main / "cat_train.txt").write_text("000001 1\n")
    (main / "dog_train.txt").write_text("000002 1\n")
    with pytest.raises(UserError, match=r"dog_train\.txt lists other images"):
        read_voc(tmp_path, "x", ["cat", "dog"], "restore it")


def test_voc2007_must_have_its_published_size(voc, monkeypatch):
    spec = Spec(lambda data: read_voc(voc, "voc2007", embedded.CLASSES, ""), "mAP11", sizes=DATASETS["voc2007"].sizes)
    monkeypatch.setitem(DATASETS, "voc2007", spec)
    with pytest.raises(UserError, match=r"\(12, 6, 8\) images in train, val and test, not \(2501, 2510, 4952\)"):
        load("voc2007", voc)
    assert len(datasets.VOC_CLASSES) == 20


def test_train_and_test_with_other_classes(monkeypatch, voc):
    def read(data):
        found = read_voc(voc, "x", embedded.CLASSES, "")
        return datasets.Recognition(found.both, found.val, read_voc(voc, "x", embedded.CLASSES[:9], "").test)

    monkeypatch.setitem(DATASETS, "x", Spec(read, "mAP11"))
    with pytest.raises(UserError, match="differ in the classes nine"):
        load("x", voc)


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
    specs = {name: DATASETS[name] for name in known("imagenet")}
    assert {n: (s.classes, s.metric, sum(s.sizes[:2]), s.sizes[2]) for n, s in specs.items()} == published
    for name, spec in specs.items():
        assert spec.metric in METRICS
        if name not in ("aircraft", "dtd", "flowers", "voc2007"):
            assert spec.sizes[1] == len(fifth(sum(spec.sizes[:2])))
    assert set(ELEVEN) <= set(SOURCES)


@pytest.mark.parametrize("name", ELEVEN)
def test_a_tiny_copy_is_read(name, tiny, tmp_path, capsys):
    copy = tiny(name)
    found = load(name, tmp_path)
    assert list(found.both.classes) == list(found.test.classes) == copy.classes
    assert (len(found.train), len(found.val), len(found.test.labels)) == copy.sizes
    assert found.test.labels.tolist() == copy.test_labels
    assert found.both.labels.tolist() == copy.trainval_labels
    assert found.both.labels.dtype == found.test.labels.dtype == np.int64
    assert set(found.train) | set(found.val) == set(range(len(found.both.labels)))
    assert not set(found.train) & set(found.val)
    if name in ("aircraft", "dtd", "flowers", "voc2007"):
        assert found.val.tolist() == list(range(copy.sizes[0], sum(copy.sizes[:2])))  # predefined: train, then val
    else:
        assert found.val.tolist() == fifth(sum(copy.sizes[:2])).tolist()
    for images in (found.both, found.test):
        assert [images.image(k).mode for k in range(len(images.labels))] == ["RGB"] * len(images.labels)
    if name in FILES:
        paths = [images.root / path for images in (found.both, found.test) for path in images.paths]
        assert len(set(paths)) == len(paths)  # no image twice, none in train and test
        assert all(path.is_file() for path in paths)
        if copy.first:
            assert paths[0] == tmp_path / copy.first
    datasets.main(["--dataset", name, "--data", str(tmp_path)])
    train, val, test = copy.sizes
    line = f"{name}: {train} train, {val} val and {test} test images of {len(copy.classes)} classes, as published"
    assert capsys.readouterr().out.strip() == line


def one_line(name, data):
    with pytest.raises(UserError) as caught:
        load(name, data)
    line = str(caught.value)
    assert "\n" not in line
    return line


@pytest.mark.parametrize("name", ELEVEN)
def test_what_is_missing_is_named_with_the_remedy(name, tiny, tmp_path):
    copy = tiny(name)
    folder = tmp_path / SOURCES[name].folder
    for need in copy.needs:
        hidden = (tmp_path / need).rename(tmp_path / "hidden")
        line = one_line(name, tmp_path)
        assert str(tmp_path / need) in line
        away = f"move {folder} away and " if folder.exists() and name != "cars" else ""
        if "_01.txt" in need:
            assert line.endswith("; unpack the official Partitions.zip there")
        else:
            assert line.endswith(f"; {away}run `make data DATASET={name} DATA={tmp_path}`")
        hidden.rename(tmp_path / need)
    shutil.rmtree(folder)
    assert one_line(name, tmp_path).endswith(f"is missing; run `make data DATASET={name} DATA={tmp_path}`")


def test_the_default_data_root_needs_no_mention(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert one_line("dtd", Path("data")).endswith("; run `make data DATASET=dtd`")


@pytest.mark.parametrize("name", FILES)
def test_a_missing_image_is_named(name, tiny, tmp_path):
    tiny(name)
    found = load(name, tmp_path)
    path = found.test.root / found.test.paths[0]
    path.unlink()
    with pytest.raises(UserError, match=f"^image {re.escape(str(path))} is missing"):
        _ = found.test.fingerprint


@pytest.mark.parametrize("name", FILES)
def test_other_numbers_than_the_published_are_refused(name, tiny, tmp_path, monkeypatch):
    copy = tiny(name)
    monkeypatch.setitem(DATASETS, name, replace(DATASETS[name], sizes=(1, 2, 3)))
    line = one_line(name, tmp_path)
    assert line.startswith(f"data set {name} has {copy.sizes} images in train, val and test, not (1, 2, 3): ")
    monkeypatch.setitem(DATASETS, name, replace(DATASETS[name], classes=1000))
    assert one_line(name, tmp_path).startswith(f"data set {name} has {len(copy.classes)} classes, not 1000: ")


DAMAGE = [
    ("aircraft", "fgvc-aircraft-2013b/data/images_variant_val.txt", b"0000004 Concorde\n"),
    ("aircraft", "fgvc-aircraft-2013b/data/images_variant_val.txt", b"0000004\n"),
    ("cars", "stanford_cars/cars_test_annos_withlabels.mat", b"MATLAB 5.0"),
    ("cars", "stanford_cars/devkit/cars_meta.mat", b""),
    ("dtd", "dtd/dtd/labels/train1.txt", b"banded\n"),
    ("flowers", "flowers-102/setid.mat", b"x"),
    ("food", "food-101/meta/test.json", b"{"),
    ("food", "food-101/meta/test.json", b"[1]"),
    ("pets", "oxford-iiit-pet/annotations/test.txt", b"Abyssinian_2 one 1 1\n"),
    ("sun397", "SUN397/Training_01.txt", b"/z/zoo/sun_a.jpg\n"),
    ("sun397", "SUN397/Training_01.txt", b"\xff\xfe\x00"),
    ("voc2007", "VOCdevkit/VOC2007/ImageSets/Main/cat_val.txt", b"000009 2\n"),
    ("voc2007", "VOCdevkit/VOC2007/ImageSets/Main/cat_val.txt", b""),
]


@pytest.mark.parametrize(("name", "path", "content"), DAMAGE)
def test_a_damaged_list_is_one_line(name, path, content, tiny, tmp_path):
    tiny(name)
    (tmp_path / path).write_bytes(content)
    line = one_line(name, tmp_path)
    assert str(tmp_path / SOURCES[name].folder) in line
    assert "; " in line  # the remedy


def test_cars_may_have_the_test_labels_in_devkit_as_upstream(tiny, tmp_path):
    copy = tiny("cars", devkit=True)
    assert load("cars", tmp_path).test.labels.tolist() == copy.test_labels


def test_every_reader_ignores_the_order_of_the_file_system(tiny, tmp_path, monkeypatch):
    """Whatever order a folder is listed in, the same images come in the same order."""
    for name in FILES:
        tiny(name)
    before = {name: (found := load(name, tmp_path), found.both.fingerprint, found.test.fingerprint) for name in FILES}
    listed, scanned = os.listdir, os.scandir

    class Backwards:
        def __init__(self, path="."):
            with scanned(path) as entries:
                self.entries = sorted(entries, key=lambda entry: entry.name, reverse=True)

        def __enter__(self):
            return iter(self.entries)

        def __exit__(self, *args):
            pass

        def __iter__(self):
            return iter(self.entries)

    monkeypatch.setattr(os, "listdir", lambda path=".": sorted(listed(path), reverse=True))
    monkeypatch.setattr(os, "scandir", Backwards)
    for name, (found, *fingerprints) in before.items():
        again = load(name, tmp_path)
        assert again.val.tolist() == found.val.tolist(), name
        assert [again.both.fingerprint, again.test.fingerprint] == fingerprints, name


PICTURES = {
    "grayscale": lambda path: Image.new("L", (6, 4), 77).save(path, "JPEG"),
    "CMYK": lambda path: Image.new("CMYK", (6, 4), (0, 255, 255, 0)).save(path, "JPEG"),
    "palette": lambda path: Image.new("RGB", (6, 4), (10, 20, 30)).quantize(4).save(path, "PNG"),
    "transparent": lambda path: Image.new("RGBA", (6, 4), (10, 20, 30, 0)).save(path, "PNG"),
}


@pytest.mark.parametrize("name", FILES)
def test_every_kind_of_image_becomes_rgb(name, tiny, tmp_path):
    tiny(name)
    found = load(name, tmp_path)
    path = found.test.root / found.test.paths[0]
    colours = {}
    for kind, save in PICTURES.items():
        save(path)  # a suffix may lie, as some do in Caltech-101 and Pets
        picture = load(name, tmp_path).test.image(0)
        assert (picture.mode, picture.size) == ("RGB", (6, 4))
        colours[kind] = picture.getpixel((1, 1))
    assert colours["grayscale"] == (77, 77, 77)
    assert colours["palette"] == colours["transparent"] == (10, 20, 30)
    assert colours["CMYK"][0] > 200 > 60 > colours["CMYK"][1]  # red; JPEG is not exact


def caltech(counts):
    paths = [f"c{label}/image_{k + 1:04d}.jpg" for label, n in enumerate(counts) for k in range(n)]
    labels = np.repeat(np.arange(len(counts)), counts)
    return ImageFiles("caltech101", Path("/nowhere"), paths, labels, [f"c{label}" for label in range(len(counts))])


# The first classes of Caltech-101: BACKGROUND_Google, Faces, Faces_easy, Leopards, Motorbikes, accordion.
COUNTS = [467, 435, 435, 200, 798, 55]


def test_caltech_is_drawn_without_replacement():
    images = caltech(COUNTS)
    state = np.random.get_state()[1].copy()
    split = draw_caltech(images)
    assert (np.random.get_state()[1] == state).all()
    assert Counter(path.split("/")[0] for path in split["train"]) == {f"c{k}": 30 for k in range(6)}
    assert len(set(split["train"])) == 180
    assert sorted(split["train"] + split["test"]) == images.paths
    assert split["train"] == sorted(split["train"])
    assert split == draw_caltech(images)
    # The stream of the legacy generator is frozen: these are the lists for ever.
    assert [int(path[-8:-4]) for path in split["train"][:6]] == [11, 13, 16, 22, 91, 101]


def test_upstreams_caltech_is_its_published_list():
    """Classes 0, 3 and 5 as `caltech101-splits/train.txt` of ssl-transfer lists them, repeats left out."""
    images = caltech(COUNTS)
    split = draw_caltech(images, upstream=True)
    drawn = {k: sorted({int(p[-8:-4]) for p in split["train"] if p.startswith(f"c{k}/")}) for k in range(6)}
    assert drawn[0] == [
        *(10, 26, 40, 48, 71, 73, 88, 89, 118, 166, 173, 175, 193, 194),
        *(196, 212, 243, 252, 266, 278, 293, 315, 324, 334, 338, 360, 397, 405),
    ]
    assert drawn[3] == [
        *(1, 7, 24, 37, 48, 49, 50, 69, 70, 79, 85, 86, 95, 96, 101),
        *(114, 118, 128, 132, 142, 144, 149, 164, 170, 179, 181, 187, 193, 197, 198),
    ]
    assert drawn[5] == [1, 3, 4, 9, 12, 14, 17, 20, 23, 25, 31, 32, 33, 35, 39, 41, 43, 44, 47, 49, 52, 55]
    assert len(split["train"]) == 180  # repeats count
    assert set(split["test"]) == set(images.paths) - set(split["train"])


def test_upstreams_caltech_by_name(tiny, tmp_path, monkeypatch):
    tiny("caltech101")
    monkeypatch.setitem(DATASETS, "caltech101-sst", replace(DATASETS["caltech101-sst"], classes=3, sizes=None))
    found = load("caltech101-sst", tmp_path)
    assert len(found.both.labels) == 9
    assert len(set(found.both.paths)) + len(found.test.paths) == 18


def test_a_split_of_the_user_s(tiny, tmp_path):
    tiny("caltech101")
    lists = {
        "train": [f"{c}/image_000{k}.jpg" for c in ("Faces", "accordion", "BACKGROUND_Google") for k in (2, 1)],
        "test": ["accordion/image_0003.jpg", "Faces/image_0007.jpg"],
    }
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(lists))
    found = load("caltech101", tmp_path, path)
    assert found.both.paths == lists["train"]
    assert found.test.paths == lists["test"]
    assert found.both.labels.tolist() == [1, 1, 2, 2, 0, 0]
    assert found.val.tolist() == fifth(6).tolist()
    path.write_text(json.dumps(lists | {"test": ["Faces/image_0008.jpg"]}))
    with pytest.raises(UserError, match=r"Faces/image_0008\.jpg of the test list is missing; restore it or correct"):
        load("caltech101", tmp_path, path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read (No such file or directory); correct the path"),
        ("{", "is no JSON"),
        ("[]", 'is not {"train": [paths], "test": [paths]}; correct it'),
        ('{"train": ["a"]}', "is not {"),
        ('{"train": ["a"], "test": []}', "is not {"),
        ('{"train": ["a"], "test": [1]}', "is not {"),
        ('{"train": ["a"], "test": "b"}', "is not {"),
        ('{"train": ["a", "b"], "test": ["b"]}', "has b in train and in test; remove it from one"),
    ],
)
def test_a_split_file_that_does_not_fit(tmp_path, content, message):
    path = tmp_path / "split.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError) as caught:
        read_split(path)
    assert str(caught.value).startswith(f"--split-file {path} {message}")


def test_multi_label_targets_come_from_the_flags(tiny, tmp_path):
    """Image 17 shows class 17, and class 18 with nothing but difficult objects: a negative."""
    tiny("voc2007")
    labels = load("voc2007", tmp_path).both.labels
    assert labels.shape == (3, 20)
    assert labels[1].tolist() == [int(k == 17) for k in range(20)]
