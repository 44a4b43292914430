import re
from dataclasses import replace

import pytest

from analysis import curves, drawing
from common.errors import UserError


def test_curves(scope, log, capsys):
    with pytest.raises(UserError, match="no training logs in"):
        curves.build(scope)
    path = log("byol_gsg")
    log("simsiam")
    log("byol", seed=2)
    assert list(curves.find_logs(scope.runs / "demo" / "pretrain", 0)) == ["simsiam", "byol_gsg"]
    assert list(curves.find_logs(scope.runs / "demo" / "pretrain", 2)) == ["byol"]
    assert [line["epoch"] for line in curves.read_epochs(path)] == [1, 2, 3]
    png = curves.build(scope)
    names = {f"curves-{key}-{axis}.svg" for key in ("loss", "std", "knn") for axis in ("epoch", "seconds")}
    assert {file.name for file in png.parent.iterdir()} == {"curves.png", "curves.pdf", ".inputs.json", *names}
    curves.build(scope)
    assert "up to date" in capsys.readouterr().out


def test_time_has_a_unit_that_fits_and_curves_their_points(scope, log):
    log("simsiam")
    png = curves.build(scope)
    by_time = (png.parent / "curves-loss-seconds.svg").read_text()
    assert "time (minutes)" in by_time  # 210 seconds
    assert "time" not in (png.parent / "curves-loss-epoch.svg").read_text()
    assert by_time.count("<use") >= 3


def test_logs_without_times_have_no_curves_against_time(scope, log):
    path = log("simsiam")
    path.write_text(re.sub(r', "seconds": [\d.]+', "", path.read_text()))
    found, _ = curves.read_curves(scope)
    shown = curves.page_files(found, scope.reports / "curves")
    assert {axis for _, axis in shown.values()} == {"epoch"}
    assert curves.build(scope).is_file()


def test_ablations_are_drawn_when_they_are_asked_for(scope, log):
    log("simsiam_gsg")
    log("simsiam_gsg-batch64")
    assert list(curves.read_curves(scope)[0]) == ["simsiam_gsg"]
    assert list(curves.read_curves(replace(scope, method=["simsiam_gsg-batch64"]))[0]) == ["simsiam_gsg-batch64"]


def test_svgs_take_the_pages_colours_and_share_no_ids(scope, log):
    log("simsiam")
    folder = curves.build(scope).parent
    texts = [path.read_text() for path in sorted(folder.glob("*.svg"))]
    ids = [set(re.findall(r'id="([^"]*)"', text)) for text in texts]
    assert sum(map(len, ids)) == len(set.union(*ids))
    for text in texts:
        assert set(re.findall(r'(?:href="|url\()#([^")]*)', text)) <= set.union(*ids)
        assert "currentColor" in text
        assert "#000000" not in text
        assert "var(--line, #dddddd)" in text


def test_figures_are_of_print_size_with_embedded_fonts_and_the_same_bytes_again(scope, log):
    log("simsiam")
    png = curves.build(scope)
    pdf = png.with_suffix(".pdf").read_bytes()
    box = re.search(rb"/MediaBox \[ ?([\d. ]+)\]", pdf)[1].split()
    assert float(box[2]) == pytest.approx(72 * drawing.WIDTH, abs=20)  # "tight" takes or gives a little
    assert b"/FontFile2" in pdf  # TrueType, embedded
    assert b"/Type3" not in pdf
    first = {path: path.read_bytes() for path in png.parent.iterdir()}
    (png.parent / ".inputs.json").unlink()
    curves.build(scope)
    assert {path: path.read_bytes() for path in png.parent.iterdir()} == first
