"""The validation curves of each data set's weight-decay sweep, one line per model."""

from functools import partial
from pathlib import Path
from typing import Any

from analysis.names import model_order
from analysis.products import digest_of_code, figure_files, make_once
from analysis.records import report_problems
from analysis.scope import Scope, resolve
from common import cli
from common.errors import UserError
from common.records import key_of, read_records

EXAMPLE = "python -m analysis.sweeps --profile imagenet --seed 1"
Curves = dict[str, dict[str, dict[str, Any]]]  # data set -> model -> record


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    scope = resolve("analysis.sweeps", __doc__ or "", argv, EXAMPLE, unused="method data checkpoints runs")
    build(scope)
    report_problems(read_curves(scope)[1])


def build(scope: Scope) -> list[Path]:
    """Draw `sweep-<dataset>` for every data set with records of the seed, unless up to date; return the PNGs.

    Raises UserError when no record holds a curve.
    """
    curves, problems = read_curves(scope)
    if problems and not curves:
        raise UserError(problems[0])
    if not curves:
        raise UserError(
            f"no validation curve of seed {scope.seed} in {scope.results / scope.profile}; "
            f"make them with `make transfer-all PROFILE={scope.profile}`"
        )
    made = []
    for dataset, of_model in sorted(curves.items()):
        stem = scope.folder / f"sweep-{dataset}"
        shown = {model: of_model[model] for model in model_order(of_model)}
        inputs = [digest_of_code("sweeps"), *(repr((m, r["protocol"], r["details"])) for m, r in shown.items())]
        files = [*figure_files(stem), stem.with_suffix(".svg")]
        make_once(scope.folder, stem.name, inputs, files, partial(_make, shown, stem))
        made.append(files[0])
    return made


def models(scope: Scope) -> list[str]:
    """Return the models that any of the figures shows, in their order."""
    return model_order(model for of_model in read_curves(scope)[0].values() for model in of_model)


def read_curves(scope: Scope) -> tuple[Curves, list[str]]:
    """Return the records of the seed that hold a curve, and one line for each whose curve cannot be drawn.

    The tables name the files that are not records.
    """
    curves: Curves = {}
    problems = []
    for record in read_records(scope.results, scope.profile)[0]:
        if record["task"] == "recognition" and record["seed"] == scope.seed and "sweep" in record.get("details", {}):
            if _is_whole(record["details"]["sweep"], record["protocol"]):
                curves.setdefault(key_of(record).stem, {})[record["model"]] = record
            else:
                path = key_of(record).path(scope.results)
                problems.append(f"{path} holds a sweep that is not whole; delete it and run its command again")
    return curves, problems


def _is_whole(sweep: Any, protocol: dict[str, Any]) -> bool:
    """Return whether a sweep has the numbers of each fit, and the protocol those of the chosen one."""
    try:
        fits = zip(sweep["weight_decay"], sweep["val"], sweep["converged"], strict=True)
        points = [(decay, value) for decay, value, _ in fits] + [(protocol["weight_decay"], protocol["validation"])]
        return all(decay > 0 and isinstance(value, int | float) for decay, value in points) and "metric" in protocol
    except (KeyError, TypeError, ValueError):
        return False


def _make(records: dict[str, dict[str, Any]], stem: Path) -> None:
    from analysis import drawing

    drawing.sweep(records, stem)


if __name__ == "__main__":
    cli.run(main)
