import csv as csv_reader
import io
import json
import re
import resource
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_rel

import analysis
from analysis import records, render, statistics, tables
from analysis.names import EXPECTED, model_order
from analysis.render import csv, latex, markdown, tex
from analysis.table import number
from analysis.tables import make_tables, read_tables
from common.errors import UserError


def build(scope):
    return tables.build(scope.results, scope.profile, scope.folder)[0]


def shown(table):
    """Return label -> texts of all rows; of rows of one label, the last."""
    return {row.label: [number(table, row, k) for k in range(len(row.cells))] for row in table.rows}


def model(table, name):
    return next(row for row in table.rows if row.model == name and row.baseline is None)


@pytest.fixture
def standard(scope, record):
    """Return the table of three models: two with two seeds, one with a hole."""
    for model, seed, value in (
        *(("simsiam_gsg", 0, 60.0), ("simsiam_gsg", 1, 62.0)),
        *(("simsiam", 0, 60.5), ("simsiam", 2, 60.5)),
    ):
        record(model, "knn", "digits", {"top1": value}, seed)
    record("simsiam", "linear", "digits", {"top1": 70.0, "top5": 99.0})
    record("mine_50%", "linear", "digits", {"top1": 71.004})
    return build(scope)[0]


def test_rows_holes_bold_and_spread(standard):
    assert standard.columns == [("kNN Digits", "top-1"), ("Linear Digits", "top-1"), ("Linear Digits", "top-5")]
    rows = shown(standard)
    assert list(rows) == ["SimSiam", "SimSiam w/ GSG", "difference", "mine_50%"]
    # The sample standard deviation of 60 and 62 is sqrt(2).
    assert rows["SimSiam w/ GSG"] == ["61.00 ± 1.41", "—", "—"]
    assert rows["difference"] == ["-0.50", "—", "—"]  # of seed 0, the only one that both have
    assert rows["mine_50%"] == ["—", "71.00", "—"]
    best = {row.label: [cell.best for cell in row.cells] for row in standard.rows}
    assert best["SimSiam w/ GSG"] == [True, False, False]
    assert best["mine_50%"] == [False, False, False]  # 71.004 against 70, but of one seed each
    assert "a number without ± is of one seed, which cannot rank methods" in standard.remarks
    assert not best["SimSiam"][2]  # alone in its column
    # 60.5 is within 1.41 of 61.
    assert [cell.tied for cell in model(standard, "simsiam").cells] == [True, False, False]


def test_the_resolution_of_a_column(scope, record):
    for name, n, value in (("simsiam", 400, 85.0), ("simsiam_gsg", 400, 95.0), ("byol", 50, 1.0)):
        record(name, "knn", "digits", {"top1": value}, protocol={"n_test": n})
    # Per image, 100 / 400. Of the mean, 90 %: 362 of 404 are 0.896, and sqrt(0.896 * 0.104 / 404) is 1.5 %.
    assert statistics.resolution(build(scope)[0]) == [
        ("test images", ["400", ""]),
        ("points per image", ["0.25", ""]),
        ("standard error over images", ["± 1.5", ""]),
    ]


def test_the_resolution_stands_below_the_table_in_every_format(scope, record):
    record("simsiam", "segmentation", "ade20k", {"mIoU": 1.0}, protocol={"n_test": 2000})
    record("simsiam", "detection", "voc", {"AP": 1.0})
    [table] = build(scope)
    assert statistics.resolution(table) == [("test images", ["", "", "", "2,000", ""])]  # mIoU counts no images
    assert "| *test images* |" in markdown(table).splitlines()[-3]
    assert r"\textit{test images} &  &  &  & 2,000 &  \\" in latex(table)


def test_equal_as_shown_is_equally_best(scope, record):
    for name, value in (("byol", 50.001), ("byol_gsg", 50.004), ("simsiam", 49.9)):
        for seed in (0, 1):
            record(name, "knn", "digits", {"top1": value}, seed)
    [table] = build(scope)
    assert [row.cells[0].best for row in table.rows if row.baseline is None] == [False, True, True]


def test_order_of_models():
    given = ["zebra", "byol_gsg", "ant", "byol", "simsiam-batch64", "simsiam_gsg", "simsiam", "byol"]
    assert model_order(given) == ["simsiam", "simsiam-batch64", "simsiam_gsg", "byol", "byol_gsg", "ant", "zebra"]


