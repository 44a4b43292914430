"""One static page of everything a profile has.

Tables, figures, training curves and the record of every number. What is missing is left out with a note.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from analysis import (
    curves,
    detection,
    figures,
    geometry,
    protocol,
    render,
    scoreboard,
    segmentation,
    summary,
    sweeps,
    table,
    tables,
    tsne,
)
from analysis.figures import Comparison, uri
from analysis.names import CLASS_COLOURS, METRIC_NAMES, benchmark_name, model_colour, model_name
from analysis.products import digest_of_files, is_unchanged, make_once, not_comparable
from analysis.records import in_order, report_problems, settings_of
from analysis.scope import Scope, resolve
from analysis.statistics import resolution
from common import cli
from common.errors import UserError
from common.files import atomic_write
from common.records import key_of, read_records

SOURCES = ("report.html.j2", "report.css", "report.js")


@dataclass(frozen=True)
class Figure:
    """A figure of the page: line charts, maps to explore, or pictures to compare. If left out, `note` says why."""

    id: str
    title: str
    caption: str
    alt: str = ""
    note: str = ""
    charts: list[tuple[str, list[str]]] = field(default_factory=list)  # heading, SVGs
    legend: list[tuple[str, str, bool]] = field(default_factory=list)  # name, colour, dashed
    maps: list["Map"] = field(default_factory=list)
    comparisons: dict[str, Comparison] = field(default_factory=dict)
    numbers: list[tuple[str, list[str]]] = field(default_factory=list)  # a small table: the head of each row, its cells
    heads: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Map:
    """A t-SNE figure to explore: its JSON, the sheet of images and, for readers without scripts, its picture."""

    title: str
    content: dict[str, Any]
    sheet: str
    picture: str


@dataclass(frozen=True)
class Part:
    """A figure that the page may have. `files` makes the files it consists of; `show` returns fields of its Figure."""

    id: str
    title: str
    caption: str
    files: Callable[[Scope], list[Path]]
    show: Callable[[list[Path], Scope], dict[str, Any]]


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    _, problems = build(
        resolve(
            "analysis.report",
            (__doc__ or "").splitlines()[0],
            argv,
            "make report\nmake report PROFILE=imagenet SEED=1",
            more=tsne.add_arguments,
        )
    )
    report_problems(problems)


def build(scope: Scope) -> tuple[Path, list[str]]:
    """Make the figures, the tables and the page as far as their inputs changed.

    Returns the page and one line for each file that is not a valid record or log.
    """
    made = [_made(part, scope) for part in PARTS]
    page = scope.folder / "index.html"
    here = Path(__file__).parent
    files = [file for files, _ in made for file in files]
    sources = [*sorted(here.glob("*.py")), *sorted(scoreboard.FOLDER.glob("*.csv")), *(here / name for name in SOURCES)]
    notes = [note for _, note in made]
    records, problems = read_records(scope.results, scope.profile)
    problems += scoreboard.read_published(scope.profile)[1]
    answers, damaged = summary.answers() if scope.profile != "imagenet" else ([], [])
    problems += damaged
    inputs = [digest_of_files([*sources, *files]), *notes, str(scope.results), repr(records), repr(answers), *problems]
    inputs.append(summary.repository())
    make_once(scope.folder, "page", inputs, [page], lambda: _write(page, scope, made, in_order(records), answers))
    problems += curves.read_curves(scope).problems + sweeps.read_curves(scope)[1] + figures.problems(scope)
    return page, problems


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
        "settings": protocol.words(dict(settings_of(record))),
        "path": str(key.path(results)),
        "json": json.dumps(about, indent=1, ensure_ascii=False),
    }


def _write(
    page: Path,
    scope: Scope,
    made: list[tuple[list[Path], str]],
    records: list[dict[str, Any]],
    answers: list[summary.Answers],
) -> None:
    import jinja2

    try:
        shown, note = tables.build(scope.results, scope.profile, scope.folder)[0], ""
    except UserError as error:
        shown, note = [], str(error)
    here = Path(__file__).parent
    style, script = ((here / source).read_text(encoding="utf-8") for source in SOURCES[1:])
    template = jinja2.Environment(
        loader=jinja2.FileSystemLoader(here), autoescape=True, trim_blocks=True, lstrip_blocks=True
    ).get_template(SOURCES[0])
    sources = [provenance(record, scope.results) for record in records]
    places = {source["path"]: k for k, source in enumerate(sources)}
    titles = {kind: title for kind, (title, _) in tables.KINDS.items()}
    text = template.render(
        profile=scope.profile,
        style=style,
        script=script,
        what=protocol.WHAT[scope.profile],
        warning=not_comparable(scope.profile),
        facts=protocol.facts(records),
        result=summary.result(shown),
        dates=summary.dates(records),
        commits=summary.commits(records),
        repository=summary.repository(),
        downloads=summary.downloads({titles[table.key]: table for table in shown}, records),
        answers=answers,
        counts=summary.counts(answers),
        report_of_study=summary.report_of_study(),
        titles=titles,
        tables=shown,
        resolution=resolution,
        render=render,
        number=table.number,
        head_groups=table.head_groups,
        tables_note=note,
        figures=[_figure(part, *done, scope) for part, done in zip(PARTS, made, strict=True)],
        records=sources,
        numbers_of=lambda cell: [places[source] for source in cell.sources],
        class_colours=CLASS_COLOURS,
    )
    atomic_write(page, lambda temporary: temporary.write_text(text, encoding="utf-8", errors="backslashreplace"))


def _made(part: Part, scope: Scope) -> tuple[list[Path], str]:
    """Return the files that a figure consists of, after making them if need be, or none and the reason."""
    try:
        return part.files(scope), ""
    except UserError as error:
        print(f"left out: {error}", flush=True)
        return [], str(error)


def _figure(part: Part, files: list[Path], note: str, scope: Scope) -> Figure:
    shown = {} if note else part.show(files, scope)
    return Figure(part.id, part.title, part.caption, note=note, **shown)


def _curves(scope: Scope) -> list[Path]:
    png = curves.build(scope)
    return [png, *curves.page_files(curves.read_curves(scope).epochs, png.with_suffix(""))]


def _geometry(scope: Scope) -> list[Path]:
    return _and_others("geometry", geometry.build, (".png", ".svg", ".json"), scope)


def _tsne(scope: Scope) -> list[Path]:
    return _and_others("tsne", tsne.build, (".png", ".json", ".webp"), scope)


def _and_others(name: str, build: Callable[[Scope], Path], endings: Sequence[str], scope: Scope) -> list[Path]:
    """Return the files of the profile's own figure, and of those that `make <name>` drew of others."""
    shown = sorted(scope.folder.glob(f"{name}-*.png"))
    try:
        shown.insert(0, _heavy(build, name, scope))
    except UserError as error:
        if not shown:
            raise
        print(f"left out: {error}", flush=True)
    for file in [file for file in shown if not is_unchanged(scope.folder, file.stem)]:
        print(f"left out: {file}: its files are not as `make {name}` left them; make them again", flush=True)
        shown.remove(file)
    if not shown:
        raise UserError(
            f"every {name} figure was changed or comes from earlier code; make them again with `make {name}`"
        )
    return [file.with_suffix(ending) for file in shown for ending in endings]


