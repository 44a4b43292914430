"""What VOC's and COCO's annotation files say, and the check of a whole data set before training starts."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

from mmdet.datasets.api_wrappers import COCO
from mmengine.config import ConfigDict
from typing_extensions import override

from common.errors import UserError
from common.files import read_bytes
from common.preflight import check_once, decoded_size, read_json, read_list

# The images of two empty boxes in the published instances_train2017.json (cocodataset/cocoapi, issue 355). Training
# leaves the boxes out, as detectron2 does.
PUBLISHED_EMPTY = (200365, 550395)
# Part of the cache's key; to be changed when the check asks for more.
CHECK = "images decoded, upright, of known levels"
SLACK = 1.0  # pixels that a box may reach beyond its image: annotations are drawn by hand and rounded


class Thing(NamedTuple):
    """An object of a VOC file: its class, whether it is difficult, and (xmin, ymin, xmax, ymax), counted from 1."""

    name: str
    difficult: bool
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class VOCAnnotation:
    """A VOC file's image size in pixels and its objects."""

    width: int
    height: int
    objects: Sequence[Thing]


def read_voc(path: Path, classes: Sequence[str] | None = None) -> VOCAnnotation:
    """Return what a VOC XML file says.

    Raises UserError naming a file that is broken or has another class than `classes`, if these are known.
    """
    content = read_bytes(path, "annotation", "restore the data set")
    try:
        root = ElementTree.fromstring(content)  # noqa: S314  (the published files, or the user's own)
        objects = [_thing(element) for element in root.iterfind("object")]
        annotation = VOCAnnotation(int(_text(root, "size/width")), int(_text(root, "size/height")), objects)
    except (ElementTree.ParseError, LookupError) as error:  # the latter for an unknown encoding
        raise UserError(f"annotation {path} is truncated or corrupt ({error}); restore it") from None
    except ValueError as error:
        raise UserError(f"annotation {path} is not in VOC's format ({error}); restore it") from None
    for thing in objects:
        if classes is not None and thing.name not in classes:
            raise UserError(f"annotation {path}: unknown class '{thing.name}'; known: {', '.join(classes)}")
    return annotation