def test_the_difference_is_tested_over_paired_seeds(scope, record):
    base, gsg = [50.0, 51.5, 49.0, 52.0], [51.0, 52.0, 51.0, 52.5]
    for seed, (one, other) in enumerate(zip(base, gsg, strict=True)):
        record("simsiam", "knn", "digits", {"top1": one}, seed)
        record("simsiam_gsg", "knn", "digits", {"top1": other}, seed)
    record("simsiam", "knn", "digits", {"top1": 90.0}, 9)  # a seed of one of them alone
    [table] = build(scope)
    [row] = [row for row in table.rows if row.baseline]
    assert row.cells[0].mean == pytest.approx(1.0)
    assert row.cells[0].p == pytest.approx(ttest_rel(gsg, base).pvalue)
    assert row.cells[0].n == 4
    assert number(table, row, 0) == "+1.00 ± 0.71 (p = 0.066)"
    assert any("two-sided paired t-test" in remark for remark in table.remarks)
    assert shown(table)["SimSiam w/ GSG"][0] == "51.62 ± 0.75 (4)"  # seeds are not equally many: each says its n


@pytest.mark.parametrize("values", [[1.0, 2.0], [1.0, 1.0, 1.0, 1.0]])
def test_no_test_of_too_few_seeds_or_of_equal_differences(values):
    assert statistics.paired_test(values) is None


def test_recognition_has_eleven_columns_the_average_and_its_rank(scope, record):
    scope = replace(scope, profile="imagenet")
    eleven = [key for key in EXPECTED["imagenet"] if key[0] == "recognition"]
    values = {"simsiam": 60.0, "simsiam_gsg": 62.0, "byol": 61.0}
    for name, value in values.items():
        for k, (_, dataset, _, metric) in enumerate(eleven):
            if (name, dataset) != ("byol", "pets"):
                value_here = value + 5.0 * ((name, k) == ("simsiam", 0))
                for seed in (0, 1):
                    record(name, "recognition", dataset, {metric: value_here}, seed, profile="imagenet")
    record("simsiam", "recognition", "caltech101-sst", {"mean_per_class_accuracy": 1.0}, profile="imagenet")
    [table] = build(scope)
    assert len(eleven) == 11
    assert [group for group, _ in table.columns[-2:]] == ["Average", "Average"]
    assert len(table.columns) == 11 + 1 + 2
    average, rank = (shown(table)["SimSiam"][k] for k in (-2, -1))
    assert average == f"{60 + 5 / 11:.2f} ± 0.00"
    assert rank == f"{(1 + 10 * 2) / 11:.2f}"  # first on one set, second on ten
    assert shown(table)["BYOL"][-2:] == ["—", "—"]  # pets is a hole
    assert model(table, "simsiam_gsg").cells[-1].best  # the lower rank
    assert not model(table, "simsiam").cells[-1].best


def test_average_of_seeds_has_their_deviation(scope, record):
    for seed in (0, 1):
        record("byol", "recognition", "digits", {"accuracy": 50.0 + seed}, seed)
        record("byol", "recognition", "scenes", {"mAP11": 20.0 + 3 * seed}, seed)
    [table] = build(scope)
    assert shown(table)["BYOL"][2] == "36.00 ± 1.41"


def test_other_settings_are_footnoted_and_do_not_compete(scope, record):
    for name, epochs, value in (("simsiam", 100, 60.0), ("byol", 100, 61.0), ("byol_gsg", 50, 99.0)):
        for seed in (0, 1):
            record(name, "linear", "digits", {"top1": value}, seed, protocol={"epochs": epochs})
    [table] = build(scope)
    assert table.notes == [
        "epochs 50, elsewhere 100",
        "no difference of numbers with different settings",
    ]
    assert [model(table, name).cells[1].best for name in ("simsiam", "byol", "byol_gsg")] == [False, True, False]
    [row] = [row for row in table.rows if row.baseline]
    assert number(table, row, 1) == "—"
    assert "99.00 ± 0.00<sup>a</sup>" in markdown(table)
    assert "<sup>a</sup> epochs 50, elsewhere 100" in markdown(table)
    assert r"99.00 $\pm$ 0.00\textsuperscript{a}" in latex(table)