def _heavy(build: Callable[[Scope], Path], name: str, scope: Scope) -> Path:
    """Return what `build` makes, or for ImageNet what it made before: making a page must not take hours."""
    if scope.profile != "imagenet":
        return build(scope)
    png = scope.folder / f"{name}.png"
    if not is_unchanged(scope.folder, name):
        raise UserError(f"{name} reads images through every checkpoint; make it with `make {name} PROFILE=imagenet`")
    return png


def _segmentation(scope: Scope) -> list[Path]:
    return [segmentation.build(scope)]


def _show_curves(files: list[Path], scope: Scope) -> dict[str, Any]:
    lines_of = curves.read_curves(scope).epochs
    if max(map(len, lines_of.values())) < curves.LEAST:
        return _few_epochs(lines_of)
    panels = curves.page_files(lines_of, files[0].with_suffix(""))
    charts = []
    for axis, title in curves.AXES.items():
        of_axis = [path.read_text(encoding="utf-8") for path, (_, shown) in panels.items() if shown == axis]
        if of_axis:
            charts.append((f"Against {title}" + ("s" if axis == "epoch" else ""), of_axis))
    legend = [(model_name(m), model_colour(m, k), "gsg" not in m) for k, m in enumerate(lines_of)]
    return {"charts": charts, "legend": legend, "alt": "Line chart of " + ", ".join(name for name, _, _ in legend)}


