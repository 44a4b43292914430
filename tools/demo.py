"""The whole chain on embedded data: every stage in turn, each a command of its own.

make demo
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from common import cli
from common.names import UNTRAINED
from tools.stages import peak_memory, run

METHODS = f"{UNTRAINED} simsiam simsiam_gsg"
# Of each stage, on any machine: a sum in another order differs in its last bits, and training magnifies that.
THREADS = 2
ENVIRONMENT = {
    **{f"{library}_NUM_THREADS": str(THREADS) for library in ("OMP", "MKL")},
    **{f"{library}_DYNAMIC": "FALSE" for library in ("OMP", "MKL")},  # nor fewer where there are fewer cores
    "OPENBLAS_NUM_THREADS": "1",  # it never takes more threads than there are cores
}
# Stage, module, arguments. Stages that train or evaluate a checkpoint take METHODS; those that train resume.
STAGES: tuple[tuple[str, list[str]], ...] = (
    ("pretrain", ["pretrain.train", "--method", METHODS, "--resume"]),
    ("knn", ["pretrain.knn", "--method", METHODS]),
    ("linear", ["pretrain.linear", "--method", METHODS, "--resume"]),
    ("transfer", ["transfer.run", "--method", METHODS, "--dataset", "all"]),
    ("detection", ["detection.train", "--method", METHODS, "--dataset", "voc", "--resume"]),
    ("segmentation", ["segmentation.train", "--method", METHODS, "--resume"]),
    ("report", ["analysis.report"]),
    ("tables", ["analysis.tables"]),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Run every stage that is not done yet; print the tables, the times and the page's address at the end."""
    parser = cli.Parser(
        "tools.demo", "the whole chain on embedded data", "make demo\nmake demo DATA=/tmp/data OVERWRITE=1"
    )
    parser.add_argument("--data", default="data", type=cli.path, help="root folder of the data sets")
    parser.add_argument("--overwrite", action="store_true", help="replace runs and results of other settings")
    args = parser.parse_args(argv)
    print(f"{THREADS} threads, whatever the machine has, so that the numbers do not depend on it", flush=True)
    begun = time.monotonic()
    times: list[tuple[str, float]] = []
    for number, (stage, command) in enumerate(STAGES, start=1):
        overwrite = ["--overwrite"] if args.overwrite and "--resume" in command else []  # the stages that train
        words = [*command, *overwrite, "--profile", "demo", "--data", str(args.data)]
        outcome = run(f"{number}/{len(STAGES)} {stage}", words, ENVIRONMENT)
        if outcome.code:
            sys.exit(outcome.code)
        times.append((stage, outcome.seconds))
    print("\nstage          seconds")
    for stage, seconds in times:
        print(f"{stage:<14} {seconds:7.1f}")
    print(f"{'all':<14} {time.monotonic() - begun:7.1f}   {peak_memory()}")
    print(f"\nthe page: {Path('reports/demo/index.html').resolve()}", flush=True)


if __name__ == "__main__":
    cli.run(main)
