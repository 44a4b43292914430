"""Training curves of pretraining, from the logs under `runs/`: `python -m analysis.curves`.

Loss, std of the projections (its fall to zero is the collapse) and kNN accuracy, against epochs and wall-clock time.
"""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.names import model_colour, model_name, model_order
from analysis.products import arguments, digest_of_files, figure_files, folder, make_once
from common import cli
from common.errors import UserError
from common.files import sha256_of_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MODULE = "analysis.curves"
PANELS = {
    "loss": "Loss",
    "std": "Std of projections",
    "knn": "kNN accuracy (%)",
}
AXES = {"epoch": "epoch", "seconds": "wall-clock time"}
UNITS = (("seconds", 1), ("minutes", 60), ("hours", 3600))
Curves = dict[str, list[dict[str, Any]]]


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    build(arguments(MODULE, (__doc__ or "").splitlines()[0], argv))


def build(args: argparse.Namespace) -> Path:
    """Draw the figure unless it is up to date, and return its PNG. Raises UserError without logs."""
    curves, logs = read_curves(args)
    stem = folder(args) / "curves"
    inputs = [sha256_of_file(Path(__file__)), *curves, digest_of_files(logs)]
    files = [*figure_files(stem), *page_files(curves, stem)]
    make_once(folder(args), "curves", inputs, files, lambda: _make(curves, stem))
    return files[0]


def read_curves(args: argparse.Namespace) -> tuple[Curves, list[Path]]:
    """Return the epochs of each model of METHOD that has some, and the logs. Raises UserError when none has."""
    root = args.runs / args.profile / "pretrain"
    logs = {model: path for model, path in find_logs(root, args.seed).items() if model in args.method}
    curves = {model: lines for model, path in logs.items() if (lines := read_epochs(path))}
    if not curves:
        raise UserError(f"no training logs in {root}; make them with `make pretrain PROFILE={args.profile}`")
    return curves, [logs[model] for model in curves]


def page_files(curves: Curves, stem: Path) -> dict[Path, tuple[str, str]]:
    """Return the SVG of each panel, for the page, with the panel's key and axis: those that have anything to show."""
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
    """Return the lines that end an epoch; a last line that a kill cut short is left out."""
    epochs = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if "epoch" in line:
            epochs.append(line)
    return epochs


def _make(curves: Curves, stem: Path) -> None:
    from analysis.style import WIDTH, plt, save, save_for_page

    panels = page_files(curves, stem)
    rows = [axis for axis in AXES if any(axis == shown for _, shown in panels.values())]
    keys = [key for key in PANELS if any(key == shown for shown, _ in panels.values())]
    size = (WIDTH, 1.75 * len(rows) + 0.3)
    figure, axes = plt.subplots(len(rows), len(keys), figsize=size, squeeze=False, layout="constrained")
    for row, axis in zip(axes, rows, strict=True):
        for place, key in zip(row, keys, strict=True):
            _draw(place, curves, key, axis)
    handles = {label: h for place in axes.flat for h, label in zip(*place.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4)
    save(figure, stem)
    for path, (key, axis) in panels.items():
        figure, place = plt.subplots(figsize=(3, 2.2), layout="constrained")
        _draw(place, curves, key, axis)
        save_for_page(figure, path)


def _draw(place: "Axes", curves: Curves, key: str, axis: str) -> None:
    longest = max((line.get(axis, 0) for lines in curves.values() for line in lines), default=0)
    unit, seconds = max((u for u in UNITS if u[1] * 2 <= longest), key=lambda u: u[1], default=UNITS[0])
    scale = seconds if axis == "seconds" else 1
    for position, (model, lines) in enumerate(curves.items()):
        points = [(line[axis] / scale, line[key]) for line in lines if key in line and axis in line]
        if points:
            style: dict[str, Any] = {"color": model_colour(model, position), "label": model_name(model)}
            # A marker shows a curve of one point, dashes tell the base method from its GSG variant.
            style |= {"linewidth": 1.4, "linestyle": "-" if "gsg" in model else "--"}
            place.plot(*zip(*points, strict=True), marker="o" if len(points) < 15 else "", markersize=3, **style)
    place.set_title(PANELS[key], fontsize=8)
    place.set_xlabel(f"time ({unit})" if axis == "seconds" else "epoch")
    if axis == "epoch":
        place.locator_params(axis="x", integer=True)


if __name__ == "__main__":
    cli.run(main)
