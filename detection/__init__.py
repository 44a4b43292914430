"""Faster R-CNN on VOC and COCO, finetuned from a pretrained backbone."""

PREDICTIONS = "predictions.json"  # in a run's work_dir


def register() -> None:
    """Register mmdet's modules and this room's."""
    from common.mmlab.ops import register_detection

    register_detection()
    from common.mmlab import pipeline  # noqa: F401
    from detection import datasets, metrics, model  # noqa: F401
