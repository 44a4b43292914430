import csv
import re

import pytest

import analysis
from analysis import scoreboard
from analysis.names import EXPECTED
from analysis.render import csv as as_csv
from analysis.render import latex, markdown
from analysis.scoreboard import HEADER, MINUS, NOT_ENTERED, TITLE, beside, read_published
from analysis.table import number
from analysis.tables import build, make_tables
from common.names import PROFILES
from common.records import read_records

DEMO = {"profile": "demo", "task": "knn", "dataset": "digits", "metric": "top1", "model": "Theirs", "value": "61.5"}
FACTS = {"k": 20, "temperature": 0.1, "n_test": 360}


def published(folder, *numbers, name="a.csv"):
    """Write a file of published numbers, each a dict of what it has other than DEMO."""
    lines = [{**dict.fromkeys(HEADER, ""), **DEMO, "source": "a paper, table 2", **other} for other in numbers]
    with (folder / name).open("w", newline="") as stream:
        writer = csv.DictWriter(stream, HEADER)
        writer.writeheader()
        writer.writerows(lines)
    return read_published("demo", folder)


@pytest.fixture
def table(scope, record, tmp_path):
    """Return a function that makes the first table of three records beside published numbers."""
    for model, value in (("simsiam", 60.0), ("simsiam_gsg", 62.0), ("byol", 61.0)):
        record(model, "knn", "digits", {"top1": value}, protocol=FACTS)

    def make(*numbers):
        found, problems = published(tmp_path, *numbers)
        assert problems == []
        return make_tables(read_records(scope.results, "demo")[0], "demo", scope.results, found)[0]

    return make


def rows(table):
    return {row.label: [number(table, row, k) for k in range(len(row.cells))] for row in table.rows}


def test_published_numbers_stand_below_ours_as_printed_and_do_not_compete(table):
    made = table({"value": "99.9"}, {"model": "The paper's", "value": ""}, {"metric": "minutes", "value": "375.9"})
    assert made.columns == [("kNN Digits", "top-1"), ("kNN Digits", "pretraining (min)"), ("Linear Digits", "top-1")]
    assert [section.title for section in made.sections] == ["", TITLE]
    assert rows(made)["Theirs"] == ["99.9", "375.9", "—"]
    assert rows(made)["The paper's"] == [NOT_ENTERED, "—", "—"]
    assert not any(cell.best or cell.tied for row in made.rows for cell in row.cells)  # ours have one seed
    assert made.notes == ["a paper, table 2"]
    assert list(made.frame().index) == ["simsiam", "simsiam_gsg", "byol"]


def test_every_format_marks_them_as_published(table):
    made = table({}, {"model": "The paper's", "value": ""})
    assert f"| *{TITLE}*" in markdown(made)
    assert re.search(r"\| Theirs +\| +61\.5<sup>a</sup>", markdown(made))
    assert rf"\textit{{{TITLE}}}" in latex(made)
    assert "The paper's & not entered" in latex(made)
    lines = {line["model"]: line for line in csv.DictReader(as_csv(made).splitlines())}
    assert (lines["Theirs"]["section"], lines["simsiam"]["section"]) == (TITLE, "")
    assert lines["Theirs"]["kNN Digits top-1"] == "61.5"
    assert lines["The paper's"]["kNN Digits top-1"] == NOT_ENTERED


@pytest.mark.parametrize(
    ("protocol", "ours", "note"),
    [
        ("k=20; n_test=360", "simsiam", None),
        ("k=20; n_test=360.0; temperature=0.1", "simsiam", None),
        ("k=200; n_test=360", "simsiam", "not compared with ours: k 200, here 20"),
        ("k=20; n_test=10000", "simsiam", "not compared with ours: test images 10000, here 360"),
        ("epochs=9; n_test=360", "simsiam", "not compared with ours: epochs 9, here unknown"),
        ("k=20", "simsiam", "not compared with ours: its test images are not stated"),
        ("", "simsiam", ""),
        ("k=20; n_test=360", "", ""),
        ("k=20; n_test=360", "another", ""),
    ],
)
def test_a_difference_needs_equal_protocol_and_data(table, protocol, ours, note):
    made = table({"protocol": protocol, "ours": ours})
    if note is None:
        assert made.columns[1] == ("kNN Digits", f"top-1, {MINUS}")
        column = {label: texts[1] for label, texts in rows(made).items()}
        assert column.pop("SimSiam") == "-1.50"
        assert set(column.values()) == {"—"}
        assert "$-$1.50" in latex(made)
    else:
        assert not any(MINUS in metric for _, metric in made.columns)
        assert made.notes == ["a paper, table 2", *filter(None, [note])]


