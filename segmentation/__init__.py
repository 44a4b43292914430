"""UPerNet on ADE20K, finetuned from a pretrained backbone."""

INDEX = "index.json"  # of the predictions in a run's work_dir


def register() -> None:
    """Register mmseg's modules and this room's."""
    from common.mmlab.ops import register_segmentation

    register_segmentation()
    from common.mmlab import pipeline  # noqa: F401
    from segmentation import batches, datasets, metric, schedule, upernet  # noqa: F401
