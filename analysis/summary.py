"""What the top of the page says: the result in a sentence, where the numbers come from, and what the study answered."""

import base64
import json
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from analysis import render, study
from analysis.statistics import resolution
from analysis.table import Row, Table, number
from common.errors import UserError

STUDY = Path(__file__).resolve().parents[1] / study.ROOT


class Answers(NamedTuple):
    """What the study found at one scale: the scale in words, and of each question its text, the answer, the numbers."""

    scale: str
    questions: list[tuple[str, str, str]]


class Download(NamedTuple):
    """A file inside the page: its kind as the reader knows it, its name, and its content as a data URI."""

    kind: str
    name: str
    uri: str


def result(tables: Sequence[Table]) -> str:
    """Return in a sentence what GSG changes in the first column that says so, and how sure that is."""
    for table in tables:
        for k, column in enumerate(table.columns):
            pairs = [pair for pair in _pairs(table) if pair[2].cells[k].mean is not None]
            if pairs:
                return _sentence(table, k, " ".join(column), pairs)
    return "No method has been evaluated both with and without GSG."


def _pairs(table: Table) -> Iterator[tuple[Row, Row, Row]]:
    """Yield (baseline, variant, difference) of the methods that have all three."""
    for section in table.sections:
        for baseline, *rows in section.groups:
            for variant, difference in zip(rows[::2], rows[1::2], strict=False):
                if difference.baseline is not None and variant.model.endswith("_gsg"):
                    yield baseline, variant, difference


def _sentence(table: Table, k: int, column: str, pairs: list[tuple[Row, Row, Row]]) -> str:
    said = "; ".join(
        f"{variant.label} {number(table, variant, k)}, {base.label} {number(table, base, k)}, "
        f"difference {number(table, difference, k)}"
        for base, variant, difference in pairs
    )
    seeds = min(difference.cells[k].n for *_, difference in pairs)
    said = f"{column}: {said}" + (f", over {seeds} seeds." if seeds > 1 else ". One seed cannot rank methods.")
    exact = [texts[k] for _, texts in resolution(table)]
    if all(exact) and len(exact) == 3:
        images, points, error = exact
        said += f" One of the {images} test images is {points} points, and the standard error over them {error[2:]}."
    return said


def dates(records: Sequence[dict[str, Any]]) -> str:
    """Return the day, or the first and the last, on which the runs of the records started."""
    days = sorted({record["provenance"]["started"].partition("T")[0] for record in records})
    return " to ".join(dict.fromkeys((days[0], days[-1]))) if days else ""


def commits(records: Sequence[dict[str, Any]]) -> str:
    """Return the commits of the records, short, those of most records first."""
    found = [record["provenance"]["git_commit"] for record in records]
    dirty = any(record["provenance"]["git_dirty"] for record in records)
    shown = ", ".join(commit[:7] for commit in sorted(set(found), key=lambda c: (-found.count(c), c)))
    return shown + (", with uncommitted changes" if dirty else "")


def repository() -> str:
    """Return the web address of the checkout's remote `origin`, without a user's name; "" if it has none."""
    command = ["git", "config", "--get", "remote.origin.url"]
    try:
        url = subprocess.run(command, cwd=STUDY.parent, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
    return web_address(url)


def web_address(url: str) -> str:
    """Return the web address of a Git URL, or "" if it is a path.

    >>> web_address("git@host.org:some/one.git"), web_address("https://me:secret@host.org/some/one"), web_address("/a")
    ('https://host.org/some/one', 'https://host.org/some/one', '')
    """
    found = re.fullmatch(r"(?:(?:https?|ssh)://(?:[^@/]*@)?([\w.-]+)(?::\d+)?/|\w+@([\w.-]+):)([\w./~-]+)", url)
    return f"https://{found[1] or found[2]}/{found[3].removesuffix('.git').rstrip('/')}" if found else ""


def answers() -> tuple[list[Answers], list[str]]:
    """Return what the checkout's study answered, at each scale that has runs, and a line for each damaged record."""
    found, problems = [], []
    for scale, settings in study.SCALES.items():
        try:
            runs = study.read(STUDY / "records", scale)
        except UserError as error:
            problems.append(str(error))
            continue
        if runs:
            said = [(f"{q.title}. {q.asks}", *_parts(study.sentence(q, runs))) for q in study.QUESTIONS]
            found.append(Answers(settings.said, said))
    return found, problems


def _parts(sentence: str) -> tuple[str, str]:
    """Return the answer and the numbers of a sentence of the study, whose answer is in bold."""
    answer, _, numbers = sentence.removeprefix("**").partition(".** ")
    return answer.removesuffix("."), numbers


def counts(found: Iterable[Answers]) -> str:
    """Return how many of the study's questions got which answer."""
    given = [answer.lower() for of_scale in found for _, answer, _ in of_scale.questions]
    return ", ".join(f"{given.count(answer)} {answer}" for answer in dict.fromkeys(given))


def report_of_study() -> str:
    """Return the web address of the study's report; "" if the checkout has no public one: a page is sent without it."""
    place = repository()
    return f"{place}/blob/HEAD/study/README.md" if place else ""


def downloads(titled: Mapping[str, Table], records: Sequence[dict[str, Any]]) -> dict[str, list[Download]]:
    """Return each table by its title, as CSV and LaTeX, and the records, without their details, as JSON."""
    files = {
        title: [
            Download(kind, f"table-{table.key}.{suffix}", _uri(text, f"text/{suffix}"))
            for kind, suffix, text in (("CSV", "csv", render.csv(table)), ("LaTeX", "tex", render.latex(table)))
        ]
        for title, table in titled.items()
    }
    short = [{name: value for name, value in record.items() if name != "details"} for record in records]
    text = json.dumps(short, ensure_ascii=False, separators=(",", ":"))
    return files | {"All records": [Download("JSON", "records.json", _uri(text, "application/json"))]}


def _uri(text: str, kind: str) -> str:
    content = base64.b64encode(text.encode(errors="backslashreplace")).decode()
    return f"data:{kind};charset=utf-8;base64,{content}"
