import html
import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from analysis import report
from common.records import read_records


class Page(HTMLParser):
    """A page's text, tags left open, images and ids."""

    VOID = ("meta", "br", "img", "link")

    def __init__(self, text):
        super().__init__()
        self.open, self.images, self.ids, self.links = [], [], set(), []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if tag == "img":
            self.images.append(attributes)
        if tag == "a":
            self.links.append(attributes["href"])
        self.ids.add(attributes.get("id"))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture
def full(args, record, log, predictions):
    record("simsiam_gsg", "knn", "digits", {"top1": 61.25})
    record("simsiam_gsg", "detection", "voc", {"AP": 3.5, "AP50": 9.75}, variant="frozen")
    record("<b>mine</b>", "recognition", "scenes", {"mAP11": 33.0}, seed=4)
    log("simsiam")
    predictions("byol")
    return args


def test_page_holds_every_records_provenance(full):
    text = report.build(full).read_text()
    page = Page(text)
    assert page.open == []
    records = list(read_records(full.results, "demo"))
    assert len(records) == 3
    for one in records:
        made_of = one["provenance"]
        for key in ("checkpoint_sha256", "config_sha256", "data_fingerprint", "git_commit"):
            assert f'title="{made_of[key]}"' in text
        for value in (made_of["host"], made_of["device"], str(made_of["seconds"]), made_of["started"].split("T")[0]):
            assert value in text
        for name, version in made_of["versions"].items():
            assert f"{name} {version}" in text
        for value in one["metrics"].values():
            assert f"<strong>{value:.2f}</strong>" in text
    for path in (full.results / "demo").rglob("*.json"):
        assert html.escape(str(path)) in text


def test_page_is_one_file_and_escapes_labels(full):
    text = report.build(full).read_text()
    page = Page(text)
    assert "<b>mine" not in text
    assert "&lt;b&gt;mine" in text
    assert len(page.images) == 2
    assert all(image["src"].startswith("data:image/png;base64,") and len(image["alt"]) > 20 for image in page.images)
    assert not re.search(r'(src|href)="(http|/)', text)
    assert all(link[1:] in page.ids for link in page.links)
    assert "prefers-color-scheme: dark" in text
    assert "demo numbers are not comparable with the paper" in text
    assert "Left out: t-SNE: no checkpoint in" in text


def test_page_without_anything(args):
    args.profile = "imagenet"
    text = report.build(args).read_text()
    assert "No tables: no results records" in text
    assert text.count("Left out:") == 3
    assert "not comparable" not in text
    assert Page(text).open == []


def test_page_is_made_again_when_a_record_changes(full, record, capsys):
    page = report.build(full)
    capsys.readouterr()
    report.build(full)
    assert f"up to date: {page}" in capsys.readouterr().out
    record("simsiam_gsg", "knn", "digits", {"top1": 77.77})
    report.build(full)
    assert f"written: {page}" in capsys.readouterr().out
    assert "77.77" in page.read_text()
    assert "77.77" in (page.parent / "table-standard.md").read_text()


def test_spoilt_digests_only_cost_time(full):
    page = report.build(full)
    for spoilt in ("{", "[]"):
        (page.parent / ".inputs.json").write_text(spoilt)
        report.build(full)
        assert "page" in json.loads((page.parent / ".inputs.json").read_text())


def test_an_up_to_date_page_loads_no_heavy_library(full):
    report.build(full)
    folders = [f"--{name}={getattr(full, name)}" for name in ("data", "checkpoints", "results", "runs", "reports")]
    code = f"""
import sys
from analysis import report
report.main({folders!r})
heavy = 'torch pandas matplotlib sklearn jinja2'.split()
print('heavy:', [m for m in heavy if m in sys.modules])
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "heavy: []" in out
    assert "written" not in out