def test_averages_and_ranks_are_of_ours_alone(scope, record, tmp_path):
    eleven = [key for key in EXPECTED["imagenet"] if key[0] == "recognition"]
    for model, value in (("simsiam", 60.0), ("byol", 61.0)):
        for _, dataset, _, metric in eleven:
            record(model, "recognition", dataset, {metric: value}, profile="imagenet")
    folder = tmp_path / "published"
    folder.mkdir()
    published(folder, *({"profile": "imagenet", "task": task, "dataset": dataset, "metric": metric, "value": "99.0"}
                        for task, dataset, _, metric in eleven))  # fmt: skip
    [made] = make_tables(
        read_records(scope.results, "imagenet")[0], "imagenet", scope.results, read_published("imagenet", folder)[0]
    )
    assert {label: texts[-2:] for label, texts in rows(made).items()} == {
        "SimSiam": ["60.00", "2.00"],
        "BYOL": ["61.00", "1.00"],
        "Theirs": ["—", "—"],
    }


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"profile": "paper"}, "line 2: profile 'paper' is none of demo, cifar10, imagenet"),
        ({"task": "cooking"}, "line 2: task 'cooking' is none of knn, linear,"),
        ({"dataset": "mnist"}, "line 2: dataset 'mnist' is none of aircraft,"),
        ({"metric": "accurancy"}, "line 2: metric 'accurancy' is none of top1,"),
        ({"model": " "}, "line 2: model is empty"),
        ({"source": ""}, "line 2: source is empty"),
        ({"value": "61,5"}, "line 2: value '61,5' is not a number"),
        ({"value": "nan"}, "line 2: value nan is not a percentage in 0-100"),
        ({"value": "101"}, "line 2: value 101 is not a percentage in 0-100"),
        ({"metric": "minutes", "value": "-1"}, "line 2: value -1 is not a percentage"),
        ({"protocol": "neighbours=20"}, "line 2: protocol 'neighbours' is no setting of a record"),
        ({"protocol": "weight_decay=1"}, "line 2: protocol 'weight_decay' is no setting of a record"),
        ({"protocol": "k=many"}, "line 2: protocol k 'many' is not a number"),
        ("profile,model\n", "its header is 'profile,model', not 'profile,task,"),
        ("", "its header is '', not"),
        (",".join(HEADER) + "\ndemo,knn\n", "line 2: 2 cells, not 11"),
        (",".join(HEADER) + '\n"demo', "unexpected end of data"),
        (b"\xff", "can't decode byte 0xff"),
    ],
)
def test_a_malformed_file_is_named_in_one_line_and_left_out(tmp_path, change, said):
    published(tmp_path, {}, name="good.csv")
    if isinstance(change, dict):
        found, problems = published(tmp_path, change, name="bad.csv")
    else:
        (tmp_path / "bad.csv").write_bytes(change if isinstance(change, bytes) else change.encode())
        found, problems = read_published("demo", tmp_path)
    assert [one.file for one in found] == ["good.csv"]
    [line] = problems
    assert line.startswith(f"{tmp_path / 'bad.csv'} is not a file of published numbers: ")
    assert said in line
    assert "\n" not in line


def test_a_number_twice_is_refused(tmp_path):
    assert "line 3: the number is there twice" in published(tmp_path, {}, {"value": "1"})[1][0]


def test_our_own_files_are_valid_and_every_number_has_its_source():
    numbers = [number for profile in PROFILES for number in _valid(profile)]
    assert len(numbers) == sum(len(path.read_text().splitlines()) - 1 for path in scoreboard.FOLDER.glob("*.csv"))
    for one in numbers:  # a repository's commit and file, a page's table, or the paper
        assert re.search(r" [0-9a-f]{7}: \S+|\.html, |^the paper", one.note), one
        assert (one.value == "") == (one.file == "paper.csv")


def _valid(profile):
    numbers, problems = read_published(profile)
    assert problems == []
    return numbers


def test_ours_is_compared_with_simsiams_own_readme(scope, record):
    facts = {"epochs": 90, "batch": 4096, "optimizer": "LARS", "n_train": 1281167, "n_test": 50000, "lr": 1.6}
    record("simsiam", "linear", "imagenet", {"top1": 67.9, "best_top1": 68.0}, profile="imagenet", protocol=facts)
    [made], problems = build(scope.results, "imagenet", scope.folder)
    assert problems == []
    assert rows(made)["SimSiam"][-2:] == ["68.00", "-0.10"]
    assert rows(made)["SimSiam, the paper"][:2] == [NOT_ENTERED, NOT_ENTERED]
    frame = analysis.load_tables(scope.results, "imagenet")["standard"]
    assert list(frame.index) == ["simsiam"]
    assert frame["Linear ImageNet", f"best top-1, {MINUS}", "mean"].item() == pytest.approx(-0.1)


def test_no_published_number_of_another_profile_or_task_changes_a_table(table, tmp_path):
    made = table({"profile": "cifar10"}, {"task": "linear", "dataset": "imagenet", "profile": "imagenet"})
    assert len(made.sections) == 1
    assert beside(made, [("knn", "digits", "", "top1")], []) is made
