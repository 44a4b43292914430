"""Average precision as the paper reports it: detectron2's on PASCAL VOC, pycocotools' on MS-COCO; in percent."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from mmdet.registry import METRICS

from common.engine.processes import GatheredMetric
from detection.annotations import CocoFile

IOUS = tuple(percent / 100 for percent in range(50, 100, 5))
PER_CLASS = "AP_per_class/"  # prefix of the classes' keys


class Image(NamedTuple):
    """One image's n objects and m detections: the reader's boxes (n, 4) and (m, 4), class indices and scores."""

    truth: np.ndarray
    labels: np.ndarray
    difficult: np.ndarray
    boxes: np.ndarray
    classes: np.ndarray
    scores: np.ndarray


@METRICS.register_module()
class VOCAP(GatheredMetric):
    """VOC2007's 11-point AP at IoU 0.50:0.05:0.95, as in detectron2's PascalVOCDetectionEvaluator (PROTOCOLS 5.4).

    `AP` is the mean over ten thresholds of the mean over the classes, `AP50` and `AP75` are the means at one
    threshold, `AP_per_class/<class>` is a class's mean over the thresholds. Detections are sorted by falling score,
    equal scores by image and then by detection (detectron2's sort leaves that open).

    mmdet's VOCMetric differs: it matches at IoU >= threshold (here: >), takes scores and boxes at full precision
    (here: 3 decimals and 1, as in VOC's result files), leaves classes without objects out of the mean (here: 0), reads
    boxes a pixel narrower and lower (it subtracts 1 from all four coordinates, `detection.datasets.VOC` from xmin and
    ymin alone), evaluates at 0.5 by default and rounds each threshold's mean to 3 decimals.
    """

    default_prefix = "voc"

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Keep the objects and detections of a batch, objects in the order of the file if `gt_ignore_flags` gives it.

        Of objects that a detection overlaps equally, detectron2 takes the first of the file, difficult or not.
        """
        for sample in data_samples:
            truth, ignored, predicted = sample["gt_instances"], sample["ignored_instances"], sample["pred_instances"]
            counts = len(truth["labels"]), len(ignored["labels"])
            difficult = np.asarray(sample.get("gt_ignore_flags", np.repeat([False, True], counts)), dtype=bool)
            order = np.argsort(np.argsort(difficult, kind="stable"))  # among those not difficult, then the difficult
            self.results.append(
                Image(
                    np.concatenate([_array(part["bboxes"]) for part in (truth, ignored)])[order],
                    np.concatenate([_array(part["labels"]) for part in (truth, ignored)])[order],
                    difficult,
                    _array(predicted["bboxes"]),
                    _array(predicted["labels"]),
                    _array(predicted["scores"]),
                )
            )

    def compute_metrics(self, results: list[tuple[np.ndarray, ...]]) -> dict[str, float]:
        """Return AP, AP50, AP75 and the AP of every class, 0-100."""
        names = self.dataset_meta["classes"]
        table = 100 * voc_ap([Image(*result) for result in results], len(names))  # mmengine made them plain tuples
        at = dict(zip(IOUS, table.mean(0), strict=True))
        metrics = {"AP": table.mean(), "AP50": at[0.5], "AP75": at[0.75]}
        metrics |= {PER_CLASS + name: value for name, value in zip(names, table.mean(1), strict=True)}
        return {name: float(value) for name, value in metrics.items()}


def voc_ap(images: Sequence[Image], num_classes: int) -> np.ndarray:
    """Return the 11-point AP (num_classes, 10), 0-1, at each of IOUS. Boxes have x0, y0 from 0 and x1, y1 from 1."""
    images = [_as_in_result_files(image) for image in images]
    return np.array([_class_ap(images, label) for label in range(num_classes)]).reshape(num_classes, len(IOUS))


def _as_in_result_files(image: Image) -> Image:
    """Return the image in VOC's 1-based coordinates, with detections at the precision of VOC's result files."""
    shift = np.array([1, 1, 0, 0])
    written = (image.boxes + shift.astype(image.boxes.dtype)).tolist()
    boxes = np.array([[float(f"{side:.1f}") for side in box] for box in written]).reshape(-1, 4)
    scores = np.array([float(f"{score:.3f}") for score in image.scores.tolist()])
    return image._replace(truth=image.truth.astype(np.float64) + shift, boxes=boxes, scores=scores)


def _class_ap(images: Sequence[Image], label: int) -> list[float]:
    """Return a class's AP at each threshold."""
    scores, overlaps, objects = (
        [],
        [],
        [],
    )  # of each detection: score, IoU with its nearest object, that object
    difficult: list[np.ndarray] = []
    total = 0
    for image in images:
        mine, detected = image.labels == label, image.classes == label
        difficult.append(image.difficult[mine])
        iou = _iou(image.boxes[detected], image.truth[mine])
        scores.append(image.scores[detected])
        overlaps.append(iou.max(1, initial=0.0))
        objects.append(total + iou.argmax(1) if mine.any() else np.full(len(iou), -1))
        total += int(mine.sum())
    order = np.argsort(-np.concatenate(scores), kind="stable")
    overlap, nearest = np.concatenate(overlaps)[order], np.concatenate(objects)[order]
    ignored = np.concatenate([*difficult, [False]])  # the last is for -1, no object
    return [_ap_at(overlap > threshold, nearest, ignored) for threshold in IOUS]


def _ap_at(hit: np.ndarray, nearest: np.ndarray, ignored: np.ndarray) -> float:
    """Return the 11-point AP of detections in order, given which hit their nearest object."""
    counts = hit & ~ignored[nearest]
    _, first = np.unique(nearest[counts], return_index=True)  # an object counts once
    true = np.zeros(len(hit), dtype=bool)
    true[np.flatnonzero(counts)[first]] = True
    false = ~hit | (counts & ~true)
    right, wrong = true.cumsum(), false.cumsum()
    objects = int((~ignored[:-1]).sum())
    if objects == 0 or len(hit) == 0:
        return 0.0
    recall, precision = right / objects, right / np.maximum(right + wrong, np.finfo(np.float64).eps)
    # Steps of 0.1 in floating point, as in the devkit and detectron2.
    return sum(precision[recall >= point].max(initial=0.0) for point in np.arange(0.0, 1.1, 0.1)) / 11


def _iou(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the IoU (m, n) of boxes that include both ends: a side is x1 - x0 + 1 pixels long."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    inside = np.maximum(high - low + 1, 0).prod(2)
    areas = [(b[:, 2:] - b[:, :2] + 1).prod(1) for b in (boxes, others)]
    return inside / (areas[0][:, None] + areas[1][None] - inside)


@METRICS.register_module()
class COCOAP(GatheredMetric):
    """Box AP by pycocotools, at its own precision: `AP`, `AP50`, `AP75`, and `AP_per_class/<class>`.

    mmdet's CocoMetric rounds to a tenth of a percent, and gives no number instead of 0 when nothing was detected. A
    class without objects has no AP and no key.
    """

    default_prefix = "coco"

    def __init__(self, ann_file: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.truth = CocoFile(ann_file)

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Keep the detections of a batch: image, boxes (m, 4), class indices and scores."""
        for sample in data_samples:
            predicted = sample["pred_instances"]
            self.results.append((sample["img_id"], *(_array(predicted[key]) for key in ("bboxes", "labels", "scores"))))

    def compute_metrics(self, results: list[tuple[int, np.ndarray, np.ndarray, np.ndarray]]) -> dict[str, float]:
        """Return AP, AP50, AP75 and the AP of every class that has objects, 0-100."""
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        numbers = {category["name"]: category["id"] for category in self.truth.dataset["categories"]}
        ids = [numbers[name] for name in self.dataset_meta["classes"]]
        detections = [
            {"image_id": image, "category_id": ids[label], "bbox": [x0, y0, x1 - x0, y1 - y0], "score": score}
            for image, boxes, labels, scores in results
            for (x0, y0, x1, y1), label, score in zip(boxes.tolist(), labels, scores.tolist(), strict=True)
        ]
        evaluation = COCOeval(self.truth, self.truth.loadRes(detections) if detections else COCO(), "bbox")
        evaluation.params.imgIds = [image for image, *_ in results]
        evaluation.params.catIds = ids
        evaluation.evaluate()
        evaluation.accumulate()
        # (thresholds, recalls, classes), for all areas and the 100 best detections; -1 where there is no object.
        precision = evaluation.eval["precision"][..., 0, -1]
        metrics = {"AP": precision, "AP50": precision[0], "AP75": precision[5]}
        places = {number: place for place, number in enumerate(evaluation.params.catIds)}  # sorted by COCOeval
        for name, number in zip(self.dataset_meta["classes"], ids, strict=True):
            metrics[PER_CLASS + name] = precision[..., places[number]]
        present = {name: values[values > -1] for name, values in metrics.items()}
        means = {name: 100 * float(values.mean()) for name, values in present.items() if values.size}
        return {"AP": 0.0, "AP50": 0.0, "AP75": 0.0, **means}


def _array(values: Any) -> np.ndarray:
    return values.cpu().numpy()
