"""Finetune UPerNet from pretrained backbones and record mIoU and pixel accuracy on ADE20K (paper, D.3).

`make segmentation-ade20k`, or `python -m segmentation.train`. Also saves the predictions of the first ten
validation images, for the figure.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import cli
from common.errors import UserError
from common.mmlab import finetune as dense
from common.sources import make_data
from segmentation import predictions, preflight

if TYPE_CHECKING:
    from mmengine.config import Config

PLACE = "unpack ADEChallengeData2016.zip so that images and annotations, each with training and validation, lie"
SINGLE_SCALE = {"evaluation": "single-scale", "test_dataloader.dataset.pipeline.2.scales": [(1000, 450)]}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line `argv` (default: sys.argv)."""
    parser = dense.parser("segmentation.train", __doc__.splitlines()[0])
    parser.add_argument(
        "--single-scale", action="store_true", help="test the paper's settings at a shorter side of 450 alone"
    )
    args = parser.parse_args(argv)
    cli.announce("segmentation.train", args, runs=args.runs)
    if args.single_scale and args.profile == "demo":
        raise UserError("--single-scale is for PROFILE=imagenet; the demo is tested at one scale as it is")
    task = dense.Task(
        name="segmentation",
        dataset="ade20k",
        configs=Path(__file__).parent / "configs",
        metrics={"mIoU": ("mIoU", 1.0), "aAcc": ("aAcc", 1.0)},  # mmseg gives percent
        register=register,
        place=f"{make_data('ade20k', args.data)}, or {PLACE}",
        variant="single-scale" if args.single_scale else None,
        options=SINGLE_SCALE if args.single_scale else {},
        preflight=preflight.check,
        facts=facts,
        details=lambda found: {"IoU_per_class": found["IoU_per_class"]},
        finish=partial(predictions.save, data=args.data),
        products=predictions.files,
    )
    dense.evaluate_all(task, args)


def facts(config: "Config") -> dict[str, Any]:
    """Return what the paper leaves open: the sizes of the test, (longest, shorter) side; the label of padding."""
    return {
        "test_scales": [list(scale) for scale in config.test_dataloader.dataset.pipeline[-1].scales],
        "padding_label": config.model.data_preprocessor.seg_pad_val,
    }


def register() -> None:
    """Make mmseg's modules and ours known to the registries."""
    from common.mmlab.ops import register_segmentation

    register_segmentation()
    import common.mmlab.pipeline  # noqa: F401
    import segmentation.batches
    import segmentation.datasets
    import segmentation.metric
    import segmentation.schedule
    import segmentation.upernet  # noqa: F401


if __name__ == "__main__":
    cli.run(main)
