"""Small copies of VOCdevkit and COCO in the official layouts, with the real classes."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

OBJECT = """<object><name>{name}</name><pose>Left</pose><truncated>0</truncated><difficult>{difficult}</difficult>
<bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>
"""
XML = """<annotation><folder>{folder}</folder><filename>{name}.jpg</filename>
<size><width>{width}</width><height>{height}</height><depth>3</depth></size><segmented>0</segmented>
{objects}</annotation>
"""
SIZES = ((100, 75), (75, 100), (90, 90))  # wide, tall, square
VOC_SPLITS = {"VOC2007": {"trainval": 4, "test": 3}, "VOC2012": {"trainval": 4}}
COCO_SPLITS = {"train2017": 6, "val2017": 3}


def draw(rng: np.random.Generator, number: int) -> tuple[Image.Image, list[tuple[int, int, int, int]]]:
    """An image and the borders of two bright rectangles in it, counted from 0."""
    width, height = SIZES[number % len(SIZES)]
    pixels = rng.integers(0, 100, (height, width, 3), dtype=np.uint8)
    boxes = []
    for left in (2, 40):
        x0, y0 = left + int(rng.integers(0, 5)), int(rng.integers(2, 20))
        box = (x0, y0, x0 + int(rng.integers(15, 28)), y0 + int(rng.integers(15, 40)))
        pixels[box[1] : box[3], box[0] : box[2]] = 230
        boxes.append(box)
    return Image.fromarray(pixels), boxes


def write_voc(root: Path, classes: tuple[str, ...], seed: int = 0) -> None:
    """Write `root`/VOC2007 and VOC2012; the second object of every third image is difficult."""
    rng = np.random.default_rng(seed)
    for year, splits in VOC_SPLITS.items():
        folder, number = root / year, 0
        for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
            (folder / part).mkdir(parents=True)
        for split, count in splits.items():
            names = []
            for _ in range(count):
                number += 1
                name = f"{number:06d}" if year == "VOC2007" else f"2008_{number:06d}"
                image, boxes = draw(rng, number)
                image.save(folder / "JPEGImages" / f"{name}.jpg")
                objects = [
                    OBJECT.format(
                        name=classes[(number + k) % len(classes)],
                        difficult=int(k == 1 and number % 3 == 0),
                        **dict(zip(("x0", "y0", "x1", "y1"), (x0 + 1, y0 + 1, x1, y1), strict=True)),
                    )
                    for k, (x0, y0, x1, y1) in enumerate(boxes)
                ]
                text = XML.format(
                    folder=year, name=name, width=image.width, height=image.height, objects="".join(objects)
                )
                (folder / "Annotations" / f"{name}.xml").write_text(text)
                names.append(name)
            (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))


def write_coco(root: Path, classes: tuple[str, ...], seed: int = 0) -> None:
    """Write `root`/train2017, val2017 and annotations; ids of categories have gaps, as COCO's do."""
    rng = np.random.default_rng(seed)
    (root / "annotations").mkdir(parents=True)
    ids = [k + 1 + k // 11 for k in range(len(classes))]
    number = 0
    for split, count in COCO_SPLITS.items():
        (root / split).mkdir()
        images, annotations = [], []
        for _ in range(count):
            number += 1
            image, boxes = draw(rng, number)
            name = f"{number:012d}.jpg"
            image.save(root / split / name)
            images.append({"id": number, "file_name": name, "width": image.width, "height": image.height})
            for k, (x0, y0, x1, y1) in enumerate(boxes):
                thing = {"id": len(annotations) + 1, "image_id": number, "iscrowd": 0, "area": (x1 - x0) * (y1 - y0)}
                thing |= {"category_id": ids[(number + k) % len(ids)], "bbox": [x0, y0, x1 - x0, y1 - y0]}
                thing["segmentation"] = [[x0, y0, x1, y0, x1, y1, x0, y1]]
                annotations.append(thing)
        categories = [{"id": number, "name": name} for number, name in zip(ids, classes, strict=True)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
