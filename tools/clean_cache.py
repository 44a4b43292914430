"""List and remove the cached features of all runs; whoever needs them extracts them again."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from common import cli
from common.errors import UserError

EXAMPLES = """
make clean-cache
make clean-cache ARGS='--runs /scratch/runs'
"""
CACHES = ("*/features", "study/*/*/*/features")  # below the folder of runs
RUNNING = 3600  # seconds: a pass that was interrupted is kept so long, for it may still be running


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = cli.Parser("tools.clean_cache", __doc__ or "", EXAMPLES)
    parser.add_argument("--runs", type=cli.path, help="where logs and resumable states live; by default runs")
    runs = parser.parse_args(argv).runs
    if runs is not None and not runs.is_dir():
        raise UserError(f"--runs {runs} is not a folder; correct it")
    for file in cached(runs or Path("runs")):
        print(f"removed: {file}, {file.stat().st_size} bytes", flush=True)
        file.unlink()


def cached(runs: Path) -> Iterator[Path]:
    """Yield the files of features that no pass is writing."""
    for folder in (folder for pattern in CACHES for folder in sorted(runs.glob(pattern))):
        yield from sorted(folder.glob("*.npy"))
        parts = sorted((*folder.glob(".*.part"), *folder.glob(".*.sums")))
        yield from (file for file in parts if time.time() - file.stat().st_mtime > RUNNING)


if __name__ == "__main__":
    cli.run(main, interrupted="the same command continues")
