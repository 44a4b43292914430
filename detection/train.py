"""Finetune Faster R-CNN from pretrained backbones and record AP, AP50 and AP75 (paper, D.2).

`make detection-voc`, `make detection-coco`, or `python -m detection.train --dataset voc`.
"""

from collections.abc import Sequence
from pathlib import Path

from common import cli, dense

METRICS = {
    "voc": {"AP": ("pascal_voc/mAP", 100.0), "AP50": ("pascal_voc/AP50", 100.0), "AP75": ("pascal_voc/AP75", 100.0)},
    "coco": {"AP": ("coco/bbox_mAP", 100.0), "AP50": ("coco/bbox_mAP_50", 100.0), "AP75": ("coco/bbox_mAP_75", 100.0)},
}
PLACE = {
    "voc": "unpack VOCtrainval_06-Nov-2007.tar, VOCtest_06-Nov-2007.tar and VOCtrainval_11-May-2012.tar so that "
    "VOC2007 and VOC2012, each with JPEGImages, Annotations and ImageSets/Main, lie",
    "coco": "unpack train2017.zip, val2017.zip and annotations_trainval2017.zip",
}
# detectron2's FREEZE_AT=4: the stem and all stages but the last. An option of ours; the paper finetunes.
FROZEN = {"model.backbone.frozen_stages": 3}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line `argv` (default: sys.argv)."""
    parser = dense.parser("detection.train", __doc__.splitlines()[0])
    parser.add_argument("--dataset", default="voc", type=cli.one_of("DATASET", METRICS), help=" or ".join(METRICS))
    parser.add_argument("--frozen", action="store_true", help="train no layer of the backbone but the last stage")
    args = parser.parse_args(argv)
    cli.announce("detection.train", args, runs=args.runs)
    task = dense.Task(
        name="detection",
        dataset=args.dataset,
        configs=Path(__file__).parent / "configs",
        metrics=METRICS[args.dataset],
        register=register,
        place=PLACE[args.dataset],
        variant="frozen" if args.frozen else None,
        options=FROZEN if args.frozen else {},
    )
    dense.evaluate_all(task, args)


def register() -> None:
    """Make mmdet's modules and ours known to the registries."""
    from common.openmmlab import register_detection

    register_detection()
    import common.pipeline  # noqa: F401
    import detection.datasets  # noqa: F401


if __name__ == "__main__":
    cli.run(main)
