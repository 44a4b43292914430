"""Finetune UPerNet from pretrained backbones and record mIoU and pixel accuracy on ADE20K (paper, D.3).

`make segmentation-ade20k`, or `python -m segmentation.train`. It also saves predictions of the first ten
validation images, for the figure.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import cli
from common.errors import UserError
from common.keys import check_keys
from common.mmlab import jobs
from common.run import Measured, todo
from common.sources import make_data
from segmentation import INDEX, register
from segmentation.folder import use_folder

if TYPE_CHECKING:
    from mmengine.config import Config

    from common.checkpoint import Checkpoint

PLACE = "unpack ADEChallengeData2016.zip so that images and annotations, each with training and validation, lie"
EXAMPLES = """
make segmentation-ade20k METHOD=simsiam_gsg
make segmentation-ade20k METHOD=all PROFILE=imagenet DATA=/data GPUS=8 RESUME=1
make test-segmentation PROFILE=imagenet ARGS='--single-scale'
"""
SINGLE_SCALE = {"evaluation": "single-scale", "test_dataloader.dataset.pipeline.2.scales": [(1000, 450)]}


def evaluate(job: jobs.Finetuning) -> None:
    """Finetune one checkpoint, test and record it; then save the predictions for the figure."""
    from common.mmlab.finetune import Finetune
    from segmentation import predictions, preflight

    check_keys(job.config, name=job.title, register=register)
    run = Finetune(job)

    def measure(job: jobs.Finetuning, checkpoint: "Checkpoint") -> Measured:
        run.check(checkpoint, f"{make_data(job.layout, job.folders.data)}, or {PLACE}", preflight.check)
        run.fit(checkpoint)
        run.train()
        scores = run.test()
        metrics = {name: scores[name] for name in ("mIoU", "aAcc")}
        return run.measured(metrics, {"IoU_per_class": scores["IoU_per_class"]}, facts(run.runner.cfg))

    run.record(measure, predictions.save)


def products(work_dir: Path) -> Iterator[Path]:
    """Yield every file that a finished run leaves in `work_dir`: the index, and the predictions if it is there."""
    folder = work_dir / "predictions"
    yield folder / INDEX
    with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):  # it is missing or damaged
        for image in json.loads((folder / INDEX).read_text(encoding="utf-8"))["images"]:
            yield folder / f"{Path(image).stem}.png"


def facts(config: "Config") -> dict[str, Any]:
    """Return what the paper leaves open: the test's scales, (longest, shorter) side, and the label of padding."""
    return {
        "test_scales": [list(scale) for scale in config.test_dataloader.dataset.pipeline[-1].scales],
        "padding_label": config.model.data_preprocessor.seg_pad_val,
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Finetune every checkpoint that `argv` (default: sys.argv) names."""
    parser = jobs.parser("segmentation.train", __doc__.splitlines()[0], EXAMPLES)
    parser.add_argument(
        "--single-scale",
        action="store_true",
        help="test at one scale, a shorter side of 450, not the paper's several",
    )
    parser.add_argument(
        "--ignored", default=255, type=cli.whole("--ignored", 0, 255), help="the label of --data-root that is no class"
    )
    args = parser.parse_args(argv)
    cli.announce("segmentation.train", args, runs=args.runs)
    if args.single_scale and args.profile == "demo":
        raise UserError("--single-scale is for PROFILE=imagenet; the demo is tested at one scale as it is")
    runs = jobs.resolve(
        args,
        "segmentation",
        "ade20k",
        configs=Path(__file__).parent / "configs",
        register=register,
        variant="single-scale" if args.single_scale else None,
        options=SINGLE_SCALE if args.single_scale else {},
        products=products,
        use_folder=partial(use_folder, ignored=args.ignored),
    )
    for job in todo(runs):
        evaluate(job)


if __name__ == "__main__":
    cli.run(main)
