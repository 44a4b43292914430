import base64
import html
import json
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from analysis import figures, geometry, protocol, report, summary, tables
from analysis.labels import label_places
from common.errors import UserError
from common.records import PROTOCOL, read_records
from tests.analysis.conftest import folders

HERE = Path(report.__file__).parent


def build(scope):
    return report.build(scope)[0]


class Page(HTMLParser):
    """A page's tags left open, images, ids, links and downloads, and the records that its numbers point to."""

    VOID = ("meta", "br", "img", "link", "input", "path", "use", "clippath", "rect")

    def __init__(self, text):
        super().__init__()
        self.open, self.images, self.ids, self.links, self.numbers, self.tags = [], [], [], [], [], []
        self.downloads = {}
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.append((tag, list(attributes)))
        if tag == "img":
            self.images.append(attributes)
        if "download" in attributes:
            kind, _, content = attributes["href"].partition(";charset=utf-8;base64,")
            assert kind in ("data:text/csv", "data:text/tex", "data:application/json")
            self.downloads[attributes["download"]] = base64.b64decode(content).decode()
        elif tag == "a":
            self.links.append(attributes["href"])
        if "data-records" in attributes:
            self.numbers.append(attributes["data-records"].split())
        if "id" in attributes:
            self.ids.append(attributes["id"])
        if tag not in self.VOID and "/>" not in self.get_starttag_text():
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag


@pytest.fixture
def full(scope, record, log, predictions, saved_detections, tsne_files):
    record("simsiam_gsg", "knn", "digits", {"top1": 61.25}, protocol={"k": 20})
    record("simsiam_gsg", "detection", "voc", {"AP": 3.5, "AP50": 9.75}, variant="frozen")
    record("<b>mine</b>", "recognition", "scenes", {"mAP11": 33.0}, seed=4)
    log("simsiam")
    predictions("byol")
    saved_detections("byol")
    tsne_files("tsne-flowers-mine")
    return scope


def test_page_holds_every_record(full):
    text = build(full).read_text()
    page = Page(text)
    assert page.open == []
    records = read_records(full.results, "demo")[0]
    assert len(records) == 3
    for one in records:
        made_of = one["provenance"]
        for key in ("checkpoint_sha256", "config_sha256", "data_fingerprint", "git_commit"):
            assert f"<dd><code>{made_of[key]}</code>" in text
        for value in (made_of["host"], made_of["device"], str(made_of["seconds"]), made_of["started"].split("T")[0]):
            assert value in text
        for name, version in made_of["versions"].items():
            assert f'"{name}": "{version}"' in html.unescape(text)
        for value in one["metrics"].values():
            assert f"<strong>{value:.2f}</strong>" in text
    for path in (full.results / "demo").rglob("*.json"):
        assert html.escape(str(path)) in text


def test_every_number_leads_to_its_records(scope, record):
    paths = [record("byol", "knn", "digits", {"top1": 60.0 + seed}, seed) for seed in (0, 1)]
    paths.append(record("byol_gsg", "knn", "digits", {"top1": 70.0}))
    text = build(scope).read_text()
    page = Page(text)
    assert page.numbers == [["0", "1"], ["2"]]
    at = [text.index(f'id="record-{k}"') for k in range(3)]
    assert [text.index(f"<code>{path}</code>", start) > start for path, start in zip(paths, at, strict=True)]
    assert all(link[1:] in page.ids for link in page.links)


def test_page_is_one_file_and_escapes_labels(full):
    text = build(full).read_text()
    page = Page(text)
    assert "<b>mine" not in text
    assert "&lt;b&gt;mine" in text
    assert len(page.ids) == len(set(page.ids))
    given = [image for image in page.images if "src" in image]
    assert len(given) == 2 + 2 * 3 * 2  # a map's picture and sheet; two kinds of two images by three layers
    assert all(image["src"].startswith("data:image/") and "alt" in image for image in given)
    assert not re.search(r'(src|href)="(http|/|file)', text)
    assert "url(" not in (HERE / "report.css").read_text()
    assert text.count("not comparable") == 1
    assert "Left out: t-SNE: no checkpoint in" not in text  # there is one of another checkpoint to show
    assert text.count("<svg") == 6  # loss, std and kNN against epochs and against time


