import csv as csv_reader
import io
import re

import pytest

from analysis import tables
from analysis.names import model_order
from analysis.tables import Cell, build, csv, latex, make_tables, markdown
from common.cli import UserError


@pytest.fixture
def standard(args, record):
    """Return the table of three models: one with two seeds, one with a hole."""
    for seed, value in ((0, 60.0), (1, 62.0)):
        record("simsiam_gsg", "knn", "digits", {"top1": value}, seed)
    record("simsiam", "knn", "digits", {"top1": 60.5})
    record("simsiam", "linear", "digits", {"top1": 70.0, "top5": 99.0})
    record("mine_50%", "linear", "digits", {"top1": 71.004})
    return build(args)[0]


def test_rows_holes_bold_and_spread(standard):
    assert standard.columns == [("kNN Digits", "top-1"), ("Linear Digits", "top-1"), ("Linear Digits", "top-5")]
    rows = dict(standard.rows())
    assert list(rows) == ["SimSiam", "SimSiam w/ GSG", "mine_50%"]
    # The sample standard deviation of 60 and 62 is sqrt(2).
    assert rows["SimSiam w/ GSG"] == [Cell("61.00 ± 1.41", True), Cell("—", False), Cell("—", False)]
    assert rows["mine_50%"] == [Cell("—", False), Cell("71.00", True), Cell("—", False)]
    assert rows["SimSiam"][2] == Cell("99.00", False)  # alone in its column


def test_equal_as_shown_is_equally_best(args, record):
    for model, value in (("byol", 50.001), ("byol_gsg", 50.004), ("simsiam", 49.9)):
        record(model, "recognition", "digits", {"accuracy": value})
    [table] = build(args)
    assert [cells[0].best for _, cells in table.rows()] == [False, True, True]


def test_order_of_models():
    given = ["zebra", "byol_gsg", "ant", "byol", "simsiam_gsg", "simsiam", "byol"]
    assert model_order(given) == ["simsiam", "simsiam_gsg", "byol", "byol_gsg", "ant", "zebra"]


def test_markdown_is_aligned(standard):
    title, _, *lines = markdown(standard).splitlines()
    assert title == "### Standard evaluation, profile demo (demo numbers are not comparable with the paper)"
    assert len({len(line) for line in lines}) == 1
    assert lines[1].startswith("| ---")
    assert "**61.00 ± 1.41**" in lines[3]
    assert r"mine\_50%" in lines[4]


def test_latex_escapes_and_needs_booktabs_alone(standard):
    text = latex(standard)
    assert r"mine\_50\%" in text
    assert r"\textbf{61.00 $\pm$ 1.41}" in text
    assert re.findall(r"\\usepackage\{(\w+)\}", text) == ["booktabs"]
    assert r"& \multicolumn{1}{c}{kNN Digits} & \multicolumn{2}{c}{Linear Digits} \\" in text
    assert r"\cmidrule(lr){2-2}\cmidrule(lr){3-4}" in text
    assert text.count(r"\begin") == text.count(r"\end") == 2
    assert "±" not in text
    assert "—" not in text
    assert tables._tex("a_b & 5% #1 {x} ~ ^ \\") == (
        r"a\_b \& 5\% \#1 \{x\} \textasciitilde{} \textasciicircum{} \textbackslash{}"
    )


def test_csv_keeps_precision_and_leaves_holes_empty(standard):
    rows = {row["model"]: row for row in csv_reader.DictReader(io.StringIO(csv(standard)))}
    assert float(rows["mine_50%"]["Linear Digits top-1"]) == 71.004
    assert rows["mine_50%"]["kNN Digits top-1"] == ""
    assert float(rows["simsiam_gsg"]["kNN Digits top-1 std"]) == pytest.approx(2**0.5)
    assert rows["simsiam_gsg"]["kNN Digits top-1 seeds"] == "2"
    assert {row["profile"] for row in rows.values()} == {"demo"}


def test_profiles_are_never_mixed(args, record):
    record("byol", "knn", "digits", {"top1": 1.0})
    record("byol", "knn", "imagenet", {"top1": 2.0}, profile="imagenet")
    [table] = build(args)
    assert table.columns == [("kNN Digits", "top-1")]
    args.profile = "imagenet"
    [table] = build(args)
    assert table.title == "Standard evaluation, profile imagenet"
    assert table.columns == [("kNN ImageNet", "top-1")]
    with pytest.raises(ValueError, match="profile demo in a table of imagenet"):
        make_tables([{"profile": "demo"}], "imagenet")


def test_datasets_variants_and_tasks_make_columns(args, record):
    record("byol", "detection", "voc", {"AP": 1.0, "AP50": 2.0, "AP75": 1.5}, variant="frozen")
    record("byol", "detection", "voc", {"AP": 3.0})
    record("byol", "segmentation", "ade20k", {"aAcc": 5.0, "mIoU": 4.0})
    record("byol", "study", "digits", {"top1": 4.0})
    [table] = build(args)
    assert table.columns == [
        ("VOC detection", "AP"),
        *(("VOC (frozen) detection", metric) for metric in ("AP", "AP50", "AP75")),
        ("ADE20K segmentation", "mIoU"),
        ("ADE20K segmentation", "aAcc"),
    ]


def test_files_of_tables_that_are_gone_are_removed(args, record):
    path = record("byol", "knn", "digits", {"top1": 1.0})
    record("byol", "recognition", "digits", {"accuracy": 1.0})
    build(args)
    names = {f"table-{kind}.{ending}" for kind in ("standard", "recognition") for ending in ("md", "tex", "csv")}
    assert {file.name for file in (args.reports / "demo").iterdir()} == names
    path.unlink()
    build(args)
    assert not (args.reports / "demo" / "table-standard.md").exists()


def test_no_records_names_the_command(args):
    with pytest.raises(UserError, match=r"no results records in .*demo; make some with `make knn linear transfer-all"):
        build(args)


def test_command_prints_the_tables(args, record, capsys):
    record("byol", "knn", "digits", {"top1": 12.345})
    tables.main(["--results", str(args.results), "--reports", str(args.reports)])
    shown = capsys.readouterr().out
    assert shown.startswith("[analysis.tables] profile=demo")
    assert "### Standard evaluation" in shown
    assert "12.35" in shown or "12.34" in shown
