"""Tiny copies of the eleven recognition data sets as the official archives unpack, and what must be read from each."""

import json
import pickle
from dataclasses import dataclass, replace

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from torchvision.datasets import Flowers102

from common import readers, sources
from common.sources import SOURCES


@dataclass(frozen=True)
class Tiny:
    """What a copy holds: classes in the order of their labels, sizes of train, val and test, labels of test."""

    classes: list
    sizes: tuple
    test_labels: list
    first: str  # path of the first image of train + val, relative to the data root
    needs: tuple  # files and folders, relative to the data root, without which nothing can be read
    trainval_labels: list


def image(path, seed=0, size=(10, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8)).save(path)


def text(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def aircraft(data):
    root = data / "fgvc-aircraft-2013b" / "data"
    variants = ["737-700", "A320", "F/A-18"]
    splits = {"train": [("0000009", "A320"), ("0000001", "F/A-18")], "val": [("0000004", "737-700")]}
    splits["test"] = [("0000002", "F/A-18"), ("0000003", "737-700"), ("0000007", "A320")]
    text(root / "variants.txt", variants)
    for split, rows in splits.items():
        text(root / f"images_variant_{split}.txt", [" ".join(row) for row in rows])
        for number, (stem, _) in enumerate(rows):
            image(root / "images" / f"{stem}.jpg", number)
    base = "fgvc-aircraft-2013b/data"
    needs = ("images", "variants.txt", "images_variant_train.txt", "images_variant_val.txt", "images_variant_test.txt")
    return Tiny(
        variants, (2, 1, 3), [2, 0, 1], f"{base}/images/0000009.jpg", tuple(f"{base}/{n}" for n in needs), [1, 2, 0]
    )


def caltech101(data):
    """Three classes of 5, 6 and 7 images, written in random order, and a stray file, as in the archive."""
    root = data / "caltech101" / "101_ObjectCategories"
    counts = {"accordion": 6, "BACKGROUND_Google": 5, "Faces": 7}
    for name, count in counts.items():
        for k in np.random.default_rng(1).permutation(count):
            image(root / name / f"image_{k + 1:04d}.jpg", k)
    (root / "BACKGROUND_Google" / "tmp").touch()
    classes = ["BACKGROUND_Google", "Faces", "accordion"]
    # With 3 per class for training: 9, of which one is val.
    folder = "caltech101/101_ObjectCategories"
    return Tiny(classes, (8, 1, 9), [0, 0, 1, 1, 1, 1, 2, 2, 2], "", (folder,), [0] * 3 + [1] * 3 + [2] * 3)


def cars(data, devkit=False):
    root = data / "stanford_cars"
    classes = ["AM General Hummer SUV 2000", "Acura RL Sedan 2012", "smart fortwo Convertible 2012"]
    (root / "devkit").mkdir(parents=True)
    savemat(root / "devkit" / "cars_meta.mat", {"class_names": np.array([classes], dtype=object)})
    kind = [("bbox_x1", int), ("class", int), ("fname", object)]
    labels = {"train": [3, 1, 2, 1, 3], "test": [2, 3, 1, 1]}
    places = {"train": "devkit/cars_train_annos.mat", "test": "cars_test_annos_withlabels.mat"}
    if devkit:
        places["test"] = f"devkit/{places['test']}"
    for split, values in labels.items():
        rows = [(7, value, f"{k:05d}.jpg") for k, value in enumerate(values, start=1)]
        savemat(root / places[split], {"annotations": np.array([rows], dtype=kind)})
        for k, row in enumerate(rows):
            image(root / f"cars_{split}" / row[2], k)
    needs = ("cars_train", "cars_test", "devkit/cars_meta.mat", *places.values())
    needs = tuple(f"stanford_cars/{need}" for need in needs)
    return Tiny(classes, (4, 1, 4), [1, 2, 0, 0], "stanford_cars/cars_train/00001.jpg", needs, [2, 0, 1, 0, 2])


def cifar(data, folder, files, meta, key, names, classes):
    (data / folder).mkdir(parents=True)
    (data / folder / meta).write_bytes(pickle.dumps({names: classes}))
    for name, labels in files.items():
        pixels = np.random.default_rng(0).integers(0, 256, (len(labels), 3072), np.uint8)
        (data / folder / name).write_bytes(pickle.dumps({"data": pixels, key: labels}))
    return tuple(f"{folder}/{name}" for name in (*files, meta))


def cifar10(data):
    classes = "airplane automobile bird cat deer dog frog horse ship truck".split()
    files = {f"data_batch_{k}": [k] for k in range(1, 6)} | {"test_batch": [9, 0]}
    needs = cifar(data, "cifar-10-batches-py", files, "batches.meta", "labels", "label_names", classes)
    return Tiny(classes, (4, 1, 2), [9, 0], "", needs, [1, 2, 3, 4, 5])


def cifar10_binary(data, per_file=8):
    """Write the official "binary version" with so many images of noise per file."""
    folder = data / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    (folder / "batches.meta.txt").write_text("".join(f"class{k}\n" for k in range(10)))
    rng = np.random.default_rng(0)
    for name in (*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"):
        labels = np.arange(per_file, dtype=np.uint8)[:, None] % 10
        records = np.concatenate([labels, rng.integers(0, 256, (per_file, 3072), dtype=np.uint8)], axis=1)
        (folder / f"{name}.bin").write_bytes(records.tobytes())


def cifar100(data):
    classes = [f"class {k}" for k in range(100)]
    files = {"train": [0, 99, 7, 8, 9], "test": [42, 1]}
    needs = cifar(data, "cifar-100-python", files, "meta", "fine_labels", "fine_label_names", classes)
    return Tiny(classes, (4, 1, 2), [42, 1], "", needs, [0, 99, 7, 8, 9])


def dtd(data):
    root = data / "dtd" / "dtd"
    classes = ["banded", "blotchy", "zigzagged"]
    for number, split in enumerate(("train", "val", "test")):
        names = [f"{c}/{c}_{k:04d}.jpg" for c in reversed(classes) for k in (2 * number, 2 * number + 1)]
        text(root / "labels" / f"{split}1.txt", names)
        text(root / "labels" / f"{split}2.txt", names[:1])
        for k, name in enumerate(names):
            image(root / "images" / name, k)
    labels = [2, 2, 1, 1, 0, 0]
    needs = ("dtd/dtd/images", *(f"dtd/dtd/labels/{split}1.txt" for split in ("train", "val", "test")))
    return Tiny(classes, (6, 6, 6), labels, "dtd/dtd/images/zigzagged/zigzagged_0000.jpg", needs, labels * 2)


def flowers(data):
    """The labels and ids count from 1; the names are torchvision's own. `declare_flowers` declares the MD5."""
    root = data / "flowers-102"
    labels = [77, 1, 102, 1, 77, 3]
    for k in range(len(labels)):
        image(root / "jpg" / f"image_{k + 1:05d}.jpg", k)
    savemat(root / "imagelabels.mat", {"labels": np.array([labels], np.uint8)})
    ids = {"trnid": [6, 2], "valid": [1, 3], "tstid": [5, 4]}
    savemat(root / "setid.mat", {key: np.array([value], np.uint16) for key, value in ids.items()})
    needs = tuple(f"flowers-102/{name}" for name in ("jpg", "imagelabels.mat", "setid.mat"))
    first = "flowers-102/jpg/image_00006.jpg"
    return Tiny(Flowers102.classes, (2, 2, 2), [76, 0], first, needs, [2, 0, 76, 101])


def food(data):
    """The classes are not sorted in the official JSON; they are read class by class, as upstream does."""
    root = data / "food-101"
    train = {"waffles": ["waffles/9", "waffles/3"], "apple_pie": ["apple_pie/8"], "pho": ["pho/1", "pho/2"]}
    test = {"pho": ["pho/7"], "waffles": ["waffles/5"], "apple_pie": ["apple_pie/6"]}
    (root / "meta").mkdir(parents=True)
    for split, lists in (("train", train), ("test", test)):
        (root / "meta" / f"{split}.json").write_text(json.dumps(lists))
        for names in lists.values():
            for name in names:
                image(root / "images" / f"{name}.jpg", int(name[-1]))
    text(root / "meta" / "classes.txt", ["apple_pie", "pho", "waffles"])
    needs = tuple(f"food-101/{name}" for name in ("images", "meta/train.json", "meta/test.json"))
    first = "food-101/images/apple_pie/8.jpg"
    return Tiny(["apple_pie", "pho", "waffles"], (4, 1, 3), [0, 1, 2], first, needs, [0, 1, 1, 2, 2])


def pets(data):
    """Lines hold image, class from 1, species and breed. Classes are named after the images, ignoring case."""
    root = data / "oxford-iiit-pet"
    splits = {
        "trainval": ["Abyssinian_100 1 1 1", "yorkshire_terrier_9 3 2 25", "american_bulldog_1 2 2 1"],
        "test": ["american_bulldog_7 2 2 1", "Abyssinian_2 1 1 1", "yorkshire_terrier_1 3 2 25"],
    }
    splits["trainval"] += ["Abyssinian_101 1 1 1", "yorkshire_terrier_8 3 2 25"]
    for split, lines in splits.items():
        text(root / "annotations" / f"{split}.txt", lines)
        for k, line in enumerate(lines):
            image(root / "images" / f"{line.split()[0]}.jpg", k)
    classes = ["Abyssinian", "American Bulldog", "Yorkshire Terrier"]
    needs = ("images", "annotations/trainval.txt", "annotations/test.txt")
    needs = tuple(f"oxford-iiit-pet/{need}" for need in needs)
    first = "oxford-iiit-pet/images/Abyssinian_100.jpg"
    return Tiny(classes, (4, 1, 3), [1, 0, 2], first, needs, [0, 2, 1, 0, 2])


def sun397(data):
    """Classes lie one or two folders deep; a bar must not swallow the barns."""
    root = data / "SUN397"
    classes = ["/a/abbey", "/b/barn", "/b/bar", "/c/church/indoor"]
    text(root / "ClassName.txt", classes)
    train = [f"{c}/sun_{k}.jpg" for c in reversed(classes) for k in "ba"]
    test = [f"{c}/sun_{k}.jpg" for c in classes for k in "cd"]
    text(root / "Training_01.txt", train)
    text(root / "Testing_01.txt", test)
    for k, name in enumerate([*train, *test, "/a/abbey/sun_unused.jpg"]):
        image(root / name[1:], k)
    needs = tuple(f"SUN397/{name}" for name in ("ClassName.txt", "Training_01.txt", "Testing_01.txt"))
    labels = [0, 0, 1, 1, 2, 2, 3, 3]
    first = "SUN397/c/church/indoor/sun_b.jpg"
    return Tiny(["abbey", "barn", "bar", "church/indoor"], (7, 1, 8), labels, first, needs, labels[::-1])


def voc2007(data):
    """Image k shows class k mod 20 and, with all its objects difficult, the class after it."""
    root = data / "VOCdevkit" / "VOC2007"
    splits = {"train": [5, 17], "val": [9], "test": [1, 40, 6]}
    for split, numbers in splits.items():
        for number in numbers:
            image(root / "JPEGImages" / f"{number:06d}.jpg", number)
        for label, name in enumerate(readers.VOC_CLASSES):
            flags = [1 if k % 20 == label else 0 if (k + 1) % 20 == label else -1 for k in numbers]
            lines = [f"{k:06d} {flag:2d}" for k, flag in zip(numbers, flags, strict=True)]
            text(root / "ImageSets" / "Main" / f"{name}_{split}.txt", lines)
    base = "VOCdevkit/VOC2007"
    needs = (base, *(f"{base}/ImageSets/Main/{c}_{s}.txt" for c, s in (("aeroplane", "train"), ("tvmonitor", "test"))))
    rows = [np.eye(20, dtype=int)[k % 20].tolist() for k in (1, 40, 6, 5, 17, 9)]
    return Tiny(list(readers.VOC_CLASSES), (2, 1, 3), rows[:3], f"{base}/JPEGImages/000005.jpg", needs, rows[3:])


WRITERS = {
    name: globals()[name]
    for name in "aircraft caltech101 cars cifar10 cifar100 dtd flowers food pets sun397 voc2007".split()
}


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Return a function that writes the copy of a data set under tmp_path and declares it the published one."""

    def make(name, **options):
        copy = WRITERS[name](tmp_path, **options)
        source = SOURCES[name]
        train, val, test = copy.sizes
        sizes = copy.sizes if len(source.splits) == 3 else (train + val, test)
        splits = dict(zip(source.splits, sizes, strict=True))
        monkeypatch.setitem(SOURCES, name, replace(source, classes=len(copy.classes), splits=splits))
        if name == "flowers":
            declare_flowers(tmp_path, monkeypatch)
        if name == "caltech101":
            monkeypatch.setattr(readers, "CALTECH_PER_CLASS", 3)
        return copy

    return make


def declare_flowers(data, monkeypatch):
    """Replace the MD5 that torchvision knows by those of the files on disk."""
    for key, (name, _) in list(Flowers102._file_dict.items()):
        if key != "image":
            monkeypatch.setitem(Flowers102._file_dict, key, (name, sources.md5_of_file(data / "flowers-102" / name)))
