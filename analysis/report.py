"""One static page of everything a profile has: `python -m analysis.report`.

Tables, figures, training curves and the record of every number. What is missing is left out with a note.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from analysis import comparison, curves, detections, figures, geometry, protocol, sweeps, tsne
from analysis.comparison import Comparison, uri
from analysis.names import CLASS_COLOURS, METRIC_NAMES, benchmark_name, model_colour, model_name
from analysis.products import arguments, digest_of_files, folder, make_once, not_comparable
from analysis.records import in_order, report_problems
from common import cli
from common.errors import UserError
from common.files import atomic_write
from common.records import key_of, read_records

MODULE = "analysis.report"
SOURCES = ("report.html.j2", "report.css", "report.js")


@dataclass(frozen=True)
class Figure:
    """A figure of the page, of whatever kind: line charts, maps to look into, or pictures to compare.

    Without any of them, `note` says why.
    """

    id: str
    title: str
    caption: str
    alt: str = ""
    note: str = ""
    charts: list[tuple[str, list[str]]] = field(default_factory=list)  # heading, SVGs
    legend: list[tuple[str, str, bool]] = field(default_factory=list)  # name, colour, dashed
    maps: list["Map"] = field(default_factory=list)
    comparisons: dict[str, Comparison] = field(default_factory=dict)
    numbers: list[tuple[str, list[str]]] = field(default_factory=list)  # a small table: row, cells
    heads: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Map:
    """A t-SNE figure to look into: its JSON, the images' sheet and, for readers without scripts, its picture."""

    title: str
    content: dict[str, Any]
    sheet: str
    picture: str


@dataclass(frozen=True)
class Part:
    """A figure that the page may have: the files it consists of, made when asked for, and how the page shows them."""

    id: str
    title: str
    caption: str
    files: Callable[[argparse.Namespace], list[Path]]
    show: Callable[[list[Path], argparse.Namespace], dict[str, Any]]


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    problems: list[str] = []
    build(arguments(MODULE, (__doc__ or "").splitlines()[0], argv, more=tsne.add_arguments), problems)
    report_problems(problems)


def build(args: argparse.Namespace, problems: list[str]) -> Path:
    """Make the figures, tables and the page as far as their inputs changed, and return the page.

    Files that are no records are left out, and their lines join `problems`.
    """
    args = argparse.Namespace(**{**vars(args), "checkpoint": None, "name": None})
    made = [_made(part, args) for part in PARTS]
    page = folder(args) / "index.html"
    here = Path(__file__).parent
    files = [file for files, _ in made for file in files]
    records = sorted((args.results / args.profile).rglob("*.json"))
    sources = [*sorted(here.glob("*.py")), *(here / source for source in SOURCES)]
    notes = [note for _, note in made]
    inputs = [digest_of_files([*sources, *files, *records]), *notes, str(args.results)]
    make_once(folder(args), "page", inputs, [page], lambda: _write(page, args, made, problems))
    if not problems:  # of an up to date page, whose making has named none now
        problems += _problems(args)
    return page


def provenance(record: dict[str, Any], results: Path) -> dict[str, Any]:
    """Return a record as the page shows it."""
    key = key_of(record)
    about = {name: value for name, value in record.items() if name != "details"}
    return {
        **record["provenance"],
        "title": f"{model_name(record['model'])}, {benchmark_name(key.task, key.dataset, key.variant or '')}",
        "task": record["task"],
        "seed": record["seed"],
        "numbers": [(METRIC_NAMES.get(name, name), f"{value:.2f}") for name, value in record["metrics"].items()],
        "path": str(key.path(results)),
        "json": json.dumps(about, indent=1, ensure_ascii=False),
    }


