"""Small copies of the eleven data sets in their official layouts, each with every class in train, val and test.

python -m tests.transfer.small FOLDER && make transfer-all PROFILE=imagenet DATA=FOLDER ...
"""

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

from common.readers import VOC_CLASSES
from tests.layouts import cifar, text


def picture(path, label, number):
    """Write an image whose colour says its class."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 60, (8, 10, 3)) + np.random.default_rng(label).integers(
        0, 195, 3
    )
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def aircraft(data):
    root, variants = data / "fgvc-aircraft-2013b" / "data", ["737-700", "A320", "F/A-18"]
    text(root / "variants.txt", variants)
    for base, split in enumerate(("train", "val", "test")):
        rows = [(f"{1000 * base + k:07d}", k % 3) for k in range(9)]
        text(root / f"images_variant_{split}.txt", [f"{stem} {variants[label]}" for stem, label in rows])
        for stem, label in rows:
            picture(root / "images" / f"{stem}.jpg", label, int(stem))


def caltech101(data):
    for label, name in enumerate(("BACKGROUND_Google", "Faces", "accordion")):
        for k in range(34):
            path = data / "caltech101" / "101_ObjectCategories" / name / f"image_{k + 1:04d}.jpg"
            picture(path, label, 100 * label + k)


def cars(data):
    root, classes = data / "stanford_cars", ["Acura RL Sedan 2012", "BMW X6 SUV 2012", "smart fortwo Convertible 2012"]
    (root / "devkit").mkdir(parents=True)
    savemat(root / "devkit" / "cars_meta.mat", {"class_names": np.array([classes], dtype=object)})
    for split, path in (("train", "devkit/cars_train_annos.mat"), ("test", "cars_test_annos_withlabels.mat")):
        rows = [(7, k % 3 + 1, f"{k + 1:05d}.jpg") for k in range(20)]
        savemat(root / path, {"annotations": np.array([rows], [("bbox_x1", int), ("class", int), ("fname", object)])})
        for k, (_, label, name) in enumerate(rows):
            picture(root / f"cars_{split}" / name, label, k)


def cifar10(data):
    classes = "airplane automobile bird cat deer dog frog horse ship truck".split()
    files = {f"data_batch_{k}": list(range(10)) for k in range(1, 6)} | {"test_batch": list(range(10)) * 2}
    cifar(data, "cifar-10-batches-py", files, "batches.meta", "labels", "label_names", classes)


def cifar100(data):
    files = {"train": list(range(100)) * 5, "test": list(range(100))}
    names = [f"class {k}" for k in range(100)]
    cifar(data, "cifar-100-python", files, "meta", "fine_labels", "fine_label_names", names)


def dtd(data):
    root = data / "dtd" / "dtd"
    for base, split in enumerate(("train", "val", "test")):
        names = [f"{c}/{c}_{3 * base + k:04d}.jpg" for c in ("banded", "blotchy", "zigzagged") for k in range(3)]
        text(root / "labels" / f"{split}1.txt", names)
        for k, name in enumerate(names):
            picture(root / "images" / name, k // 3, 10 * base + k)


def flowers(data):
    root, labels = data / "flowers-102", [k % 102 + 1 for k in range(4 * 102)]
    for k, label in enumerate(labels):
        picture(root / "jpg" / f"image_{k + 1:05d}.jpg", label, k)
    savemat(root / "imagelabels.mat", {"labels": np.array([labels], np.uint8)})
    ids = np.arange(1, len(labels) + 1, dtype=np.uint16)
    savemat(root / "setid.mat", {"trnid": ids[None, :204], "valid": ids[None, 204:306], "tstid": ids[None, 306:]})


def food(data):
    root, classes = data / "food-101", ["apple_pie", "pho", "waffles"]
    (root / "meta").mkdir(parents=True)
    text(root / "meta" / "classes.txt", classes)
    for base, split in enumerate(("train", "test")):
        lists = {name: [f"{name}/{100 * base + k}" for k in range(6)] for name in classes}
        (root / "meta" / f"{split}.json").write_text(json.dumps(lists))
        for label, names in enumerate(lists.values()):
            for k, name in enumerate(names):
                picture(root / "images" / f"{name}.jpg", label, 10 * label + k)


def pets(data):
    root, breeds = data / "oxford-iiit-pet", ["Abyssinian", "american_bulldog", "yorkshire_terrier"]
    for base, split in enumerate(("trainval", "test")):
        rows = [(f"{breeds[k % 3]}_{100 * base + k}", k % 3) for k in range(18)]
        text(root / "annotations" / f"{split}.txt", [f"{stem} {label + 1} 1 1" for stem, label in rows])
        for k, (stem, label) in enumerate(rows):
            picture(root / "images" / f"{stem}.jpg", label, k)


def sun397(data):
    root, classes = data / "SUN397", ["/a/abbey", "/b/barn", "/b/bar", "/c/church/indoor"]
    text(root / "ClassName.txt", classes)
    for file, names in (("Training_01.txt", "abcdef"), ("Testing_01.txt", "uvw")):
        paths = [f"{c}/sun_{name}.jpg" for c in classes for name in names]
        text(root / file, paths)
        for k, path in enumerate(paths):
            picture(root / path[1:], k // len(names), k)


def voc2007(data):
    """Image k shows classes k mod 20 and, for every second image, the one after it."""
    root = data / "VOCdevkit" / "VOC2007"
    for base, split in enumerate(("train", "val", "test")):
        numbers = [100 * base + k for k in range(40)]
        for number in numbers:
            picture(root / "JPEGImages" / f"{number:06d}.jpg", number % 20, number)
        for label, name in enumerate(VOC_CLASSES):
            shown = [number % 20 == label or (number % 2 and (number + 1) % 20 == label) for number in numbers]
            lines = [f"{number:06d} {1 if yes else -1:2d}" for number, yes in zip(numbers, shown, strict=True)]
            text(root / "ImageSets" / "Main" / f"{name}_{split}.txt", lines)


WRITERS = (aircraft, caltech101, cars, cifar10, cifar100, dtd, flowers, food, pets, sun397, voc2007)


def write(data: Path) -> None:
    """Write all eleven under the data root."""
    for writer in WRITERS:
        writer(data)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
