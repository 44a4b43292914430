"""VOC's AP against a plain implementation, written from the devkit's definition; COCO's on cases worked out by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detection.train import register
from tests.processes import in_two_processes

register()
from detection.metrics import COCOAP, IOUS, VOCAP, Image, voc_ap  # noqa: E402

CLASSES = ("cat", "dog")


def image(truth=(), found=()) -> Image:
    """Objects as (class, box) or (class, box, difficult), detections as (class, box, score); boxes from the reader."""
    objects = [(*thing, False)[:3] for thing in truth]
    return Image(
        np.array([box for _, box, _ in objects], np.float32).reshape(-1, 4),
        np.array([label for label, _, _ in objects], int),
        np.array([difficult for *_, difficult in objects], bool),
        np.array([box for _, box, _ in found], np.float32).reshape(-1, 4),
        np.array([label for label, _, _ in found], int),
        np.array([score for *_, score in found], np.float32),
    )


# A plain implementation: loops over detections, dictionaries of what is found, nothing shared with ours.


def plain_ap(images: list[Image], label: int, threshold: float) -> float:
    lines = []  # the result file: image, score, corners counted from 1, at the precision that is written
    for number, one in enumerate(images):
        for box, of, score in zip(one.boxes, one.classes, one.scores, strict=True):
            if of == label:
                corners = (box + np.float32([1, 1, 0, 0])).tolist()
                lines.append((number, float(f"{score:.3f}"), *(float(f"{x:.1f}") for x in corners)))
    lines.sort(key=lambda line: -line[1])
    wanted = {
        (number, k): (float(x0) + 1, float(y0) + 1, float(x1), float(y1), bool(hard))
        for number, one in enumerate(images)
        for k, ((x0, y0, x1, y1), of, hard) in enumerate(zip(one.truth, one.labels, one.difficult, strict=True))
        if of == label
    }
    count = sum(not hard for *_, hard in wanted.values())
    used, right, wrong, curve = set(), 0, 0, []
    for number, _, *box in lines:
        overlaps = {key: plain_iou(box, wanted[key]) for key in wanted if key[0] == number}
        key = max(overlaps, key=lambda key: overlaps[key], default=None)
        hit = key is not None and overlaps[key] > threshold
        if not (hit and wanted[key][4]):
            right, wrong = (right + 1, wrong) if hit and key not in used else (right, wrong + 1)
            used.add(key if hit else None)
        if right + wrong and count:
            curve.append((right / count, right / (right + wrong)))
    return sum(max((p for r, p in curve if r >= k * 0.1), default=0.0) for k in range(11)) / 11


def plain_iou(one, other) -> float:
    (x0, y0, x1, y1), (u0, v0, u1, v1, *_) = one, other
    width, height = min(x1, u1) - max(x0, u0) + 1, min(y1, v1) - max(y0, v0) + 1
    inside = max(width, 0) * max(height, 0)
    return inside / ((x1 - x0 + 1) * (y1 - y0 + 1) + (u1 - u0 + 1) * (v1 - v0 + 1) - inside)


def assert_as_plain(images: list[Image]) -> None:
    found = voc_ap(images, len(CLASSES))
    wanted = [[plain_ap(images, label, threshold) for threshold in IOUS] for label in range(len(CLASSES))]
    np.testing.assert_allclose(found, wanted, atol=1e-12)


A, B = (10, 10, 30, 30), (50, 50, 90, 80)
NEAR_A = (12, 10, 32, 30)  # 21 pixels of raw side: overlap with A is 18/22


@pytest.mark.parametrize(
    ("images", "cat"),
    [
        ([image([(0, A)], [(0, A, 0.9)])], 1.0),
        ([image([(0, A)], [])], 0.0),
        ([image([], [(0, A, 0.9)])], 0.0),  # a class without objects counts as 0
        ([image([(0, A, True)], [(0, A, 0.9)])], 0.0),  # only difficult objects: so does this one
        ([image([(0, A, True), (0, B)], [(0, A, 0.9), (0, B, 0.8)])], 1.0),  # found, but neither right nor wrong
        ([image([(0, A)], [(0, A, 0.9), (0, A, 0.8)])], 1.0),  # a duplicate is wrong, after full recall
        ([image([(0, A), (0, B)], [(0, A, 0.9), (0, A, 0.8), (0, B, 0.7)])], (6 + 5 * 2 / 3) / 11),
        ([image([(0, A)], [(0, B, 0.9), (0, A, 0.8)])], 0.5),
        ([image([(0, A)], [(1, A, 0.9), (0, A, 0.8)])], 1.0),  # other classes do not matter
        # A tie after rounding to 3 decimals: the order of the images decides, and the wrong one is first.
        ([image([], [(0, B, 0.8001)]), image([(0, A)], [(0, A, 0.8004)])], 0.5),
        ([image([], [(0, B, 0.8001)]), image([(0, A)], [(0, A, 0.8007)])], 1.0),
    ],
)
def test_cases_worked_out_by_hand(images: list[Image], cat: float) -> None:
    assert voc_ap(images, 2)[0] == pytest.approx([cat] * 10)
    assert_as_plain(images)


def test_overlap_must_exceed_the_threshold_in_pixels_of_both_ends() -> None:
    # Raw sides: object 1..20, detection 1..10 of the same rows: 10 * 20 / (20 * 20) = 0.5 exactly, which is no match.
    exact = [image([(0, (0, 0, 20, 20))], [(0, (0, 0, 10, 20), 0.9)])]
    assert voc_ap(exact, 1)[0, 0] == 0.0
    more = [image([(0, (0, 0, 20, 20))], [(0, (0, 0, 10.1, 20), 0.9)])]
    assert voc_ap(more, 1)[0, 0] == 1.0
    assert_as_plain(exact)
    # 10.04 is written as 10.0
    assert voc_ap([image([(0, (0, 0, 20, 20))], [(0, (0, 0, 10.04, 20), 0.9)])], 1)[0, 0] == 0.0


def test_thresholds_are_ten() -> None:
    assert IOUS == (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
    # 18 of 22 columns, raw: up to 0.80
    assert voc_ap([image([(0, A)], [(0, NEAR_A, 0.9)])], 1)[0].tolist() == [1.0] * 7 + [0.0] * 3


CORNERS = st.tuples(*(st.integers(0, 12) for _ in range(4))).map(
    lambda c: (c[0], c[1], c[0] + c[2] + 1, c[1] + c[3] + 1)
)
FRACTIONS = st.sampled_from((0.0, 0.04, 0.05, 0.25, 0.5, 0.96))
OBJECTS = st.lists(st.tuples(st.integers(0, 1), CORNERS, st.booleans()), max_size=5)
FOUND = st.lists(
    st.tuples(
        st.integers(0, 1),
        st.tuples(CORNERS, FRACTIONS).map(lambda pair: tuple(side + pair[1] for side in pair[0])),
        st.sampled_from((0.0504, 0.0506, 0.3, 0.3004, 0.9, 0.99)),
    ),
    max_size=8,
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(OBJECTS, FOUND), min_size=1, max_size=4))
def test_random_detections_give_what_the_plain_implementation_gives(images: list) -> None:
    assert_as_plain([image(truth, found) for truth, found in images])


def sample(one: Image, number: int = 0) -> dict:
    """As mmdet's model gives it to an evaluator."""
    tensors = {"bboxes": torch.tensor(one.truth), "labels": torch.tensor(one.labels)}
    hard = torch.tensor(one.difficult)
    return {
        "img_id": number,
        "gt_ignore_flags": one.difficult.astype(int),
        "gt_instances": {key: value[~hard] for key, value in tensors.items()},
        "ignored_instances": {key: value[hard] for key, value in tensors.items()},
        "pred_instances": {
            "bboxes": torch.tensor(one.boxes),
            "labels": torch.tensor(one.classes),
            "scores": torch.tensor(one.scores),
        },
    }