def _write(page: Path, args: argparse.Namespace, made: list[tuple[list[Path], str]], problems: list[str]) -> None:
    import jinja2
    from markupsafe import Markup

    from analysis import render, tables

    found = in_order(read_records(args.results, args.profile, []))
    try:
        shown, note = tables.build(args, problems), ""
    except UserError as error:
        shown, note = [], str(error)
    here = Path(__file__).parent
    style, script = (Markup((here / source).read_text(encoding="utf-8")) for source in SOURCES[1:])  # noqa: S704
    template = jinja2.Environment(
        loader=jinja2.FileSystemLoader(here), autoescape=True, trim_blocks=True, lstrip_blocks=True
    ).get_template(SOURCES[0])
    records = [provenance(record, args.results) for record in found]
    places = {record["path"]: k for k, record in enumerate(records)}
    text = template.render(
        profile=args.profile,
        style=style,
        script=script,
        what=protocol.WHAT[args.profile],
        warning=not_comparable(args.profile),
        facts=protocol.facts(found),
        tables=shown,
        render=render,
        number=tables.number,
        head_groups=tables.head_groups,
        tables_note=note,
        figures=[_figure(part, *done, args) for part, done in zip(PARTS, made, strict=True)],
        records=records,
        numbers_of=lambda cell: [places[source] for source in cell.sources],
        class_colours=CLASS_COLOURS,
    )
    atomic_write(page, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _problems(args: argparse.Namespace) -> list[str]:
    problems: list[str] = []
    for _ in read_records(args.results, args.profile, problems):
        pass
    return problems


def _made(part: "Part", args: argparse.Namespace) -> tuple[list[Path], str]:
    """Return the files that a figure consists of, made if need be, or none and the reason."""
    try:
        return part.files(args), ""
    except UserError as error:
        print(f"left out: {error}", flush=True)
        return [], str(error)


def _figure(part: "Part", files: list[Path], note: str, args: argparse.Namespace) -> Figure:
    shown = {} if note else part.show(files, args)
    return Figure(part.id, part.title, part.caption, note=note, **shown)


def _curves(args: argparse.Namespace) -> list[Path]:
    png = curves.build(args)
    return [png, *curves.page_files(curves.read_curves(args)[0], png.with_suffix(""))]


def _geometry(args: argparse.Namespace) -> list[Path]:
    png = _heavy(geometry.build, "geometry", args)
    return [png, png.with_suffix(".svg"), png.with_suffix(".json")]


def _tsne(args: argparse.Namespace) -> list[Path]:
    shown = sorted(folder(args).glob("tsne-*.png"))  # of other data sets and checkpoints, by `make tsne`
    try:
        shown.insert(0, _heavy(tsne.build, "tsne", args))
    except UserError as error:
        if not shown:
            raise
        print(f"left out: {error}", flush=True)
    return [file.with_suffix(ending) for file in shown for ending in (".png", ".json", ".webp")]


def _heavy(build: Callable[[argparse.Namespace], Path], name: str, args: argparse.Namespace) -> Path:
    """Return what `build` makes; for ImageNet only what is there: a page must not cost hours by the way."""
    if args.profile != "imagenet":
        return build(args)
    png = folder(args) / f"{name}.png"
    if not png.is_file():
        raise UserError(f"{name} reads images through every checkpoint; make it with `make {name} PROFILE=imagenet`")
    return png


def _segmentation(args: argparse.Namespace) -> list[Path]:
    return [figures.build(args)]


def _show_curves(files: list[Path], args: argparse.Namespace) -> dict[str, Any]:
    found, _ = curves.read_curves(args)
    panels = curves.page_files(found, files[0].with_suffix(""))
    charts = []
    for axis, title in curves.AXES.items():
        of_axis = [path.read_text(encoding="utf-8") for path, (_, shown) in panels.items() if shown == axis]
        if of_axis:
            charts.append((f"Against {title}" + ("s" if axis == "epoch" else ""), of_axis))
    legend = [(model_name(m), model_colour(m, k), "gsg" not in m) for k, m in enumerate(found)]
    return {"charts": charts, "legend": legend, "alt": "Line chart of " + ", ".join(name for name, _, _ in legend)}


def _show_geometry(files: list[Path], args: argparse.Namespace) -> dict[str, Any]:
    content = json.loads(files[2].read_text(encoding="utf-8"))["checkpoints"]
    rows = []
    for name, found in content.items():
        model, _, seed = name.partition("-seed")
        title = model_name(model) + (f", seed {seed}" if seed else "")
        rows.append((title, [f"{found[key]:.3f}" for key in ("alignment", "uniformity")]))
    svg = files[1].read_text(encoding="utf-8")
    alt = "Scatter chart of alignment over uniformity"
    return {"charts": [("", [svg])], "numbers": rows, "heads": ["alignment", "uniformity"], "alt": alt}


def _show_tsne(files: list[Path], args: argparse.Namespace) -> dict[str, Any]:
    maps = []
    for png, data, sheet in zip(files[::3], files[1::3], files[2::3], strict=True):
        content = json.loads(data.read_text(encoding="utf-8"))
        for panel in content["panels"]:
            panel["name"], panel["caption"] = model_name(panel["model"]), tsne.caption(panel["scores"])
        title = f"{len(content['labels']):,} images of {content['data']}, perplexity {content['perplexity']:g}"
        maps.append(Map(title, content, uri(sheet.read_bytes(), "webp"), uri(png.read_bytes(), "png")))
    return {"maps": maps}


def _show_segmentation(files: list[Path], args: argparse.Namespace) -> dict[str, Any]:
    return {"comparisons": {"": comparison.segmentation(args)}}


def _show_detections(files: list[Path], args: argparse.Namespace) -> dict[str, Any]:
    return {"comparisons": comparison.detection(args)}


def _sweeps(args: argparse.Namespace) -> list[Path]:
    return [png.with_suffix(".svg") for png in sweeps.build(args)]


def _show_sweeps(files: list[Path], args: argparse.Namespace) -> dict[str, Any]:
    models = sweeps.models(args)
    legend = [(model_name(model), model_colour(model, k), "gsg" not in model) for k, model in enumerate(models)]
    svgs = [path.read_text(encoding="utf-8") for path in files]
    return {"charts": [("", svgs)], "legend": legend, "alt": "Validation metric over the weight decay"}


PARTS = (
    Part(
        "curves",
        "Pretraining",
        "A point an epoch. The standard deviation is of the L2-normalised projections: near 0, the network has "
        "collapsed.",
        _curves,
        _show_curves,
    ),
    Part(
        "geometry",
        "Alignment and uniformity",
        "Of the backbone's L2-normalised features of test images (Wang and Isola, 2020); for both, lower is better. "
        "A point a checkpoint.",
        _geometry,
        _show_geometry,
    ),
    Part(
        "tsne",
        "t-SNE of the test features",
        "Each point is a test image. The numbers are of the features themselves and of the map: silhouette and kNN "
        "purity say how well classes are separated, trustworthiness how far neighbours on the map are neighbours among "
        "the features.",
        _tsne,
        _show_tsne,
    ),
    Part(
        "segmentation",
        "Segmentation",
        "The first validation images, their ground truth and each method's prediction. Black is unlabelled.",
        _segmentation,
        _show_segmentation,
    ),
    Part(
        "detection",
        "Detection",
        "The first test images with their objects and as many detections of each method, those of the highest scores. "
        "Dashed objects are not counted: neither right nor wrong to find.",
        detections.build,
        _show_detections,
    ),
    Part(
        "sweeps",
        "Sweeps of the weight decay",
        "The validation metric of logistic regression at each weight decay. The diamond is chosen; open circles "
        "stopped before they converged.",
        _sweeps,
        _show_sweeps,
    ),
)


if __name__ == "__main__":
    cli.run(main)