def test_a_mean_never_mixes_settings(scope, record):
    for seed, grid in ((0, 45), (1, 45), (2, 9)):
        record("byol", "recognition", "digits", {"accuracy": 50.0 + 10 * seed}, seed, protocol={"grid": grid})
    [table] = build(scope)
    assert shown(table)["BYOL"][0] == "55.00 ± 7.07"
    assert table.notes == ["seed 2 left out: weight decays in the C grid 9, elsewhere 45"]


def test_records_of_schema_1_stand_beside_those_of_schema_2(scope, record, change):
    def age(content):
        del content["variant"]
        content |= {"schema": 1, "protocol": {"batch_size": 256, "amp": None, "variant": "small"}}

    facts = {"variant": "small", "protocol": {"batch": 256, "precision": "float32"}}
    old, _ = (record(name, "linear", "digits", {"top1": 1.0}, **facts) for name in ("simsiam", "byol"))
    change(old, age)
    [table] = build(scope)
    assert table.notes == []
    assert table.columns[-1] == ("Linear Digits (small)", "top-1")
    assert [row.cells[-1].mean for row in table.rows] == [1.0, 1.0]


def test_settings_are_compared_by_value_and_an_absent_one_is_not_a_null(scope, record):
    scales = {"test_scales": [[64, 32], [96, 48]]}
    for name, protocol in (("simsiam", {"lr": 1, **scales}), ("byol", {"lr": 1.0, **scales})):
        record(name, "segmentation", "ade20k", {"mIoU": 1.0}, protocol=protocol)
    assert build(scope)[0].notes == []
    record("simsiam", "recognition", "digits", {"accuracy": 1.0}, protocol={"resize": None})
    record("byol", "recognition", "digits", {"accuracy": 1.0}, protocol={})
    assert build(scope)[0].notes == ["resize unknown, elsewhere None"]


def test_other_data_and_unlisted_settings_are_told(scope, record):
    record("simsiam", "knn", "digits", {"top1": 1.0})
    record("byol", "knn", "digits", {"top1": 1.0}, data="0ther")
    record("byol_gsg", "knn", "digits", {"top1": 1.0}, config="c0nfig")
    assert build(scope)[0].notes[:2] == ["data 0ther000, elsewhere da7a0000", "config c0nfig00, elsewhere c0ffee00"]


def test_uncommitted_changes_are_told_of_a_number_or_of_all(scope, record, change):
    paths = [record(name, "knn", "digits", {"top1": 1.0}) for name in ("simsiam", "byol")]
    change(paths[0], lambda r: r["provenance"].update(git_dirty=True))
    change(paths[1], lambda r: r["provenance"].update(git_dirty=False))
    [table] = build(scope)
    assert table.notes == [records.DIRTY]
    assert model(table, "simsiam").cells[0].notes
    assert not model(table, "byol").cells[0].notes
    change(paths[1], lambda r: r["provenance"].update(git_dirty=True))
    [table] = build(scope)
    assert table.notes == []
    assert f"all numbers are {records.DIRTY}" in table.remarks


def test_ablations_stand_beside_what_they_are_varied_from(scope, record):
    for name, value in (
        *(("simsiam", 50.0), ("simsiam_gsg", 55.0), ("simsiam_gsg-random", 52.0), ("simsiam_gsg-farthest", 49.0)),
        *(("simsiam-batch64", 40.0), ("simsiam_gsg-batch64", 44.0), ("simsiam_gsg-batch128", 45.0)),
        *(("simsiam-no_predictor", 10.0), ("simsiam_gsg-shared_views", 54.5), ("byol_gsg-random", 1.0)),
    ):
        record(name, "knn", "digits", {"top1": value})
    standard, ablations = build(scope)
    assert [row.model for row in standard.rows if row.baseline is None] == ["simsiam", "simsiam_gsg"]
    assert [section.title for section in ablations.sections] == ["Guide", "Predictor", "Batch size", "Views"]
    told = {
        section.title: [(row.label, number(ablations, row, 0)) for group in section.groups for row in group]
        for section in ablations.sections
    }
    assert told == {
        "Guide": [
            *(("SimSiam", "50.00"), ("SimSiam w/ GSG, nearest", "55.00"), ("difference", "+5.00")),
            *(("SimSiam w/ GSG, random", "52.00"), ("difference", "+2.00")),
            *(("SimSiam w/ GSG, farthest", "49.00"), ("difference", "-1.00")),
            ("BYOL w/ GSG, random", "1.00"),
        ],
        "Predictor": [("SimSiam", "50.00"), ("SimSiam, no predictor", "10.00"), ("difference", "-40.00")],
        "Batch size": [
            *(("SimSiam, batch 64", "40.00"), ("SimSiam w/ GSG, batch 64", "44.00"), ("difference", "+4.00")),
            ("SimSiam w/ GSG, batch 128", "45.00"),
        ],
        "Views": [
            *(("SimSiam w/ GSG, fresh views", "55.00"), ("SimSiam w/ GSG, shared views", "54.50")),
            ("difference", "-0.50"),
        ],
    }
    assert len(ablations.frame()) == 10  # a model once, though a section's baseline is another's variant