def test_the_metric_gives_percent_and_every_class() -> None:
    metric = VOCAP()
    metric.dataset_meta = {"classes": CLASSES}
    metric.process(None, [sample(image([(0, A), (1, B, True)], [(0, NEAR_A, 0.9), (1, B, 0.8)]))])
    metric.process(None, [sample(image())])
    found = metric.evaluate(2)
    assert found == {
        "voc/AP": pytest.approx(35.0),
        "voc/AP50": 50.0,
        "voc/AP75": 50.0,
        "voc/AP_per_class/cat": pytest.approx(70.0),
        "voc/AP_per_class/dog": 0.0,
    }


@pytest.mark.parametrize(("objects", "ap"), [([(0, A, True), (0, A)], 0.0), ([(0, A), (0, A, True)], 100.0)])
def test_of_objects_that_overlap_alike_the_first_of_the_file_counts(objects: list, ap: float) -> None:
    """As detectron2's argmax over the file's objects: a difficult one that comes first takes the detection."""
    metric = VOCAP()
    metric.dataset_meta = {"classes": CLASSES}
    metric.process(None, [sample(image([(1, B), *objects], [(0, A, 0.9)]))])
    assert metric.evaluate(1)["voc/AP_per_class/cat"] == ap


def test_objects_keep_the_order_of_the_file() -> None:
    metric = VOCAP()
    one = image([(0, A, True), (1, B), (0, NEAR_A, True), (1, A)])
    metric.process(None, [sample(one)])
    for kept, want in zip(metric.results[0], one, strict=True):
        assert kept.tolist() == want.tolist()