def test_settings_stand_beside_the_papers(scope, record):
    record("byol", "knn", "imagenet", {"top1": 60.0}, profile="imagenet", protocol={"k": 200, "temperature": 0.2})
    record("byol", "linear", "imagenet", {"top1": 60.0}, profile="imagenet", protocol={"epochs": 10})
    record("byol", "knn", "flowers", {"top1": 60.0}, profile="imagenet", protocol={"k": 20})
    found = {fact.benchmark: fact for fact in protocol.facts(read_records(scope.results, "imagenet")[0])}
    assert found["kNN ImageNet"] == protocol.Fact(
        "kNN ImageNet", "k 200, temperature 0.2", "k 200, temperature 0.2", True
    )
    assert found["Linear ImageNet"].agrees is False
    assert found["Linear ImageNet"].paper == "epochs 90, batch 4,096, optimiser LARS"
    assert found["kNN Flowers"].agrees is None
    plain = {"batch": 2, "lr": 0.0025, "precision": "float32", "frozen_stages": 0}
    record("byol", "detection", "voc", {"AP": 1.0}, profile="imagenet", protocol=plain)
    [dense] = [f for f in protocol.facts(read_records(scope.results, "imagenet")[0]) if f.benchmark == "VOC detection"]
    assert dense.here == "batch 2, learning rate 0.0025, frozen stages 0"  # a zero is said, the usual precision is not
    text = build(replace(scope, profile="imagenet")).read_text()
    assert "k 200, temperature 0.2: the same" in text
    assert "epochs 90, batch 4,096, optimiser LARS: not the same" in text
    assert "not in the paper" in text
    assert "not comparable" not in text


def test_the_top_of_the_page_says_what_it_is_and_gives_its_numbers(scope, record, monkeypatch):
    monkeypatch.setattr(summary, "repository", lambda: "https://host.org/some/gsg")
    for model, value in (("simsiam", 60.0), ("simsiam_gsg", 62.5)):
        record(model, "knn", "digits", {"top1": value}, protocol={"n_test": 360})
    text = build(scope).read_text()
    top = " ".join(re.sub(r"<[^>]*>", " ", text[text.index("<h1>") : text.index("<nav")]).split())
    assert "Implicit Contrastive Representation Learning with Guided Stop-gradient (NeurIPS 2023)" in top
    assert "results of profile demo" in top
    assert (
        "kNN Digits top-1: SimSiam w/ GSG 62.50, SimSiam 60.00, difference +2.50. One seed cannot rank methods. "
        "One of the 360 test images is 0.28 points, and the standard error over them 2.6."
    ) in html.unescape(top)
    records = read_records(scope.results, "demo")[0]
    assert f"2 results records of {records[0]['provenance']['started'][:10]};" in top
    assert f"Commit {records[0]['provenance']['git_commit'][:7]}" in top
    assert '<a href="https://host.org/some/gsg">' in text
    files = Page(text).downloads
    assert set(files) == {"table-standard.csv", "table-standard.tex", "records.json"}
    for name in ("table-standard.csv", "table-standard.tex"):
        assert files[name] == (scope.folder / name).read_text()
    assert json.loads(files["records.json"]) == records
    assert '<details class="settings">' in text
    assert text.count("<dt>Settings</dt><dd>test images 360</dd>") == 2


def test_the_result_says_over_how_many_seeds(scope, record):
    assert summary.result([]) == "No method has been evaluated both with and without GSG."
    for seed, gain in enumerate((1.0, 2.0, 3.0)):
        record("byol", "linear", "digits", {"top1": 50.0}, seed)
        record("byol_gsg", "linear", "digits", {"top1": 50.0 + gain}, seed)
    shown = tables.read_tables(scope.results, "demo")[0]
    assert summary.result(shown) == (
        "Linear Digits top-1: BYOL w/ GSG 52.00 ± 1.00, BYOL 50.00 ± 0.00, difference +2.00 ± 1.00 (p = 0.074), "
        "over 3 seeds."
    )


def test_the_study_is_answered_on_the_pages_of_cifar10_and_of_the_demo(scope, studied, monkeypatch):
    said = "; ".join(
        f"{name} (no predictor): 3 of 3 runs collapsed, std 0.00 ± 0.00 of evenly spread"
        for name in ("SimSiam", "SimSiam w/ GSG")
    )
    cifar10 = replace(scope, profile="cifar10")
    text = build(cifar10).read_text()
    assert "<code>study/README.md</code>" in text  # the checkout has no public address
    assert all(link.startswith("#") for link in Page(text).links)
    assert f'<strong>No</strong></td><td data-head="Numbers" class="words">{said}.' in text
    assert "7 not run yet, 1 no" in text
    assert "A ResNet-18 of a quarter of the width" in text
    demo = build(scope).read_text()
    assert "7 not run yet, 1 no" in demo
    assert said not in demo
    assert "collapsed;" not in build(replace(scope, profile="imagenet")).read_text()
    monkeypatch.setattr(summary, "repository", lambda: "https://host.org/some/gsg")
    for one in (scope, cifar10):
        assert "https://host.org/some/gsg/blob/HEAD/study/README.md" in Page(build(one).read_text()).links
    spoilt = next(summary.STUDY.rglob("*.json"))
    spoilt.write_text("{}")
    page, problems = report.build(cifar10)
    assert str(spoilt) in problems[-1]
    assert 'id="study"' not in page.read_text()


