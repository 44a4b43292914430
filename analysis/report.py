"""One static page of everything a profile has: `python -m analysis.report`.

Tables, figures, training curves and the provenance of every number. What is missing is left out with a note.
"""

import argparse
import base64
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from analysis import curves, figures, tsne
from analysis.names import DATASETS, METRIC_NAMES, model_name, model_order
from analysis.products import arguments, digest_of_files, folder, make_once, not_comparable
from common import cli
from common.cli import UserError
from common.files import atomic_write
from common.records import TASKS, RecordKey, read_records

MODULE = "analysis.report"
TEMPLATE = "report.html.j2"


@dataclass(frozen=True)
class Figure:
    """A figure of the page: its PNG, or the note why there is none."""

    title: str
    caption: str
    alt: str
    png: Path | None
    note: str = ""

    @property
    def source(self) -> str:
        """The image as a data URI, so that the page is one file."""
        return "" if self.png is None else "data:image/png;base64," + base64.b64encode(self.png.read_bytes()).decode()


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    build(arguments(MODULE, __doc__ or "", argv))


def build(args: argparse.Namespace) -> Path:
    """Make the figures, tables and the page as far as their inputs changed, and return the page."""
    shown = [_curves(args), _tsne(args), _segmentation(args)]
    page = folder(args) / "index.html"
    here = Path(__file__).parent
    sources = [*sorted(here.glob("*.py")), here / TEMPLATE, *(figure.png for figure in shown if figure.png)]
    records = sorted((args.results / args.profile).rglob("*.json"))
    inputs = [digest_of_files([*sources, *records]), *(figure.note for figure in shown), str(args.results)]
    make_once(folder(args), "page", inputs, [page], lambda: _write(page, args, shown))
    return page


def provenance(record: dict[str, Any], results: Path) -> dict[str, Any]:
    """Return a record as the page's provenance table shows it."""
    variant = record["protocol"].get("variant")
    key = RecordKey(**{k: record[k] for k in ("profile", "task", "model", "dataset", "seed")}, variant=variant)
    return {
        **record,
        **record["provenance"],
        "display": model_name(record["model"]),
        "data": DATASETS.get(record["dataset"], record["dataset"]) + (f" ({variant})" if variant else ""),
        "values": [(METRIC_NAMES.get(name, name), f"{value:.2f}") for name, value in record["metrics"].items()],
        "path": str(key.path(results)),
    }


def _write(page: Path, args: argparse.Namespace, shown: list[Figure]) -> None:
    import jinja2

    from analysis import tables

    try:
        made, note = tables.build(args), ""
    except UserError as error:
        made, note = [], str(error)
    template = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    ).get_template(TEMPLATE)
    text = template.render(
        profile=args.profile,
        warning=not_comparable(args.profile),
        tables=made,
        tables_note=note,
        figures=shown,
        records=[provenance(record, args.results) for record in _in_order(read_records(args.results, args.profile))],
    )
    atomic_write(page, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _in_order(records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the records as the tables have them: by task, then data set, model and seed."""
    found = list(records)
    models = model_order(record["model"] for record in found)
    return sorted(found, key=lambda r: (TASKS.index(r["task"]), r["dataset"], models.index(r["model"]), r["seed"]))


def _curves(args: argparse.Namespace) -> Figure:
    return _figure(
        partial(curves.build, args),
        title="Pretraining",
        caption="A point an epoch. The standard deviation is of the L2-normalised projections: near 0, the network has "
        "collapsed.",
        alt=lambda _: "Line charts over the epochs, one line a method: " + ", ".join(curves.PANELS.values()),
    )


def _tsne(args: argparse.Namespace) -> Figure:
    def alt(png: Path) -> str:
        scores = json.loads(png.with_suffix(".json").read_text())
        each = "; ".join(f"{model_name(model)}: silhouette {score:.3f}" for model, score in scores.items())
        return f"Scatter plots of the test images' features, coloured by class. {each}"

    return _figure(
        partial(tsne.build, args),
        title="t-SNE of the test features",
        caption=f"Perplexity {tsne.PERPLEXITY}, the same seed for all panels. The silhouette score is of the features "
        "themselves: higher means better separated classes.",
        alt=alt,
    )


def _segmentation(args: argparse.Namespace) -> Figure:
    return _figure(
        partial(figures.build, args),
        title="Segmentation",
        caption="The first validation images, their ground truth and each method's prediction. Black is unlabelled.",
        alt=lambda _: "Grid of images: a row each for an image, its ground truth and each method's predicted classes",
    )


def _figure(build: Callable[[], Path], title: str, caption: str, alt: Callable[[Path], str]) -> Figure:
    try:
        png = build()
    except UserError as error:
        print(f"left out: {error}", flush=True)
        return Figure(title, caption, "", None, str(error))
    return Figure(title, caption, alt(png), png)


if __name__ == "__main__":
    cli.run(main)