def test_markdown_is_aligned(standard):
    title, _, *lines = markdown(standard).splitlines()
    assert title == "### Standard evaluation, profile demo (demo numbers are not comparable with the paper)"
    lines = [line for line in lines if line.startswith("|")]
    assert len({len(line) for line in lines}) == 1
    assert lines[1].startswith("| ---")
    assert "**61.00 ± 1.41**" in lines[3]
    assert "_60.50 ± 0.00_" in lines[2]
    assert r"mine\_50%" in lines[5]


def test_latex_escapes_and_spans(standard):
    text = latex(standard)
    assert r"mine\_50\%" in text
    assert r"\textbf{61.00 $\pm$ 1.41}" in text
    assert r"\underline{60.50 $\pm$ 0.00}" in text
    assert re.findall(r"\\usepackage\{([\w,]+)\}", text) == ["booktabs,graphicx"]
    assert r"& \multicolumn{1}{c}{kNN Digits} & \multicolumn{2}{c}{Linear Digits} \\" in text
    assert r"\cmidrule(lr){2-2}\cmidrule(lr){3-4}" in text
    assert "±" not in text
    assert "—" not in text
    assert tex("a_b & 5% #1 {x} ~ ^ \\") == (
        r"a\_b \& 5\% \#1 \{x\} \textasciitilde{} \textasciicircum{} \textbackslash{}"
    )


def test_many_columns_stand_in_blocks(scope, record):
    scope = replace(scope, profile="imagenet")
    for name, value in (("simsiam", 3.0), ("simsiam_gsg", 2.0)):
        record(name, "recognition", "cars", {"accuracy": value}, profile="imagenet")
    [table] = build(scope)
    text = latex(table)
    assert text.count(r"\begin{tabular}") == 2  # 13 columns, seven at most side by side
    assert text.count("SimSiam w/ GSG &") == 2
    heads = re.findall(r"multicolumn\{\d\}\{c\}\{([^}]+)\}", text)
    assert heads == list(dict.fromkeys(group for group, _ in table.columns))
    assert "$-$1.00" in text


@given(st.text(max_size=30))
def test_escaped_latex_has_no_active_character(text):
    rest = re.sub(r"\\[&%$#_{}]|\\text\w+\{(U\+[0-9A-F]+)?\}|\$\\pm\$", "", tex(text))
    assert not set(rest) & set("&%$#_{}~^\\\n\r")


NASTY = ["a_b^2 & 50% of #1 {x} $y$ ~\\z", 'é <ü> "ß" |', "模型 ﬁ\u200b", "- [x] `code`\n*b*"]


def has_latex():
    found = (
        shutil.which("kpsewhich") and subprocess.run(["kpsewhich", "booktabs.sty"], capture_output=True).returncode == 0
    )
    return found and shutil.which("pdflatex")


