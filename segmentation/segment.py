"""Draw how a finished network segments a folder of images: `make segment IMAGES=folder NAME=label`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from common import cli
from common.images import read_image
from common.mmlab import jobs
from segmentation import register


def main(argv: Sequence[str] | None = None) -> None:
    """Draw the class maps of every run that the arguments name, and list the classes' shares in JSON."""
    parser = jobs.picture_parser(
        "segmentation.segment", __doc__.splitlines()[0], "make segment IMAGES=photos NAME=mine"
    )
    parser.add_argument(
        "--opacity", default=0.6, type=cli.share("--opacity"), help="of the classes' colours over the image, 0 to 1"
    )
    args = parser.parse_args(argv)
    cli.announce("segmentation.segment", args, runs=args.runs, images=args.images, reports=args.reports)
    register()
    from common.mmlab import predict

    def show(network: predict.Network, path: Path, sample: Any) -> predict.Shown:
        return picture(path, sample, network.classes, network.palette or [], args.opacity)

    names = [args.name] if args.name else args.method
    work_dirs = list(predict.runs(args.runs / args.profile, "segmentation", names, args.seed, args.dataset))
    predict.draw(work_dirs, args.images, args.reports / args.profile, show)


def picture(
    path: Path, sample: Any, classes: Sequence[str], palette: Sequence[Sequence[int]], opacity: float
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the image below the colours of its classes, the class indices, and each class's percentage of pixels."""
    image = read_image(path)
    indices = sample.pred_sem_seg.data.squeeze(0).numpy()  # (H, W)
    colours = Image.fromarray(np.asarray(palette, dtype=np.uint8)[indices])
    shares = np.bincount(indices.ravel(), minlength=len(classes)) / indices.size
    percent = {classes[k]: round(100 * float(shares[k]), 2) for k in np.argsort(-shares, kind="stable") if shares[k]}
    pictures = {".png": Image.blend(image, colours, opacity), ".classes.png": Image.fromarray(indices.astype(np.uint8))}
    return pictures, {"percent": percent}


if __name__ == "__main__":
    cli.run(main)
