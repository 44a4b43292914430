"""Training curves of pretraining, from the logs under `runs/`: `python -m analysis.curves`.

Loss, std of the projections (its fall to zero is the collapse) and kNN accuracy, against epochs and wall-clock time.
"""

import json
from pathlib import Path
from typing import Any

from analysis.names import model_order
from analysis.products import digest_of_code, digest_of_files, figure_files, make_once
from analysis.scope import Scope, resolve
from common import cli
from common.errors import UserError

PANELS = {
    "loss": "Loss",
    "std": "Std of projections",
    "knn": "kNN accuracy (%)",
}
AXES = {"epoch": "epoch", "seconds": "wall-clock time"}
Curves = dict[str, list[dict[str, Any]]]


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    build(resolve("analysis.curves", (__doc__ or "").splitlines()[0], argv))


def build(scope: Scope) -> Path:
    """Draw the figure unless it is up to date, and return its PNG. Raises UserError without logs."""
    curves, logs = read_curves(scope)
    stem = scope.folder / "curves"
    panels = page_files(curves, stem)
    inputs = [digest_of_code("curves"), *curves, digest_of_files(logs)]
    files = [*figure_files(stem), *panels]

    def make() -> None:
        from analysis import drawing

        drawing.curves(curves, panels, PANELS, stem)

    make_once(scope.folder, "curves", inputs, files, make)
    return files[0]


def read_curves(scope: Scope) -> tuple[Curves, list[Path]]:
    """Return the epochs of each model of METHOD that has any, and their logs. Raises UserError if none has."""
    root = scope.runs_folder / "pretrain"
    logs = {model: path for model, path in find_logs(root, scope.seed).items() if model in scope.method}
    curves = {model: lines for model, path in logs.items() if (lines := read_epochs(path))}
    if not curves:
        raise UserError(f"no training logs in {root}; make them with `make pretrain PROFILE={scope.profile}`")
    return curves, [logs[model] for model in curves]


def page_files(curves: Curves, stem: Path) -> dict[Path, tuple[str, str]]:
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
    for path in root.glob("*/log.jsonl"):
        model, _, number = path.parent.name.partition("-seed")
        if (number or "0") == str(seed):
            logs[model] = path
    return {model: logs[model] for model in model_order(logs)}


def read_epochs(path: Path) -> list[dict[str, Any]]:
    """Return the lines that end an epoch, without a last line that a kill cut short."""
    epochs = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if "epoch" in line:
            epochs.append(line)
    return epochs


if __name__ == "__main__":
    cli.run(main)
