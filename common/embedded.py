"""The demo's data: real images that ship inside scikit-learn, written in official layouts.

`load_digits` (1,797 handwritten digits), upsampled to 32 x 32 RGB, is the classification set. The scenes are digits
pasted in random colours, sizes and places onto crops of the photographs of `load_sample_images`. They have boxes and
masks in the layouts of VOCdevkit, COCO and ADE20K, so that the demo uses the readers of the real data sets. Test scenes
show only held-out digits. The same seed gives the same bytes.
"""

import json
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from common.files import write_json
from common.images import ImageFiles, image_folder
from common.sources import remedy

VERSION = 2
CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SEGMENTATION_CLASSES = ("background", *CLASSES)
DIGIT_SIZE = 32
N_TEST = 360
SCENE_SIZE = 160
SCENES = {"train": 200, "val": 60, "test": 100}
SIDES = (32, 73)  # pixels, from the first to below the second
DIM = 0.4
DIFFICULT_BELOW = 36  # pixels: smaller digits are marked `difficult`, as VOC marks hard objects
_STAMP = "embedded.json"


@dataclass(frozen=True)
class Digit:
    """A digit in a scene: its class index, its box (x0, y0, x1, y1) without x1 and y1, whether it is difficult."""

    label: int
    box: tuple[int, int, int, int]
    difficult: bool


@dataclass(frozen=True)
class Scene:
    """An image (H, W, 3) uint8, its class map (H, W) uint8 (0 background, 1 + digit) and its digits."""

    image: np.ndarray
    classes: np.ndarray
    digits: list[Digit]


def ensure_embedded(data: Path, seed: int = 0) -> Path:
    """Write the demo's data under `<data>/demo` unless it is there, and return that folder.

    It takes seconds. The folder appears only when it is complete.
    """
    root = data / "demo"
    content = {"version": VERSION, "seed": seed}
    stamp = root / _STAMP
    if stamp.is_file() and json.loads(stamp.read_text()) == content:
        return root
    data.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=data, prefix=".demo.") as folder:
        fresh = Path(folder) / "demo"
        generate(fresh, seed)
        write_json(fresh / _STAMP, content)
        # Another process, perhaps a rank of the same run, may have been faster and written the same.
        if stamp.is_file() and json.loads(stamp.read_text()) == content:
            return root
        with suppress(FileNotFoundError):
            root.rename(Path(folder) / "old")
        try:
            fresh.rename(root)
        except OSError:
            if not stamp.is_file():
                raise
    return root


def generate(root: Path, seed: int = 0, scenes: dict[str, int] | None = None) -> None:
    """Write the digits and all three layouts of the scenes under `root`."""
    _write_digits(root / "digits")
    counts = SCENES if scenes is None else scenes
    rng = np.random.default_rng(seed)
    made = {split: [make_scene(rng, split) for _ in range(count)] for split, count in counts.items()}
    _write_voc(root / "VOCdevkit" / "VOC2007", made)
    _write_coco(root / "coco", made)
    _write_ade20k(root / "ADEChallengeData2016", made)


def digits(data: Path, split: str) -> ImageFiles:
    """Return the digits of `split` ("train", 1,437, or "test", 360), writing the demo's data if needed."""
    root = ensure_embedded(data) / "digits" / split
    return image_folder(root, name=f"digits-{split}", hint=remedy("digits", data))