def test_two_epochs_are_a_table_and_three_a_curve(scope, log):
    text = build(scope).read_text() if log("simsiam") else ""
    assert text.count("<svg") == 6
    path = log("simsiam_gsg")
    for one in (path, path.parents[1] / "simsiam" / "log.jsonl"):
        one.write_text("".join(line for line in one.read_text().splitlines(True) if '"epoch": 3' not in line))
    text = build(scope).read_text()
    assert "<svg" not in text
    assert '<tr><th scope="row">SimSiam, epoch 2</th><td>-0.2</td><td>0.02</td><td>60</td><td>140</td></tr>' in text
    assert "stroke-dasharray: 5" not in (scope.folder / "curves-loss-epoch.svg").read_text()  # nor joins the figure


def test_black_is_what_the_legend_says(scope, predictions):
    predictions("byol")  # its truth has class 3 of ADE20K's, which is the last, and unlabelled pixels
    [legend] = [figures.compare_segmentation(scope).legend]
    assert legend[-1] == ("unlabelled", "#000000")
    assert "unlabelled" in build(scope).read_text().partition('id="segmentation"')[2]
    index = next(scope.runs.rglob("index.json"))
    index.write_text(index.read_text().replace("[10, 20, 30]", "[0, 0, 0]"))
    assert ("background or unlabelled", "#000000") in figures.compare_segmentation(scope).legend


def test_labels_of_boxes_cover_no_other_and_stay_in_the_picture():
    boxes, sizes = [(10.0, 5.0, 95.0, 50.0)] * 6, [(30.0, 12.0)] * 6
    places = label_places(boxes, sizes, (100, 100))
    assert places[0] == (10, 0)
    assert all(0 <= x <= 70 and 0 <= y <= 88 for x, y in places)
    apart = [abs(a[0] - b[0]) >= 30 or abs(a[1] - b[1]) >= 12 for k, a in enumerate(places) for b in places[:k]]
    assert len(apart) == 15
    assert all(apart)


def test_page_without_anything(scope):
    text = build(replace(scope, profile="imagenet")).read_text()
    assert "No tables: no results records" in text
    assert text.count("Left out:") == 6
    assert "make it with `make tsne PROFILE=imagenet`" in text
    assert "not comparable" not in text
    assert Page(text).open == []


def test_page_is_made_again_when_a_record_changes(full, record, capsys):
    page = build(full)
    capsys.readouterr()
    build(full)
    assert f"up to date: {page}" in capsys.readouterr().out
    record("simsiam_gsg", "knn", "digits", {"top1": 77.77})
    build(full)
    assert f"written: {page}" in capsys.readouterr().out
    assert "77.77" in page.read_text()
    assert "77.77" in (page.parent / "table-standard.md").read_text()


def test_a_corrupt_record_is_named_at_the_end_of_a_page(full, capsys):
    spoilt = next((full.results / "demo").rglob("*.json"))
    spoilt.write_text("{")
    for _ in range(2):  # an up-to-date page names it too
        with pytest.raises(UserError, match="skipped 1 file, see above"):
            report.main(folders(full.reports.parent))
        assert f"skipped: {spoilt} is not a valid results record" in capsys.readouterr().err
    assert "<dd>2 results records of " in (full.reports / "demo" / "index.html").read_text()


def test_the_geometry_of_a_checkpoint_of_the_users_is_shown(scope, checkpoint):
    subjects = [replace(scope.subjects[0], name="theirs", path=checkpoint("theirs"))]
    geometry.build(replace(scope, limit=10, name="theirs", subjects=subjects))
    page = build(scope).read_text()
    assert ">theirs<" in page
    assert "Scatter chart of alignment over uniformity" in page
    (scope.data / "demo/digits").rename(scope.data / "birds")
    geometry.build(replace(scope, limit=10, name="theirs", subjects=subjects, data_root=scope.data / "birds"))
    page = build(scope).read_text()
    assert ">theirs, of digits<" in page
    assert ">theirs, of birds<" in page


def test_spoilt_digests_only_cost_time(full):
    page = build(full)
    for spoilt in ("{", "[]"):
        (page.parent / ".inputs.json").write_text(spoilt)
        build(full)
        assert "page" in json.loads((page.parent / ".inputs.json").read_text())


