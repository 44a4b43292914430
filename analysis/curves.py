"""Training curves of pretraining, from the logs under `runs/`.

Loss, std of the projections (its fall to zero is the collapse) and kNN accuracy, against epochs and wall-clock time.
"""

from pathlib import Path
from typing import Any, NamedTuple

from analysis.names import model_order
from analysis.products import digest_of_code, digest_of_files, figure_files, make_once
from analysis.records import report_problems
from analysis.scope import Scope, resolve
from common import cli
from common.errors import UserError
from common.log import LOG, read_log

PANELS = {
    "loss": "Loss",
    "std": "Std of projections",
    "knn": "kNN accuracy (%)",
}
LEAST = 3  # epochs that make a curve
AXES = {"epoch": "epoch", "seconds": "wall-clock time"}


class Curves(NamedTuple):
    """The epochs of each model that has any, their logs, and one line for each log that is damaged."""

    epochs: dict[str, list[dict[str, Any]]]
    logs: list[Path]
    problems: list[str]


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    scope = resolve(
        "analysis.curves",
        (__doc__ or "").splitlines()[0],
        argv,
        "make curves\nmake curves METHOD='byol byol_gsg' PROFILE=imagenet",
        unused="data checkpoints results",
    )
    build(scope)
    report_problems(read_curves(scope).problems)


def build(scope: Scope) -> Path:
    """Draw the figure unless it is up to date, and return its PNG. Raises UserError without logs."""
    epochs, logs, problems = read_curves(scope)
    if not epochs:
        remedy = f"make them with `make pretrain PROFILE={scope.profile}`"
        raise UserError(problems[0] if problems else f"no training logs in {scope.runs_folder / 'pretrain'}; {remedy}")
    stem = scope.folder / "curves"
    panels = page_files(epochs, stem)
    inputs = [digest_of_code("curves"), *epochs, digest_of_files(logs)]
    files = [*figure_files(stem), *panels]

    def make() -> None:
        from analysis import drawing

        drawing.curves(epochs, panels, PANELS, stem, LEAST)

    make_once(scope.folder, "curves", inputs, files, make)
    return files[0]


def read_curves(scope: Scope) -> Curves:
    """Return the epochs of each model of METHOD that has any, from the logs of the seed."""
    curves = Curves({}, [], [])
    for model, path in find_logs(scope.runs_folder / "pretrain", scope.seed).items():
        if model in scope.method:
            epochs, problem = read_epochs(path)
            curves.problems.extend([problem] if problem else [])
            if epochs:
                curves.epochs[model] = epochs
                curves.logs.append(path)
    return curves


def page_files(curves: dict[str, list[dict[str, Any]]], stem: Path) -> dict[Path, tuple[str, str]]:
    """Return the SVG of each panel that has anything to show, with the panel's key and axis, row by row."""
    lines = [line for epochs in curves.values() for line in epochs]
    return {
        stem.with_name(f"{stem.name}-{key}-{axis}.svg"): (key, axis)
        for axis in AXES
        for key in PANELS
        if any(key in line and axis in line for line in lines)
    }


def find_logs(root: Path, seed: int) -> dict[str, Path]:
    """Return model -> log of the runs with this seed, whose folders are `<model>` (seed 0) or `<model>-seed<k>`."""
    logs = {}
    for path in root.glob(f"*/{LOG}"):
        model, _, number = path.parent.name.partition("-seed")
        if (number or "0") == str(seed):
            logs[model] = path
    return {model: logs[model] for model in model_order(logs)}


def read_epochs(path: Path) -> tuple[list[dict[str, Any]], str]:
    """Return the lines that end an epoch, in order, and one line for the user if the log is damaged."""
    try:
        lines, problem = read_log(path, (*AXES, *PANELS))
    except OSError as error:
        lines, problem = [], error.strerror or str(error)
    epochs = {line["epoch"]: line for line in lines if "epoch" in line and any(key in line for key in PANELS)}
    ended = sum("epoch" in line for line in lines)
    if not problem and len(epochs) < ended:
        problem = f"of {ended} epochs, {ended - len(epochs)} occur twice or have none of {', '.join(PANELS)}"
    if problem:
        remedy = f"what is left is drawn; restore it, or pretrain {path.parent.name} again"
        problem = f"{path} is not a valid log: {problem}; {remedy}"
    return [epochs[epoch] for epoch in sorted(epochs)], problem


if __name__ == "__main__":
    cli.run(main)
