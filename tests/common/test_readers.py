"""The readers, on tiny copies of the official layouts: what they read, what they refuse, and in which words."""

import os
import re
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import loadmat, savemat

from common import embedded
from common.download import check
from common.errors import UserError
from common.images import ImageFiles
from common.readers import VOC_CLASSES, draw_caltech, read_voc
from common.sources import SOURCES, Source, read_splits
from tests.layouts import WRITERS

ELEVEN = list(WRITERS)
FILES = [name for name in ELEVEN if not name.startswith("cifar")]  # whose images are files


@pytest.fixture(scope="module")
def voc(tmp_path_factory):
    root = tmp_path_factory.mktemp("voc") / "demo"
    embedded.generate(root, scenes={"train": 12, "val": 6, "test": 8})
    return root / "VOCdevkit" / "VOC2007"


def test_voc_labels_are_the_flags(voc):
    train, val, test = (read_voc(voc, "scenes", embedded.CLASSES, s, "restore it") for s in ("train", "val", "test"))
    assert [len(images.labels) for images in (train, val, test)] == [12, 6, 8]
    assert test.labels.shape == (8, 10)
    flags = dict(line.split() for line in (voc / "ImageSets/Main/three_test.txt").read_text().splitlines())
    for path, row in zip(test.paths, test.labels, strict=True):
        assert row[3] == (flags[path[-10:-4]] == "1")
    assert test.image(0).size == (160, 160)


def test_difficult_only_is_negative(voc, tmp_path):
    main = tmp_path / "ImageSets" / "Main"
    main.mkdir(parents=True)
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        (main / "cat_test.txt").write_text("000001  1\n000002  0\n\n000003 -1\n", encoding=encoding)
        images = read_voc(tmp_path, "x", ["cat"], "test", "restore it")
        assert images.paths == [f"JPEGImages/00000{number}.jpg" for number in (1, 2, 3)]
        assert images.labels.tolist() == [[1], [0], [0]]


def test_voc_errors_name_the_file(voc, tmp_path):
    with pytest.raises(UserError, match=r"nowhere is missing; restore it"):
        read_voc(tmp_path / "nowhere", "voc2007", VOC_CLASSES, "train", "restore it")
    with pytest.raises(UserError, match=r"aeroplane_train\.txt is missing"):
        read_voc(voc, "voc2007", VOC_CLASSES, "train", "restore it")
    main = tmp_path / "ImageSets" / "Main"
    main.mkdir(parents=True)
    (main / "cat_train.txt").write_text("000001 yes\n")
    with pytest.raises(UserError, match=r"cat_train\.txt is not a list"):
        read_voc(tmp_path, "x", ["cat"], "train", "restore it")
    (main / "cat_train.txt").write_text("000001 1\n")
    (main / "dog_train.txt").write_text("000002 1\n")
    with pytest.raises(UserError, match=r"dog_train\.txt lists other images"):
        read_voc(tmp_path, "x", ["cat", "dog"], "train", "restore it")


def test_splits_with_other_classes(monkeypatch, voc):
    def read(data, split):
        return read_voc(voc, "x", embedded.CLASSES[:9] if split == "test" else embedded.CLASSES, split, "")

    monkeypatch.setitem(SOURCES, "x", Source("X", "x", reader=read, splits={"train": 12, "val": 6, "test": 8}))
    with pytest.raises(UserError, match="data set x: train and test differ in the classes nine; restore"):
        read_splits("x", voc)


@pytest.mark.parametrize("name", ELEVEN)
def test_a_tiny_copy_is_read(name, tiny, tmp_path, capsys):
    copy = tiny(name)
    splits = read_splits(name, tmp_path)
    *trainval, test = splits.values()
    assert [list(images.classes) for images in splits.values()] == [copy.classes] * len(splits)
    assert test.labels.tolist() == copy.test_labels
    assert [label for images in trainval for label in images.labels.tolist()] == copy.trainval_labels
    assert {images.labels.dtype for images in splits.values()} == {np.dtype(np.int64)}
    for images in splits.values():
        assert [images.image(k).mode for k in range(len(images.labels))] == ["RGB"] * len(images.labels)
    if name in FILES:
        paths = [images.root / path for images in splits.values() for path in images.paths]
        assert len(set(paths)) == len(paths)  # no image twice, none in two splits
        assert all(path.is_file() for path in paths)
        if copy.first:
            assert paths[0] == tmp_path / copy.first
    check(name, tmp_path)
    sizes = [f"{count} {split}" for split, count in SOURCES[name].splits.items()]
    line = f"{name}: {', '.join(sizes[:-1])} and {sizes[-1]} images of {len(copy.classes)} classes, as published"
    assert capsys.readouterr().out.strip() == line


def one_line(name, data):
    with pytest.raises(UserError) as caught:
        check(name, data)
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
    test = SOURCES[name].read(tmp_path, "test")
    path = test.root / test.paths[0]
    path.unlink()
    with pytest.raises(UserError, match=f"^image {re.escape(str(path))} is missing"):
        _ = test.fingerprint


@pytest.mark.parametrize("name", FILES)
def test_other_numbers_than_the_published_are_refused(name, tiny, tmp_path, monkeypatch):
    copy, source = tiny(name), SOURCES[name]
    sizes, other = tuple(source.splits.values()), {split: k for k, split in enumerate(source.splits)}
    monkeypatch.setitem(SOURCES, name, replace(source, splits=other))
    line = one_line(name, tmp_path)
    assert re.match(rf"data set {name} has {re.escape(str(sizes))} images in train.* and test, not \(0, 1.*\): ", line)
    assert line.endswith(f"`make data DATASET={name} DATA={tmp_path}`")
    monkeypatch.setitem(SOURCES, name, replace(source, classes=1000))
    assert one_line(name, tmp_path).startswith(f"data set {name} has {len(copy.classes)} classes, not 1000: ")