def _few_epochs(lines_of: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Return the epochs as a table: too few for curves."""
    shown = {**curves.PANELS, "seconds": "Seconds"}
    rows = [
        (f"{model_name(model)}, epoch {line['epoch']}", [f"{line[key]:.4g}" if key in line else "—" for key in shown])
        for model, lines in lines_of.items()
        for line in lines
    ]
    return {"numbers": rows, "heads": list(shown.values())}


def _show_geometry(files: list[Path], scope: Scope) -> dict[str, Any]:
    rows: list[tuple[str, list[str]]] = []
    charts = []
    for _, svg, numbers_file in zip(files[::3], files[1::3], files[2::3], strict=True):
        content = json.loads(numbers_file.read_text(encoding="utf-8"))
        several = len(files) > 3
        for name, numbers in content["checkpoints"].items():
            model, _, seed = name.partition("-seed")
            parts = (model_name(model), f"seed {seed}" if seed else "", f"of {content['data']}" if several else "")
            title = ", ".join(part for part in parts if part)
            rows.append((title, [f"{numbers[key]:.3f}" for key in ("alignment", "uniformity")]))
        charts.append((f"Of {content['data']}" if several else "", [svg.read_text(encoding="utf-8")]))
    alt = "Scatter chart of alignment over uniformity"
    return {"charts": charts, "numbers": rows, "heads": ["alignment", "uniformity"], "alt": alt}


def _show_tsne(files: list[Path], scope: Scope) -> dict[str, Any]:
    maps = []
    for png, data, sheet in zip(files[::3], files[1::3], files[2::3], strict=True):
        content = json.loads(data.read_text(encoding="utf-8"))
        for panel in content["panels"]:
            panel["name"], panel["caption"] = model_name(panel["model"]), tsne.caption(panel["scores"])
        title = f"{len(content['labels']):,} images of {content['data']}, perplexity {content['perplexity']:g}"
        maps.append(Map(title, content, uri(sheet.read_bytes(), "webp"), uri(png.read_bytes(), "png")))
    return {"maps": maps}


def _show_segmentation(files: list[Path], scope: Scope) -> dict[str, Any]:
    return {"comparisons": {"": figures.compare_segmentation(scope)}}


def _show_detection(files: list[Path], scope: Scope) -> dict[str, Any]:
    return {"comparisons": figures.compare_detection(scope)}


def _sweeps(scope: Scope) -> list[Path]:
    return [png.with_suffix(".svg") for png in sweeps.build(scope)]


def _show_sweeps(files: list[Path], scope: Scope) -> dict[str, Any]:
    models = sweeps.models(scope)
    legend = [(model_name(model), model_colour(model, k), "gsg" not in model) for k, model in enumerate(models)]
    svgs = [path.read_text(encoding="utf-8") for path in files]
    return {"charts": [("", svgs)], "legend": legend, "alt": "Validation metric over the weight decay"}


PARTS = (
    Part(
        "curves",
        "Pretraining",
        "The end of each epoch of one run per method. The standard deviation is of the L2-normalised projections: "
        "near 0, the network has collapsed.",
        _curves,
        _show_curves,
    ),
    Part(
        "geometry",
        "Alignment and uniformity",
        "Of the backbone's L2-normalised features of test images (Wang and Isola, 2020); for both, lower is better. "
        "One point per checkpoint.",
        _geometry,
        _show_geometry,
    ),
    Part(
        "tsne",
        "t-SNE of the test features",
        "Each point is a test image, and each map is of one run of a method. The numbers are of the features "
        "themselves and of the map: silhouette and kNN purity say how well classes are separated, trustworthiness how "
        "far neighbours on the map are neighbours among the features.",
        _tsne,
        _show_tsne,
    ),
    Part(
        "segmentation",
        "Segmentation",
        "The first validation images, their ground truth and each method's prediction.",
        _segmentation,
        _show_segmentation,
    ),
    Part(
        "detection",
        "Detection",
        "The first test images with their objects and as many detections of each method, those of the highest scores. "
        "Dashed objects are not counted: neither right nor wrong to find.",
        detection.build,
        _show_detection,
    ),
    Part(
        "sweeps",
        "Sweeps of the weight decay",
        "The validation metric of logistic regression at each weight decay, for one run per method. The diamond is "
        "chosen; open circles stopped before they converged.",
        _sweeps,
        _show_sweeps,
    ),
)


if __name__ == "__main__":
    cli.run(main)