def _thing(element: ElementTree.Element) -> Thing:
    x0, y0, x1, y1 = (float(_text(element, f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax"))
    return Thing(_text(element, "name"), element.findtext("difficult", "0").strip() == "1", (x0, y0, x1, y1))


def _text(element: ElementTree.Element, tag: str) -> str:
    text = element.findtext(tag, "").strip()
    if not text:
        raise ValueError(f"no {tag} in <{element.tag}>")
    return text


def check_box(where: str, box: tuple[float, float, float, float], size: tuple[int, int]) -> None:
    """Raise UserError unless the box (x0, y0, x1, y1), its borders counted from 0, lies in an image (width, height)."""
    x0, y0, x1, y1 = box
    said = f"box ({x0:g}, {y0:g}, {x1:g}, {y1:g})"
    if not (x1 > x0 and y1 > y0):
        raise UserError(f"{where}: {said} is empty; correct or remove it")
    if not (x0 >= -SLACK and y0 >= -SLACK and x1 <= size[0] + SLACK and y1 <= size[1] + SLACK):
        raise UserError(f"{where}: {said} lies outside its image of {size[0]} x {size[1]} pixels; correct or remove it")


def check(dataset: ConfigDict, cache: Path) -> None:
    """Check one data set of a config as a whole: files, sizes, boxes, classes. Raises UserError naming the file."""
    from mmdet.registry import DATASETS

    classes = (dataset.get("metainfo") or DATASETS.get(dataset.type).METAINFO)["classes"]
    root = Path(dataset.data_root)
    if dataset.type == "VOC":
        _check_voc(root / dataset.data_prefix.sub_data_root, root / dataset.ann_file, classes, cache)
    else:
        _check_coco(root / dataset.data_prefix.img, root / dataset.ann_file, classes, cache)


def _check_voc(folder: Path, listed: Path, classes: Sequence[str], cache: Path) -> None:
    names = read_list(listed)
    pairs = [(folder / "JPEGImages" / f"{name}.jpg", folder / "Annotations" / f"{name}.xml") for name in names]
    objects = check_once(
        f"{folder.name}-{listed.stem}",
        lambda: pairs,
        lambda pair: _check_voc_image(*pair, classes),
        files=[listed, *(file for pair in pairs for file in pair)],
        settings=" ".join((CHECK, *classes)),
        cache=cache,
    )
    if not any(objects):
        raise UserError(f"no image of {listed} has an object; restore the data set")


def _check_voc_image(image: Path, xml: Path, classes: Sequence[str]) -> int:
    """Return the number of objects."""
    annotation = read_voc(xml, classes)
    size = _check_size(image, (annotation.width, annotation.height), xml)
    for thing in annotation.objects:
        x0, y0, x1, y1 = thing.box
        check_box(f"annotation {xml}", (x0 - 1, y0 - 1, x1, y1), size)
    return len(annotation.objects)


def _check_coco(folder: Path, path: Path, classes: Sequence[str], cache: Path) -> None:
    check_once(
        f"coco-{path.stem}",
        lambda: _read_coco(path, classes),
        lambda item: _check_coco_image(folder, path, *item),
        files=[path, *sorted(folder.iterdir())],
        settings=" ".join((CHECK, *classes)),
        cache=cache,
    )


class CocoFile(COCO):
    """mmdet's COCO, for a file that may lack `area` (then the box's) and `iscrowd` (then 0).

    Objects are numbered from 1, because pycocotools counts a detected object with number 0 as missed.
    """

    @override
    def createIndex(self) -> None:
        for number, thing in enumerate(self.dataset["annotations"], 1):
            thing["id"] = number
            thing["iscrowd"] = int(thing.get("iscrowd") or 0)
            if thing.get("area") is None:
                thing["area"] = thing["bbox"][2] * thing["bbox"][3]
        super().createIndex()


def _read_coco(path: Path, classes: Sequence[str]) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Return each image with its objects. Raises UserError for a file that is not a COCO file of these classes."""
    content = read_json(path)
    try:
        for kind, key in (("categories", "id"), ("categories", "name"), ("images", "id"), ("annotations", "id")):
            _check_keys(path, kind, key, [entry[key] for entry in content[kind]])
        names = {category["id"]: category["name"] for category in content["categories"]}
        images = {image["id"]: (image, list[dict[str, Any]]()) for image in content["images"]}
        for thing in content["annotations"]:
            _check_thing(thing)
            where = f"annotation {path}: object {thing['id']}"
            if thing["image_id"] not in images:
                raise UserError(f"{where} is of image {thing['image_id']!r}, which is not listed; restore the file")
            if thing["category_id"] not in names:
                raise UserError(
                    f"{where} is of unknown class {thing['category_id']!r}; known: {', '.join(names.values())}"
                )
            images[thing["image_id"]][1].append(thing)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise _no_coco(path, error) from None
    for name in names.values():
        if name not in classes:
            raise UserError(f"annotation {path}: unknown class '{name}'; known: {', '.join(classes)}")
    if missing := [name for name in classes if name not in names.values()]:
        raise UserError(f"annotation {path} lacks the class '{missing[0]}' among its categories; restore it")
    if all(thing.get("iscrowd") for thing in content["annotations"]):
        raise UserError(f"annotation {path} lists no object{' but crowds' * bool(content['annotations'])}; restore it")
    return list(images.values())


def _check_coco_image(folder: Path, path: Path, image: dict[str, Any], things: list[dict[str, Any]]) -> None:
    try:
        image["file_name"].encode()  # raises ValueError for half a surrogate pair
        size = _check_size(folder / image["file_name"], (image["width"], image["height"]), path)
        for thing in things:
            x, y, w, h = thing["bbox"]
            if not (image["id"] in PUBLISHED_EMPTY and h == 0):
                where = f"annotation {path}: object {thing['id']} of {image['file_name']}"
                check_box(where, (x, y, x + w, y + h), size)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise _no_coco(path, error) from None


def _no_coco(path: Path, error: Exception) -> UserError:
    reason = str(error) if type(error) is ValueError else repr(error)
    return UserError(f"annotation {path} is not in COCO's format ({reason}); restore it")


def _check_keys(path: Path, kind: str, key: str, values: list[Any]) -> None:
    """Raise UserError for a value that occurs twice, ValueError for a name that is not a text."""
    if key == "name" and (odd := [value for value in values if not isinstance(value, str)]):
        raise ValueError(f"the name {odd[0]!r} of a category is not a text")
    if len(set(values)) < len(values):
        value = next(value for value, count in Counter(values).items() if count > 1)
        raise UserError(f"annotation {path}: {key} {value!r} occurs twice among its {kind}; correct the file")


def _check_thing(thing: dict[str, Any]) -> None:
    """Raise ValueError for an object with a wrong `bbox`, `area` or `iscrowd`; the last two may be absent."""
    box, area, crowd = thing["bbox"], thing.get("area"), thing.get("iscrowd")
    if not (isinstance(box, list) and len(box) == 4 and all(map(_is_number, box))):
        raise ValueError(f"object {thing['id']}: bbox {box!r} is not four numbers")
    if not (area is None or (_is_number(area) and area >= 0)):
        raise ValueError(f"object {thing['id']}: area {area!r} is not a number of pixels")
    if not (crowd is None or crowd in (0, 1)):
        raise ValueError(f"object {thing['id']}: iscrowd {crowd!r} is neither 0 nor 1")


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _check_size(image: Path, said: tuple[int, int], path: Path) -> tuple[int, int]:
    size = decoded_size(image, upright=True)
    if size != said:
        turned = ", turned as its EXIF orientation says," if decoded_size(image) != size else ""
        raise UserError(f"annotation {path}: image {image}{turned} is {size} pixels, not {said}; restore the data set")
    return size
