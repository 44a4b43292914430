"""The pictures of segmentation and detection, as far as there is something to show: `python -m analysis.pictures`."""

from analysis import detections, figures
from analysis.products import arguments
from common import cli
from common.errors import UserError

MODULE = "analysis.pictures"


def main(argv: list[str] | None = None) -> None:
    """Draw what can be drawn and say what is left out. Raises UserError when that is all."""
    args = arguments(MODULE, __doc__ or "", argv)
    missing = []
    for build in (figures.build, detections.build):
        try:
            build(args)
        except UserError as error:
            missing.append(str(error))
    if len(missing) == 2:
        raise UserError("; ".join(missing))
    for line in missing:
        print(f"left out: {line}", flush=True)


if __name__ == "__main__":
    cli.run(main)