@pytest.mark.skipif(not has_latex(), reason="no LaTeX with booktabs and graphicx is installed")
def test_real_latex_compiles_the_tables(scope, record, tmp_path):
    for name in [*NASTY, "simsiam", "simsiam_gsg", "simsiam_gsg-random"]:
        for seed in range(3):
            record(name, "knn", "digits", {"top1": 50.0 + seed * len(name) % 40}, seed)
            record(name, "recognition", "digits", {"accuracy": 50.0}, seed, protocol={"grid": len(name)})
    text = "".join(path.read_text() for path in (build(scope), *sorted((scope.reports / "demo").glob("*.tex")))[1:])
    document = "\\documentclass{article}\\usepackage{booktabs,graphicx}\\begin{document}\n" + text + "\\end{document}\n"
    (tmp_path / "t.tex").write_text(document)
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "t.tex"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace")
    assert run.returncode == 0, run.stdout[-2000:]
    assert "Overfull" not in run.stdout
    assert (tmp_path / "t.pdf").stat().st_size > 10_000


def test_csv_keeps_precision_and_leaves_holes_empty(standard):
    rows = {row["model"]: row for row in csv_reader.DictReader(io.StringIO(csv(standard))) if not row["minus"]}
    assert float(rows["mine_50%"]["Linear Digits top-1"]) == 71.004
    assert rows["mine_50%"]["kNN Digits top-1"] == ""
    assert float(rows["simsiam_gsg"]["kNN Digits top-1 std"]) == pytest.approx(2**0.5)
    assert rows["simsiam_gsg"]["kNN Digits top-1 seeds"] == "2"
    assert {row["profile"] for row in rows.values()} == {"demo"}


def test_frames(scope, standard, record):
    frame = analysis.load_records(scope.results)
    assert len(frame) == 7
    assert set(frame.columns) >= {"profile", "task", "model", "dataset", "variant", "seed", "metric", "value"}
    assert set(frame.columns) >= {"checkpoint_sha256", "git_commit", "host", "protocol", "details"}
    assert frame[frame.model == "mine_50%"].value.item() == 71.004
    record("byol", "knn", "imagenet", {"top1": 2.0}, profile="imagenet")
    assert set(analysis.load_records(scope.results).profile) == {"demo", "imagenet"}
    assert len(analysis.load_records(scope.results, "demo")) == 7
    frame = analysis.load_tables(scope.results, "demo")["standard"]
    assert frame.loc["simsiam_gsg", ("kNN Digits", "top-1", "mean")] == 61.0
    assert frame.loc["simsiam_gsg", ("kNN Digits", "top-1", "n")] == 2
    assert frame.isna().loc["simsiam_gsg", ("Linear Digits", "top-1", "mean")]


def test_no_records_make_an_empty_frame(scope):
    assert list(analysis.load_records(scope.results).columns[:3]) == ["profile", "task", "model"]


def test_a_corrupt_record_is_named_and_skipped(scope, record, capsys):
    good = record("byol", "knn", "digits", {"top1": 12.0})
    spoilt = record("byol", "linear", "digits", {"top1": 13.0})
    spoilt.write_text('{"schema": 1')
    moved = good.with_name("digits-seed5.json")
    moved.write_bytes(good.read_bytes())
    command = ["--results", str(scope.results), "--reports", str(scope.reports)]
    with pytest.raises(UserError, match="skipped 2 files, see above"):
        tables.main(command)
    out, err = capsys.readouterr()
    assert "12.00" in out
    assert (scope.reports / "demo" / "table-standard.md").is_file()
    assert f"skipped: {spoilt} is not a valid results record" in err
    assert f"skipped: {moved} is the record that belongs at {good}" in err
    with pytest.warns(UserWarning, match="is not a valid results record|belongs at"):
        assert len(analysis.load_records(scope.results)) == 1


def test_corrupt_records_alone_are_named(scope, record):
    path = record("byol", "knn", "digits", {"top1": 12.0})
    path.write_text("{}")
    with pytest.raises(UserError, match=rf"{path} is not a valid results record"):
        build(scope)


def test_profiles_are_never_mixed(scope, record):
    record("byol", "knn", "digits", {"top1": 1.0})
    record("byol", "knn", "imagenet", {"top1": 2.0}, profile="imagenet")
    [table] = build(scope)
    assert table.columns == [("kNN Digits", "top-1"), ("Linear Digits", "top-1")]
    scope = replace(scope, profile="imagenet")
    [table] = build(scope)
    assert table.title == "Standard evaluation, profile imagenet"
    assert table.columns[:2] == [("kNN ImageNet", "top-1"), ("Linear ImageNet", "top-1")]
    with pytest.raises(ValueError, match="profile demo in a table of imagenet"):
        make_tables([{"profile": "demo"}], "imagenet")