@pytest.mark.parametrize("content", [b"", b"edited", None])
def test_products_that_changed_are_made_again_or_left_out(full, capsys, content):
    folder = build(full).parent
    whole = {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}
    for name in ("curves.png", "curves-loss-epoch.svg", "segmentation.pdf", "index.html", "tsne-flowers-mine.png"):
        (folder / name).unlink()
        if content is not None:
            (folder / name).write_bytes(content)
    capsys.readouterr()
    text = build(full).read_text()
    out = capsys.readouterr().out
    for name in ("curves.png", "segmentation.png", "index.html"):
        assert f"written: {folder / name}" in out
    assert f"up to date: {folder / 'detection-voc.png'}" in out
    assert (folder / "curves-loss-epoch.svg").read_bytes() == whole["curves-loss-epoch.svg"]
    if content is not None:
        assert f"left out: {folder / 'tsne-flowers-mine.png'}: its files are not as `make tsne` left them" in out
    assert 'class="tsne"' not in text


def test_an_up_to_date_page_loads_no_heavy_library(full):
    build(full)
    code = f"""
import sys
from pathlib import Path
from analysis import report, summary
summary.STUDY = Path({str(summary.STUDY)!r})
report.main({folders(full.reports.parent)!r})
heavy = 'torch pandas matplotlib sklearn jinja2 openTSNE'.split()
print('heavy:', [m for m in heavy if m in sys.modules])
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "heavy: []" in out
    assert "written" not in out


def test_boxes_are_drawn_with_their_names(scope, saved_detections):
    saved_detections("simsiam")
    [(title, shown)] = figures.compare_detection(scope).items()
    assert title == "VOC"
    assert list(shown.layers) == ["Image", "Ground truth", "SimSiam"]
    assert len(shown.photos) == 2
    texts = {}
    for name, pictures in shown.layers.items():
        svg = ElementTree.fromstring(base64.b64decode(pictures[1].partition(",")[2]))
        assert (svg.get("width"), svg.get("height")) == ("40", "60")
        texts[name] = [(element.tag.partition("}")[2], element.text) for element in svg if element.text]
        dashed = [element for element in svg if element.get("stroke-dasharray")]
        assert len(dashed) == int(name == "Ground truth")
    assert texts == {
        "Image": [],
        "Ground truth": [("text", "cup"), ("text", "door")],
        "SimSiam": [("text", "cup 0.91")],
    }


def luminance(colour):
    channels = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    """WCAG 2.2's contrast ratio of two colours, #rrggbb."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_as_wcag_has_it():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(
    ("ink", "ground"),
    [
        *((ink, ground) for ink in ("ink", "soft", "accent") for ground in ("page", "card")),
        *(("warn-ink", "warn"), ("ink", "best"), ("ink", "button")),
    ],
)
def test_text_has_the_contrast_of_aa(scheme, ink, ground):
    css = (HERE / "report.css").read_text().partition("@media print")[0]
    light, dark = (
        dict(re.findall(r"--([\w-]+): (#\w{6})", part)) for part in re.findall(r":root \{(.*?)\}", css, re.S)
    )
    colours = light if scheme == "light" else {**light, **dark}
    assert contrast(colours[ink], colours[ground]) >= 4.5


HOSTILE = """$\\frac{$</script></pre><script>a()</script><img src=x onerror=a()>"' onload='a()' javascript:a()"""


def test_the_page_escapes_whatever_a_record_says(full, record, change):
    """Every text of a record: none becomes a tag, an attribute or a link."""
    plain = Page(build(full).read_text())
    name = HOSTILE.replace("/", "-")
    sweep = {"weight_decay": [0.1, 1.0], "val": [1.0, 2.0], "converged": [True, True]}
    chosen = {"weight_decay": 1.0, "validation": 2.0, "metric": name}
    for task, metric in (("knn", "top1"), ("segmentation", "mIoU"), ("recognition", "accuracy")):
        path = record(name, task, name, {metric: 1.0}, variant=name, protocol=chosen, details={"sweep": sweep})
        texts = {"host", "device", "started", "git_commit", "config_sha256", "checkpoint_sha256", "data_fingerprint"}

        def spoil(content, texts=texts):
            content["provenance"] |= dict.fromkeys(texts, HOSTILE) | {"versions": {HOSTILE: HOSTILE}}
            content["protocol"] |= {name: HOSTILE for name, fact in PROTOCOL.items() if fact.kind is str}

        change(path, spoil)
    text = build(full).read_text()
    page = Page(text)
    assert text.count("&lt;script&gt;") > 20
    assert page.open == []
    assert {tag for tag, _ in page.tags} == {tag for tag, _ in plain.tags}
    assert sum(tag == "script" for tag, _ in page.tags) == sum(tag == "script" for tag, _ in plain.tags)
    assert {name for _, names in page.tags for name in names} == {name for _, names in plain.tags for name in names}
    assert all(link.startswith("#") for link in page.links)
