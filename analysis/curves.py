"""Training curves of pretraining, from the logs under `runs/`: loss, collapse and kNN accuracy per epoch."""

import argparse
import json
from pathlib import Path
from typing import Any

from analysis.names import model_colour, model_name, model_order
from analysis.products import digest_of_files, figure_files, folder, make_once
from common.cli import UserError
from common.files import sha256_of_file

PANELS = {
    "loss": "Loss",
    "std": "Std of normalised projections",
    "knn": "kNN accuracy (%)",
}


def build(args: argparse.Namespace) -> Path:
    """Draw the figure unless it is up to date, and return its PNG. Raises UserError without logs."""
    root = args.runs / args.profile / "pretrain"
    logs = find_logs(root, args.seed)
    curves = {model: lines for model, path in logs.items() if (lines := read_epochs(path))}
    if not curves:
        raise UserError(f"no training logs in {root}; make them with `make pretrain PROFILE={args.profile}`")
    stem = folder(args) / "curves"
    inputs = [sha256_of_file(Path(__file__)), *curves, digest_of_files(logs.values())]
    make_once(folder(args), "curves", inputs, figure_files(stem), lambda: _make(curves, stem))
    return figure_files(stem)[0]


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


def _make(curves: dict[str, list[dict[str, Any]]], stem: Path) -> None:
    from analysis.style import plt, save

    shown = {key: title for key, title in PANELS.items() if any(key in line for run in curves.values() for line in run)}
    figure, axes = plt.subplots(1, len(shown), figsize=(4 * len(shown), 3.4), squeeze=False, layout="constrained")
    for axis, (key, title) in zip(axes.flat, shown.items(), strict=True):
        for position, (model, lines) in enumerate(curves.items()):
            points = [(line["epoch"], line[key]) for line in lines if key in line]
            if points:
                style = {"color": model_colour(model, position), "label": model_name(model), "linewidth": 2}
                # A marker shows a curve of one point, dashes tell the base method from its GSG variant.
                marker, dashes = ("o" if len(points) < 15 else "", "-" if "gsg" in model else "--")
                axis.plot(*zip(*points, strict=True), marker=marker, markersize=4, linestyle=dashes, **style)
        axis.set(title=title, xlabel="epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
    handles = {label: h for axis in axes.flat for h, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4)
    save(figure, stem)