def test_datasets_variants_and_tasks_make_columns(scope, record):
    record("byol", "detection", "voc", {"AP": 1.0, "AP50": 2.0, "AP75": 1.5}, variant="frozen")
    record("byol", "detection", "voc", {"AP": 3.0})
    record("byol", "segmentation", "ade20k", {"aAcc": 5.0, "mIoU": 4.0})
    record("byol", "study", "digits", {"top1": 4.0})
    [table] = build(scope)
    assert table.columns == [
        *(("VOC detection", metric) for metric in ("AP", "AP50", "AP75")),
        *(("VOC (frozen) detection", metric) for metric in ("AP", "AP50", "AP75")),
        ("ADE20K segmentation", "mIoU"),
        ("ADE20K segmentation", "aAcc"),
    ]
    assert shown(table)["BYOL"][1:3] == ["—", "—"]  # a hole is a dash


def test_files_of_tables_that_are_gone_are_removed(scope, record):
    path = record("byol", "knn", "digits", {"top1": 1.0})
    record("byol", "recognition", "digits", {"accuracy": 1.0})
    build(scope)
    names = {f"table-{kind}.{ending}" for kind in ("standard", "recognition") for ending in ("md", "tex", "csv")}
    assert {file.name for file in (scope.reports / "demo").iterdir()} == names
    path.unlink()
    build(scope)
    assert not (scope.reports / "demo" / "table-standard.md").exists()


def test_no_records_names_the_command(scope):
    with pytest.raises(UserError, match=r"no results records in .*demo; make some with `make knn linear transfer-all"):
        build(scope)


def test_command_prints_the_tables(scope, record, capsys):
    record("byol", "knn", "digits", {"top1": 12.345})
    tables.main(["--results", str(scope.results), "--reports", str(scope.reports)])
    shown = capsys.readouterr().out
    assert shown.startswith("[analysis.tables] profile=demo")
    assert "### Standard evaluation" in shown
    assert "12.35" in shown or "12.34" in shown


def test_ten_thousand_records_take_under_five_seconds(scope, record):
    """`make tables` as a process of its own, from 10,000 files: 250 models, 8 data sets, 5 seeds."""
    text = Path(record("byol", "recognition", "digits", {"accuracy": 1.0}, protocol={"grid": 45})).read_text()
    template = {name: value for name, value in json.loads(text).items() if name != "sha256"}
    for k in range(250):
        folder = scope.results / "demo" / "recognition" / f"model{k}"
        folder.mkdir()
        for dataset in "abcdefgh":
            for seed in range(5):
                head = {
                    "model": f"model{k}",
                    "dataset": dataset,
                    "seed": seed,
                    "metrics": {"accuracy": (k + seed) % 90},
                }
                (folder / f"{dataset}-seed{seed}.json").write_text(json.dumps({**template, **head}))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "analysis.tables", "--results", scope.results, "--reports", scope.reports]
    subprocess.run(command, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)  # its own time: others on the machine must not matter
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 5
    assert len(read_tables(scope.results, "demo")[0][0].rows) == 251


def test_marks_after_z():
    assert [render.mark(k) for k in (0, 27, 26 * 27)] == ["a", "ab", "aaa"]


@pytest.mark.parametrize("first", ["=", "+", "-", "@", "\t", "\r"])
def test_no_cell_of_a_csv_is_a_formula(scope, record, first):
    label = f"{first}=cmd|' /C calc'!A0"
    for model, value in (("byol", 2.0), ("byol_gsg", 1.0), (label, 3.0)):
        record(model, "knn", label, {"top1": value}, protocol={"splits": label} if value == 3 else {})
    rows = list(csv_reader.reader(io.StringIO(csv(build(scope)[0]))))
    numbers = re.compile(r"-?\d+(\.\d+)?")
    assert all(cell[:1] not in tuple("=+-@\t\r") or numbers.fullmatch(cell) for row in rows for cell in row if cell)
    assert {row[2] for row in rows} >= {"'" + label.strip()}
    assert "-1.0" in [cell for row in rows for cell in row]  # a number stays one