def test_a_list_without_the_official_md5_is_named(tiny, tmp_path):
    tiny("flowers")
    path = tmp_path / "flowers-102" / "setid.mat"
    path.write_bytes(b"?" + path.read_bytes()[1:])  # in the header, which is free text
    assert f"has a list {path} without the official MD5: it is not the published one; " in one_line("flowers", tmp_path)


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


ANNOTATED = {"train": "devkit/cars_train_annos.mat", "test": "cars_test_annos_withlabels.mat"}
BEYOND = [
    ("pets", "annotations/test.txt", "cat_2 0 1 1", "images/cat_2.jpg the label -1, beyond 0 to 0"),
    ("pets", "annotations/test.txt", "cat_2 1 1 1\ndog_2 99 1 1", "images/dog_2.jpg the label 98, beyond 0 to 1"),
    ("pets", "annotations/test.txt", "cat_2 1 1 1\ncat_3 2 1 1", "the class Cat has several labels"),
    ("cars", ANNOTATED["test"], ("annotations", "class", 9), "cars_test/00001.jpg the label 8, beyond 0 to 2"),
    ("cars", ANNOTATED["train"], ("annotations", "class", 0), "cars_train/00001.jpg the label -1, beyond 0 to 2"),
    ("cars", ANNOTATED["train"], ("annotations", "class", 1.5), "a label is not a whole number"),
    ("flowers", "imagelabels.mat", ("labels", 103), "jpg/image_00001.jpg the label 102, beyond 0 to 101"),
    ("flowers", "imagelabels.mat", ("labels", 0), "jpg/image_00001.jpg the label 255, beyond 0 to 101"),
    ("flowers", "setid.mat", ("trnid", 7), "the train list in {} is damaged (KeyError: 7)"),
    ("aircraft", "data/variants.txt", "A320\nA320\n737-700\nF/A-18", "the class A320 has several labels"),
    ("dtd", "dtd/labels/val1.txt", "zoo/a.jpg", "train and val differ in the classes banded, blotchy, zigzagged, zoo"),
    ("sun397", "ClassName.txt", "/a/abbey\n/a/abbey", "has /a/abbey twice"),
    ("sun397", "Testing_01.txt", "/a/abbey/\0.jpg", "abbey/\\x00.jpg' cannot be read ("),
    ("sun397", "Testing_01.txt", f"/a/abbey/{'x' * 999}", "xxx' cannot be read (File name too long)"),
]


@pytest.mark.parametrize(("name", "path", "content", "says"), BEYOND)
def test_a_label_or_name_beyond_the_data_set_is_named(name, path, content, says, tiny, tmp_path):
    tiny(name)
    root = tmp_path / SOURCES[name].folder
    if isinstance(content, str):
        (root / path).write_text(content)
    else:  # the first number of a .mat file
        arrays = {key: array for key, array in loadmat(root / path).items() if not key.startswith("__")}
        key, *field, value = content
        (arrays[key].flat[0] if field else arrays[key].flat)[field[0] if field else 0] = value
        savemat(root / path, arrays)
    with pytest.raises(UserError) as caught:
        [images.fingerprint for images in read_splits(name, tmp_path).values()]
    line = str(caught.value)
    assert len(line.splitlines()) == 1
    assert says.replace("{}", str(root)) in line
    assert str(root / path) in line or "the label " not in says


def test_cars_may_have_the_test_labels_in_devkit_as_upstream(tiny, tmp_path):
    copy = tiny("cars", devkit=True)
    assert SOURCES["cars"].read(tmp_path, "test").labels.tolist() == copy.test_labels


def test_every_reader_ignores_the_order_of_the_file_system(tiny, tmp_path, monkeypatch):
    """Whatever order a folder is listed in, the same images come in the same order."""
    for name in FILES:
        tiny(name)

    def fingerprints():
        return {name: [images.fingerprint for images in read_splits(name, tmp_path).values()] for name in FILES}

    before = fingerprints()
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
    assert fingerprints() == before


PICTURES = {
    "grayscale": lambda path: Image.new("L", (6, 4), 77).save(path, "JPEG"),
    "CMYK": lambda path: Image.new("CMYK", (6, 4), (0, 255, 255, 0)).save(path, "JPEG"),
    "palette": lambda path: Image.new("RGB", (6, 4), (10, 20, 30)).quantize(4).save(path, "PNG"),
    "transparent": lambda path: Image.new("RGBA", (6, 4), (10, 20, 30, 0)).save(path, "PNG"),
}


@pytest.mark.parametrize("name", FILES)
def test_every_kind_of_image_becomes_rgb(name, tiny, tmp_path):
    tiny(name)
    test = SOURCES[name].read(tmp_path, "test")
    path = test.root / test.paths[0]
    colours = {}
    for kind, save in PICTURES.items():
        save(path)  # a suffix may lie, as some do in Caltech-101 and Pets
        picture = test.image(0)
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


def test_upstreams_caltech_by_name(tiny, tmp_path):
    tiny("caltech101")
    train, test = read_splits("caltech101-sst", tmp_path).values()
    assert len(train.labels) == 9
    assert len(set(train.paths)) + len(test.paths) == 18


def test_multi_label_targets_come_from_the_flags(tiny, tmp_path):
    """Image 17 shows class 17, and class 18 with nothing but difficult objects: a negative."""
    tiny("voc2007")
    labels = SOURCES["voc2007"].read(tmp_path, "train").labels
    assert labels.shape == (2, 20)
    assert labels[1].tolist() == [int(k == 17) for k in range(20)]