def test_two_processes_that_share_no_folder_count_all_images(tmp_path: Path, coco_file: Path) -> None:
    def work(rank: int) -> dict[str, float]:
        images = [[(0, (10, 10, 30, 30), 0.9)], []][rank]  # detections of this process's image
        found = {}
        for metric in (VOCAP(), COCOAP(ann_file=str(coco_file))):
            metric.dataset_meta = {"classes": CLASSES}
            metric.process(None, [sample(image([(0, (10, 10, 30, 30))], images), 7 + rank)])
            found |= metric.evaluate(2)
        return found

    one, two = in_two_processes(tmp_path, work)
    assert one == two
    # VOC: one of two cats is found. COCO's file has no cat in the second image.
    assert one["voc/AP_per_class/cat"] == pytest.approx(100 * 6 / 11)  # precision 1 at the recalls 0, 0.1, ... 0.5
    assert one["coco/AP_per_class/cat"] == pytest.approx(100)


@pytest.fixture
def coco_file(tmp_path: Path) -> Path:
    """Two images, a cat of 20 x 20 in the first; the categories in another order than the classes'."""
    thing = {"id": 1, "image_id": 7, "category_id": 9, "bbox": [10, 10, 20, 20], "area": 400, "iscrowd": 0}
    content = {
        "images": [{"id": number, "width": 100, "height": 100, "file_name": f"{number}.jpg"} for number in (7, 8)],
        "annotations": [thing],
        "categories": [{"id": 3, "name": "dog"}, {"id": 9, "name": "cat"}],
    }
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("number", [0, 1])
def test_an_object_of_any_number_is_found(coco_file: Path, number: int) -> None:
    """To pycocotools, 0 is none."""
    content = json.loads(coco_file.read_text())
    content["annotations"][0]["id"] = number
    coco_file.write_text(json.dumps(content))
    metric = COCOAP(ann_file=str(coco_file))
    metric.dataset_meta = {"classes": CLASSES}
    metric.process(None, [sample(image([], [(0, (10, 10, 30, 30), 0.9)]), 7)])
    assert metric.evaluate(1)["coco/AP"] == pytest.approx(100)


@pytest.mark.parametrize(
    ("detections", "ap", "ap50", "ap75"),
    [
        ([(0, (10, 10, 30, 30), 0.9)], 100.0, 100.0, 100.0),
        ([(0, (10, 10, 30, 26), 0.9)], 70.0, 100.0, 100.0),  # IoU 0.8, and pycocotools matches at the threshold
        ([(1, (10, 10, 30, 30), 0.9)], 0.0, 0.0, 0.0),
        ([], 0.0, 0.0, 0.0),
    ],
)
def test_coco_box_ap(coco_file: Path, detections: list, ap: float, ap50: float, ap75: float) -> None:
    metric = COCOAP(ann_file=str(coco_file))
    metric.dataset_meta = {"classes": CLASSES}
    metric.process(None, [sample(image([], detections), 7), sample(image(), 8)])
    found = metric.evaluate(2)
    assert found == {
        "coco/AP": pytest.approx(ap),
        "coco/AP50": pytest.approx(ap50),
        "coco/AP75": pytest.approx(ap75),
        "coco/AP_per_class/cat": pytest.approx(ap),  # a dog is nowhere: it has no AP
    }
