import re
from dataclasses import replace

import pytest

from analysis import curves, drawing, report
from common.errors import UserError
from common.log import truncate_log
from tests.analysis.conftest import folders


def test_curves(scope, log, capsys):
    with pytest.raises(UserError, match="no training logs in"):
        curves.build(scope)
    path = log("byol_gsg")
    log("simsiam")
    log("byol", seed=2)
    assert list(curves.find_logs(scope.runs / "demo" / "pretrain", 0)) == ["simsiam", "byol_gsg"]
    assert list(curves.find_logs(scope.runs / "demo" / "pretrain", 2)) == ["byol"]
    epochs, problem = curves.read_epochs(path)
    assert ([line["epoch"] for line in epochs], problem) == ([1, 2, 3], "")
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
    shown = curves.page_files(curves.read_curves(scope).epochs, scope.reports / "curves")
    assert {axis for _, axis in shown.values()} == {"epoch"}
    assert curves.build(scope).is_file()


def test_ablations_are_drawn_when_they_are_asked_for(scope, log):
    log("simsiam_gsg")
    log("simsiam_gsg-batch64")
    assert list(curves.read_curves(scope).epochs) == ["simsiam_gsg"]
    assert list(curves.read_curves(replace(scope, method=["simsiam_gsg-batch64"])).epochs) == ["simsiam_gsg-batch64"]


def lines(*values):
    """Return a log of two epochs with the lines between them."""
    return b"\n".join(
        [b'{"step": 1, "epoch": 1, "loss": -0.5}', *values, b'{"step": 3, "epoch": 3, "loss": -0.7}', b""]
    )


@pytest.mark.parametrize(
    ("content", "epochs", "says"),
    [
        (b"", [], "it is empty"),
        (b"\x89PNG\r\n\x1a\n\0\0", [], "3 of its 3 lines are damaged, first line 1: "),
        (b'{"st', [], "1 of its 1 lines are damaged, first line 1: "),
        (lines()[:-30], [1], None),  # a kill cut the last line short
        (lines(b'{"step": 2, "ep'), [1, 3], "first line 2: "),
        (lines(b"[" * 100_000), [1, 3], "first line 2: "),
        (lines(b"[2]"), [1, 3], "line 2: not an object with a step"),
        (lines(b"null"), [1, 3], "line 2: not an object with a step"),
        (lines(b'{"epoch": 2, "loss": -0.6}'), [1, 3], "line 2: not an object with a step"),
        (lines(b"\xff\xfe"), [1, 3], "first line 2: "),
        (lines(b'{"step": 2, "epoch": 2}'), [1, 3], "of 3 epochs, 1 occur twice or have none of loss, std, knn"),
        (lines(b'{"step": 2, "epoch": 1, "loss": 1}'), [1, 3], "of 3 epochs, 1 occur twice"),
        (lines(b'{"step": 2, "epoch": 2, "loss": %d}' % 10**400), [1, 3], "loss is 1000"),
        *(
            (lines(b'{"step": 2, "epoch": 2, "loss": 1, "%s": %s}' % (name, value)), [1, 3], "line 2: " + name.decode())
            for name in (b"epoch", b"step", b"loss", b"std", b"knn", b"seconds")
            for value in (b"null", b"NaN", b"-Infinity", b'"1"', b"true", b"[1]", b"{}", b"1e300", b'"\\ud800"')
        ),
        (b"\xef\xbb\xbf" + lines(), [1, 3], None),  # a byte order mark
        (lines().replace(b"\n", b"\r\n"), [1, 3], None),
    ],
)
def test_a_damaged_log_is_named_and_what_is_left_is_read(tmp_path, content, epochs, says):
    path = tmp_path / "log.jsonl"
    path.write_bytes(content)
    found, problem = curves.read_epochs(path)
    assert [line["epoch"] for line in found] == epochs
    assert len(problem.splitlines()) == (says is not None)
    assert len(problem) < 400
    assert (says or "") in problem
    truncate_log(path, 3)  # a run that resumes from it goes on, too
    assert [line["epoch"] for line in curves.read_epochs(path)[0]] == epochs


def test_damaged_logs_do_not_stop_the_others(scope, log, capsys):
    whole, folder, damaged = log("simsiam_gsg"), log("byol"), log("byol_gsg")
    folder.unlink()
    folder.mkdir()
    damaged.write_bytes(b"\0" * 1000)
    with pytest.raises(UserError, match="skipped 2 files, see above"):
        curves.main(folders(scope.reports.parent))
    err = capsys.readouterr().err
    assert f"skipped: {folder} is not a valid log: Is a directory; what is left is drawn" in err
    assert f"skipped: {damaged} is not a valid log: 1 of its 1 lines are damaged, first line 1: " in err
    assert (scope.reports / "demo" / "curves.png").is_file()
    with pytest.raises(UserError, match="skipped 2 files, see above"):
        report.main(folders(scope.reports.parent))
    assert "SimSiam w/ GSG" in (scope.reports / "demo" / "index.html").read_text()
    whole.unlink()
    with pytest.raises(UserError, match=r"byol/log\.jsonl is not a valid log: "):
        curves.build(scope)


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
