"""The validation curve of each data set's weight-decay sweep, a line a model: `python -m analysis.sweeps`."""

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.names import DATASETS, METRIC_NAMES, model_colour, model_name, model_order
from analysis.products import arguments, figure_files, folder, make_once
from common import cli
from common.errors import UserError
from common.files import sha256_of_file
from common.records import key_of, read_records

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MODULE = "analysis.sweeps"


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    build(arguments(MODULE, __doc__ or "", argv))


def build(args: argparse.Namespace) -> list[Path]:
    """Draw `sweep-<dataset>` for every data set with records of the seed, unless up to date; return the PNGs.

    Raises UserError when no record holds a curve.
    """
    curves = _read(args)
    if not curves:
        raise UserError(
            f"no validation curve of seed {args.seed} in {args.results / args.profile}; "
            f"make them with `make transfer-all PROFILE={args.profile}`"
        )
    made = []
    for dataset, of_model in sorted(curves.items()):
        stem = folder(args) / f"sweep-{dataset}"
        shown = {model: of_model[model] for model in model_order(of_model)}
        inputs = [sha256_of_file(Path(__file__)), *(repr((m, r["protocol"], r["details"])) for m, r in shown.items())]
        files = [*figure_files(stem), stem.with_suffix(".svg")]
        make_once(folder(args), stem.name, inputs, files, partial(_make, shown, stem))
        made.append(figure_files(stem)[0])
    return made


def models(args: argparse.Namespace) -> list[str]:
    """Return the models that any of the figures shows, in their order."""
    return model_order(model for of_model in _read(args).values() for model in of_model)


def _read(args: argparse.Namespace) -> dict[str, dict[str, dict[str, Any]]]:
    """Return data set -> model -> record, of those of the seed that hold a curve. Other commands name bad files."""
    curves: dict[str, dict[str, dict[str, Any]]] = {}
    for record in read_records(args.results, args.profile, []):
        if record["task"] == "recognition" and record["seed"] == args.seed and "sweep" in record.get("details", {}):
            curves.setdefault(key_of(record).stem, {})[record["model"]] = record
    return curves


def _make(records: dict[str, dict[str, Any]], stem: Path) -> None:
    from analysis.style import plt, save, save_for_page

    figure, axis = plt.subplots(figsize=(3, 2.4), layout="constrained")
    _draw(axis, records)
    axis.legend(fontsize=7)
    save(figure, stem)
    figure, axis = plt.subplots(figsize=(3, 2.2), layout="constrained")
    _draw(axis, records)
    save_for_page(figure, stem.with_suffix(".svg"))


def _draw(axis: "Axes", records: dict[str, dict[str, Any]]) -> None:
    for position, (model, record) in enumerate(records.items()):
        curve, protocol = record["details"]["sweep"], record["protocol"]
        style: dict[str, Any] = {"color": model_colour(model, position), "linestyle": "-" if "gsg" in model else "--"}
        axis.plot(curve["weight_decay"], curve["val"], label=model_name(model), linewidth=1.4, **style)
        points = zip(curve["weight_decay"], curve["val"], curve["converged"], strict=True)
        hollow = [(wd, value) for wd, value, converged in points if not converged]
        if hollow:  # a small open circle: the fit stopped before it converged
            axis.plot(*zip(*hollow, strict=True), "o", markersize=2.5, markerfacecolor="white", color=style["color"])
        axis.plot(protocol["weight_decay"], protocol["validation"], "D", markersize=4.5, color=style["color"])
    first = next(iter(records.values()))
    metric, dataset = first["protocol"]["metric"], first["dataset"]
    axis.set(
        xscale="log",
        xlabel="weight decay (diamond: chosen)",
        ylabel=f"validation {METRIC_NAMES.get(metric, metric)} (%)",
        title=DATASETS.get(dataset, dataset),
    )


if __name__ == "__main__":
    cli.run(main)