@cache
def digit_split() -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of load_digits for training (1,437) and for test (360): disjoint and fixed."""
    order = np.random.default_rng(0).permutation(len(_digits()[1]))
    return np.sort(order[N_TEST:]), np.sort(order[:N_TEST])


def make_scene(rng: np.random.Generator, split: str) -> Scene:
    """Draw one scene: some digits that do not overlap, on a photo crop. "test" shows only held-out digits.

    The digits are bright and the photo is dimmed, like handwriting on a board, which a network can read after some
    minutes of white digits on black.
    """
    pixels, labels = _digits()
    train, test = digit_split()
    pool = test if split == "test" else train
    image = _photo_crop(rng).astype(np.float32) * DIM
    classes = np.zeros((SCENE_SIZE, SCENE_SIZE), np.uint8)
    placed: list[Digit] = []
    for _ in range(rng.integers(6, 13)):
        index = int(rng.choice(pool))
        side = int(rng.integers(*SIDES))
        alpha = _alpha(pixels[index], side)
        y, x = (int(v) for v in rng.integers(0, SCENE_SIZE - side, size=2))
        mask = alpha > 0.5
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box = (x + int(columns[0]), y + int(rows[0]), x + int(columns[-1]) + 1, y + int(rows[-1]) + 1)
        if any(_overlap(box, other.box) for other in placed):
            continue
        patch = image[y : y + side, x : x + side]
        patch[:] = patch + alpha[..., None] * (rng.uniform(150, 255, size=3).astype(np.float32) - patch)
        classes[y : y + side, x : x + side][mask] = 1 + labels[index]
        placed.append(Digit(int(labels[index]), box, side < DIFFICULT_BELOW))
    return Scene(image.round().astype(np.uint8), classes, placed)


@cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return bunch.images.astype(np.float32) / 16, bunch.target.astype(np.int64)


@cache
def _photos() -> list[Image.Image]:
    from sklearn.datasets import load_sample_images

    return [Image.fromarray(photo) for photo in load_sample_images().images]


def _photo_crop(rng: np.random.Generator) -> np.ndarray:
    photos = _photos()
    photo = photos[rng.integers(len(photos))]
    side = int(rng.integers(SCENE_SIZE, min(photo.size)))
    x, y = (int(rng.integers(0, edge - side + 1)) for edge in photo.size)
    crop = photo.resize((SCENE_SIZE, SCENE_SIZE), Image.Resampling.BILINEAR, box=(x, y, x + side, y + side))
    return np.asarray(crop)


def _alpha(pixels: np.ndarray, side: int) -> np.ndarray:
    grey = Image.fromarray((pixels * 255).astype(np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
    return np.clip(np.asarray(grey, dtype=np.float32) / 255 * 1.6 - 0.2, 0, 1)


def _overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _write_digits(root: Path) -> None:
    pixels, labels = _digits()
    for split, indices in zip(("train", "test"), digit_split(), strict=True):
        for index in indices:
            path = root / split / CLASSES[labels[index]] / f"{index:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            grey = Image.fromarray((pixels[index] * 255).astype(np.uint8))
            grey.resize((DIGIT_SIZE, DIGIT_SIZE), Image.Resampling.BICUBIC).convert("RGB").save(path)


def _write_voc(root: Path, scenes: dict[str, list[Scene]]) -> None:
    """Write JPEGImages, Annotations, ImageSets/Main/<split>.txt and <class>_<split>.txt (0: only difficult objects)."""
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    named: dict[str, Scene] = {}
    splits: dict[str, list[str]] = {}
    for split, members in scenes.items():
        splits[split] = [f"{len(named) + k:06d}" for k in range(1, len(members) + 1)]
        named.update(zip(splits[split], members, strict=True))
    for name, scene in named.items():
        _save_jpeg(scene, root / "JPEGImages" / f"{name}.jpg")
        _save_xml(scene, root / "Annotations" / f"{name}.xml", name)
    splits["trainval"] = splits.get("train", []) + splits.get("val", [])
    main = root / "ImageSets" / "Main"
    for split, names in splits.items():
        (main / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
        for label, word in enumerate(CLASSES):
            lines = (f"{name} {_presence(named[name], label):2d}\n" for name in names)
            (main / f"{word}_{split}.txt").write_text("".join(lines))


def _presence(scene: Scene, label: int) -> int:
    difficult = [digit.difficult for digit in scene.digits if digit.label == label]
    return -1 if not difficult else 0 if all(difficult) else 1


def _save_jpeg(scene: Scene, path: Path) -> None:
    Image.fromarray(scene.image).save(path, quality=95)


def _save_xml(scene: Scene, path: Path, name: str) -> None:
    annotation = ElementTree.Element("annotation")

    def add(parent: ElementTree.Element, tag: str, text: object = None) -> ElementTree.Element:
        element = ElementTree.SubElement(parent, tag)
        element.text = None if text is None else str(text)
        return element

    add(annotation, "folder", "VOC2007")
    add(annotation, "filename", f"{name}.jpg")
    size = add(annotation, "size")
    for tag, value in (("width", SCENE_SIZE), ("height", SCENE_SIZE), ("depth", 3)):
        add(size, tag, value)
    add(annotation, "segmented", 0)
    for digit in scene.digits:
        element = add(annotation, "object")
        add(element, "name", CLASSES[digit.label])
        add(element, "pose", "Unspecified")
        add(element, "truncated", 0)
        add(element, "difficult", int(digit.difficult))
        box = add(element, "bndbox")
        x0, y0, x1, y1 = digit.box
        # VOC counts pixels from 1 and both ends belong to the box.
        for tag, value in (("xmin", x0 + 1), ("ymin", y0 + 1), ("xmax", x1), ("ymax", y1)):
            add(box, tag, value)
    ElementTree.indent(annotation)
    path.write_text(ElementTree.tostring(annotation, encoding="unicode") + "\n")


def _write_coco(root: Path, scenes: dict[str, list[Scene]]) -> None:
    """Write train2017 (train + val scenes), val2017 (test scenes), annotations/instances_<split>2017.json."""
    (root / "annotations").mkdir(parents=True)
    number = 0
    halves = {"train": scenes.get("train", []) + scenes.get("val", []), "val": scenes.get("test", [])}
    for split, members in halves.items():
        folder = root / f"{split}2017"
        folder.mkdir()
        images: list[dict] = []
        annotations: list[dict] = []
        for scene in members:
            number += 1
            name = f"{number:012d}.jpg"
            _save_jpeg(scene, folder / name)
            images.append({"id": number, "file_name": name, "width": SCENE_SIZE, "height": SCENE_SIZE})
            for digit in scene.digits:
                x0, y0, x1, y1 = digit.box
                inside = scene.classes[y0:y1, x0:x1] == 1 + digit.label
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number,
                        "category_id": 1 + digit.label,
                        "bbox": [x0, y0, x1 - x0, y1 - y0],
                        "area": int(inside.sum()),
                        "iscrowd": 0,
                        "segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]],
                    }
                )
        categories = [{"id": 1 + k, "name": word, "supercategory": "digit"} for k, word in enumerate(CLASSES)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        write_json(root / "annotations" / f"instances_{split}2017.json", content)


def _write_ade20k(root: Path, scenes: dict[str, list[Scene]]) -> None:
    """Write images and annotations for training and validation; labels: 0 unlabelled, 1 background, 2 + digit."""
    halves = {"training": scenes.get("train", []) + scenes.get("val", []), "validation": scenes.get("test", [])}
    for (split, members), short in zip(halves.items(), ("train", "val"), strict=True):
        for kind in ("images", "annotations"):
            (root / kind / split).mkdir(parents=True)
        for number, scene in enumerate(members, start=1):
            name = f"ADE_{short}_{number:08d}"
            _save_jpeg(scene, root / "images" / split / f"{name}.jpg")
            Image.fromarray(scene.classes + 1).save(root / "annotations" / split / f"{name}.png")
