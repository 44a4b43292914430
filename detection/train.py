"""Finetune Faster R-CNN from pretrained backbones and record AP, AP50 and AP75 (paper, D.2).

`make detection-voc`, `make detection-coco`, or `python -m detection.train --dataset voc`.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from common import cli
from common.keys import check_keys
from common.mmlab import jobs
from common.run import Measured, todo
from common.sources import make_data
from detection import PREDICTIONS, register
from detection.folder import use_folder

if TYPE_CHECKING:
    from common.checkpoint import Checkpoint

DATASETS = ("voc", "coco")
METRICS = ("AP", "AP50", "AP75")
PLACE = {
    "voc": "unpack VOCtrainval_06-Nov-2007.tar, VOCtest_06-Nov-2007.tar and VOCtrainval_11-May-2012.tar so that "
    "VOC2007 and VOC2012, each with JPEGImages, Annotations and ImageSets/Main, lie",
    "coco": "unpack train2017.zip, val2017.zip and annotations_trainval2017.zip",
}
# detectron2's FREEZE_AT=4: the stem and all stages but the last. An option of ours; the paper finetunes.
FROZEN = {"model.backbone.frozen_stages": 3}
EXAMPLES = """
make detection-voc METHOD=simsiam_gsg
make detection-coco METHOD=all PROFILE=imagenet DATA=/data GPUS=8 RESUME=1
make test-detection DATASET=voc CHECKPOINT=resnet50.pth NAME=mine PROFILE=imagenet
"""


def evaluate(job: jobs.Finetuning) -> None:
    """Finetune one checkpoint, test and record it; then save the predictions for the figure."""
    register()
    from common.mmlab.finetune import Finetune
    from detection import annotations, predictions

    check_keys(job.config, name=job.title, register=register)
    run, layout = Finetune(job), job.layout

    def measure(job: jobs.Finetuning, checkpoint: "Checkpoint") -> Measured:
        run.check(checkpoint, f"{make_data(layout, job.folders.data)}, or {PLACE[layout]}", annotations.check)
        run.fit(checkpoint)
        run.train()
        scores = run.test()
        metrics = {name: scores[f"{layout}/{name}"] for name in METRICS}
        return run.measured(metrics, details=per_class(scores, prefix=f"{layout}/AP_per_class/"))

    run.record(measure, predictions.save)


def per_class(scores: dict[str, float], *, prefix: str) -> dict[str, dict[str, float]]:
    """Return the record's `details`: the AP of every class, 0-100."""
    aps = {key.removeprefix(prefix): round(value, 4) for key, value in scores.items() if key.startswith(prefix)}
    return {"AP_per_class": aps}


def main(argv: Sequence[str] | None = None) -> None:
    """Finetune every checkpoint that `argv` (default: sys.argv) names."""
    parser = jobs.parser("detection.train", __doc__.splitlines()[0], EXAMPLES)
    parser.add_argument("--dataset", default="voc", type=cli.one_of("DATASET", DATASETS), help=" or ".join(DATASETS))
    parser.add_argument("--frozen", action="store_true", help="train only the last stage of the backbone")
    args = parser.parse_args(argv)
    cli.announce("detection.train", args, runs=args.runs)
    runs = jobs.resolve(
        args,
        "detection",
        args.dataset,
        configs=Path(__file__).parent / "configs",
        register=register,
        variant="frozen" if args.frozen else None,
        options=FROZEN if args.frozen else {},
        products=lambda work_dir: [work_dir / PREDICTIONS],
        use_folder=partial(use_folder, layout=args.dataset),
    )
    for job in todo(runs):
        evaluate(job)


if __name__ == "__main__":
    cli.run(main)
