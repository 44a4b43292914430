"""Draw what a finished detector finds in a folder of images: `make detect IMAGES=folder NAME=label`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import ImageDraw

from common import cli
from common.images import read_image
from common.mmlab import jobs
from detection import register


def main(argv: Sequence[str] | None = None) -> None:
    """Draw the boxes of every run that the arguments name, and list them in JSON."""
    parser = jobs.picture_parser(
        "detection.detect", __doc__.splitlines()[0], "make detect IMAGES=photos DATASET=voc NAME=mine"
    )
    parser.add_argument(
        "--score-threshold",
        default=0.5,
        type=cli.share("--score-threshold"),
        help="leave out boxes of a lower score; networks give none below 0.05",
    )
    args = parser.parse_args(argv)
    cli.announce("detection.detect", args, runs=args.runs, images=args.images, reports=args.reports)
    register()
    from common.mmlab import predict

    def show(network: predict.Network, path: Path, sample: Any) -> predict.Shown:
        return picture(path, sample, network.classes, args.score_threshold)

    names = [args.name] if args.name else args.method
    work_dirs = list(predict.runs(args.runs / args.profile, "detection", names, args.seed, args.dataset))
    predict.draw(work_dirs, args.images, args.reports / args.profile, show)


def picture(path: Path, sample: Any, classes: Sequence[str], threshold: float) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the upright image with its boxes of at least this score, and the list of them, the best first.

    A box is its borders x0, y0, x1, y1 in the image's pixels, counted from 0.
    """
    image = read_image(path, upright=True)
    pen = ImageDraw.Draw(image)
    found = sample.pred_instances
    found = found[found.scores >= threshold]
    found = found[found.scores.argsort(descending=True)]
    boxes = [
        {"box": [round(side, 2) for side in box], "class": classes[label], "score": round(score, 4)}
        for box, label, score in zip(found.bboxes.tolist(), found.labels.tolist(), found.scores.tolist(), strict=True)
    ]
    width = max(1, max(image.size) // 250)
    for box, label in reversed(list(zip(boxes, found.labels.tolist(), strict=True))):  # the best on top
        colour = f"hsl({label * 137 % 360}, 85%, 40%)"  # steps of 137 degrees keep neighbours apart
        x0, y0, x1, y1 = box["box"]
        pen.rectangle((x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)), outline=colour, width=width)
        text = f"{box['class']} {box['score']:.2f}"
        pen.rectangle(pen.textbbox((x0, y0), text), fill=colour)
        pen.text((x0, y0), text, fill="white")
    return {".png": image}, {"width": image.width, "height": image.height, "detections": boxes}


if __name__ == "__main__":
    cli.run(main)
