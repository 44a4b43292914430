"""Finetune UPerNet from pretrained backbones and record mIoU and pixel accuracy on ADE20K (paper, D.3).

`make segmentation-ade20k`, or `python -m segmentation.train`. Also saves the predictions of the first ten
validation images, for the figure.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from common import cli, dense
from segmentation import predictions, preflight

PLACE = "unpack ADEChallengeData2016.zip, so that images and annotations, each with training and validation, lie"


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line `argv` (default: sys.argv)."""
    args = dense.parser("segmentation.train", __doc__.splitlines()[0]).parse_args(argv)
    cli.announce("segmentation.train", args, runs=args.runs)
    task = dense.Task(
        name="segmentation",
        dataset="ade20k",
        configs=Path(__file__).parent / "configs",
        metrics={"mIoU": ("mIoU", 1.0), "aAcc": ("aAcc", 1.0)},  # mmseg gives percent
        register=register,
        place=PLACE,
        preflight=preflight.check,
        details=lambda found: {"IoU": found["IoU"]},
        finish=partial(predictions.save, data=args.data),
        products=predictions.files,
    )
    dense.evaluate_all(task, args)


def register() -> None:
    """Make mmseg's modules and ours known to the registries."""
    import warnings

    from common.openmmlab import register_segmentation

    # Right for a loss with class weights, whose mean leaves ignored pixels out (see the demo's config).
    warnings.filterwarnings("ignore", message="Default ``avg_non_ignore`` is False")
    register_segmentation()
    import common.pipeline  # noqa: F401
    import segmentation.batches
    import segmentation.datasets
    import segmentation.metric
    import segmentation.schedule
    import segmentation.upernet  # noqa: F401


if __name__ == "__main__":
    cli.run(main)
