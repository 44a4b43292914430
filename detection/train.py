"""Finetune Faster R-CNN from pretrained backbones and record AP, AP50 and AP75 (paper, D.2).

`make detection-voc`, `make detection-coco`, or `python -m detection.train --dataset voc`.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from common import cli
from common.mmlab import finetune as dense
from common.sources import make_data
from detection import predictions

if TYPE_CHECKING:
    from mmengine.config import ConfigDict

DATASETS = ("voc", "coco")
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
    parser.add_argument("--dataset", default="voc", type=cli.one_of("DATASET", DATASETS), help=" or ".join(DATASETS))
    parser.add_argument("--frozen", action="store_true", help="train no layer of the backbone but the last stage")
    args = parser.parse_args(argv)
    cli.announce("detection.train", args, runs=args.runs)
    task = dense.Task(
        name="detection",
        dataset=args.dataset,
        configs=Path(__file__).parent / "configs",
        metrics={name: (f"{args.dataset}/{name}", 1.0) for name in ("AP", "AP50", "AP75")},
        register=register,
        place=f"{make_data(args.dataset, args.data)}, or {PLACE[args.dataset]}",
        variant="frozen" if args.frozen else None,
        options=FROZEN if args.frozen else {},
        preflight=check,
        details=lambda found: per_class(found, prefix=f"{args.dataset}/AP_per_class/"),
        finish=partial(predictions.save, data=args.data),
        products=lambda work_dir: [work_dir / predictions.FILE],
    )
    dense.evaluate_all(task, args)


def check(dataset: "ConfigDict", cache: Path) -> dict[str, tuple[int, int]]:
    """Check a whole data set before training starts. Return no sizes: the annotations hold them."""
    from detection import annotations

    annotations.check(dataset, cache)
    return {}


def per_class(found: dict[str, float], *, prefix: str) -> dict[str, dict[str, float]]:
    """Return the record's `details`: the AP of every class, 0-100."""
    aps = {key.removeprefix(prefix): round(value, 4) for key, value in found.items() if key.startswith(prefix)}
    return {"AP_per_class": aps}


def register() -> None:
    """Make mmdet's modules and ours known to the registries."""
    from common.mmlab.ops import register_detection

    register_detection()
    import common.mmlab.pipeline  # noqa: F401
    import detection.datasets
    import detection.metrics
    import detection.model  # noqa: F401


if __name__ == "__main__":
    cli.run(main)
