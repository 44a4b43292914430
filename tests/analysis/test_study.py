"""The study's rules, on made records; and the committed report, which must be what the committed records give."""

import json
from pathlib import Path

import pytest
from scipy import stats

from analysis import study
from analysis.study import QUESTIONS, SCALES, SEEDS, Arm
from common.errors import UserError
from common.run import Folders, Job, Measured, Subject, record

ROOT = Path(study.__file__).parents[1]
BY_TITLE = {question.title: question for question in QUESTIONS}


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Return a function that writes a run's record below `tmp_path`/records."""

    def write(arm, seed, knn=50.0, std=0.02, seconds=60.0, epochs=None, scale="cpu"):
        key, settings = study.key(arm, scale, seed), SCALES[scale]
        facts = {"epochs": epochs or settings.epochs * arm.times, "copy": "CIFAR-10 (JPEG 75)"}
        details = {"std": std, "even_std": 2048**-0.5, "effective_rank": 30.0, "seconds": seconds}
        measured = Measured({"knn_top1": knn, "linear_top1": knn + 1}, facts, "0" * 64, "cpu", details)
        path = tmp_path / "net.pth"
        path.touch()
        folders = Folders(results=tmp_path / "records")
        job = Job(key=key, subject=Subject(arm.name, path, ""), settings="0" * 64, folders=folders)
        monkeypatch.setattr(Job, "load", lambda self: None)
        return record(job, lambda *_: measured)

    return write


def fill(write, arm, values, **more):
    for seed, value in zip(SEEDS, values, strict=True):
        write(arm, seed, value, **more)


def answered(tmp_path, title):
    runs = study.read(tmp_path / "records", "cpu")
    return study.answer(BY_TITLE[title], runs), study.sentence(BY_TITLE[title], runs)


@pytest.mark.parametrize(
    ("gsg", "expected"),
    [
        ((52.0, 51.9, 52.1), "yes"),
        ((48.0, 48.1, 47.9), "no"),
        ((55.0, 50.0, 48.0), "undecided"),
    ],
)
def test_higher_is_answered_by_the_interval_of_paired_differences(write, tmp_path, gsg, expected):
    fill(write, Arm("simsiam"), (50.0, 50.2, 49.8))
    fill(write, Arm("simsiam_gsg"), gsg)
    assert answered(tmp_path, "1a")[0] == expected
    found = study.difference(study.read(tmp_path / "records", "cpu"), BY_TITLE["1a"].contrasts[0], "knn_top1")
    differences = [a - b for a, b in zip(gsg, (50.0, 50.2, 49.8), strict=True)]
    wanted = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high))


def test_two_pairs_decide_nothing(write, tmp_path):
    for seed in SEEDS[:2]:
        write(Arm("simsiam"), seed, 50.0)
        write(Arm("simsiam_gsg"), seed, 60.0)
    found, said = answered(tmp_path, "1a")
    assert found == "undecided"
    assert "+10.00 points (n = 2, no interval)" in said
    assert answered(tmp_path, "1b") == ("not run", "Not run yet.")


@pytest.mark.parametrize(
    ("gsg", "plain", "expected"),
    [
        ((0.02, 0.02, 0.02), (0.001, 0.001, 0.0), "yes"),
        ((0.001, 0.001, 0.001), (0.001, 0.001, 0.0), "no"),
        ((0.02, 0.02, 0.02), (0.02, 0.02, 0.02), "no"),
        ((0.02, 0.02, 0.001), (0.001, 0.001, 0.0), "undecided"),
    ],
)
def test_collapse_is_a_small_deviation_of_the_projections(write, tmp_path, gsg, plain, expected):
    for arm, values in (("simsiam_gsg-no_predictor", gsg), ("simsiam-no_predictor", plain)):
        for seed, std in zip(SEEDS, values, strict=True):
            write(Arm(arm), seed, std=std)
    assert answered(tmp_path, "2a")[0] == expected


@pytest.mark.parametrize(
    ("chosen", "seconds", "expected"),
    [
        ((50.2, 50.1, 50.0), 65.0, "yes"),
        ((50.2, 50.1, 50.0), 80.0, "undecided"),
        ((50.2, 50.1, 50.0), 99.0, "no"),
        ((45.0, 45.1, 44.9), 65.0, "no"),
    ],
)
def test_the_same_accuracy_in_less_time(write, tmp_path, chosen, seconds, expected):
    fill(write, Arm("byol_gsg"), (50.0, 50.1, 49.9), seconds=100.0)
    fill(write, Arm("byol_gsg-chosen_only"), chosen, seconds=seconds)
    assert answered(tmp_path, "6")[0] == expected


def test_a_question_of_several_comparisons_needs_all(write, tmp_path):
    fill(write, Arm("simsiam_gsg"), (52.0, 52.1, 51.9))
    fill(write, Arm("simsiam_gsg-shared_views"), (50.0, 50.2, 49.9))
    assert answered(tmp_path, "5")[0] == "undecided"
    fill(write, Arm("simsiam_gsg-shared_views", times=2), (51.0, 51.2, 50.9))
    assert answered(tmp_path, "5")[0] == "yes"


def test_the_grid_is_the_protocol_s():
    names = {arm.name for arm in study.arms()}
    assert {"simsiam-batch64", "simsiam_gsg-batch1024", "simsiam_gsg-farthest", "simsiam_gsg-shared_views-x2"} <= names
    assert len({study.key(arm, "cpu", 0) for arm in study.arms()}) == len(study.arms()) == len(names)
    text = (ROOT / "study/protocol.md").read_text()
    for scale in SCALES.values():
        assert f" {scale.epochs} |" in text
        assert f" {scale.batch}" in text


def test_the_report_lists_every_run_and_every_failure(write, tmp_path):
    fill(write, Arm("simsiam"), (50.0, 50.2, 49.8))
    path = write(Arm("simsiam_gsg"), 0, 52.0)
    path.with_name("cifar10-cpu-seed1" + study.FAILED).write_text(json.dumps({"reason": "the loss is nan at step 7"}))
    text = study.write_report(tmp_path).read_text()
    assert "| SimSiam | 3 | 50.00 ± 0.20 | 51.00 ± 0.20 |" in text
    assert "- SimSiam w/ GSG, seed 1: the loss is nan at step 7" in text
    assert "CIFAR-10 (JPEG 75)" in text
    assert "SimSiam w/ GSG" in (tmp_path / "knn-cpu.svg").read_text()
    assert not (tmp_path / "knn-gpu.svg").exists()


def test_records_of_other_settings_are_not_mixed_in(write, tmp_path):
    path = write(Arm("simsiam"), 0, epochs=3)
    with pytest.raises(UserError, match="other epochs than the protocol's 16"):
        study.read(tmp_path / "records", "cpu")
    path.write_text("{")
    with pytest.raises(UserError, match="seed0"):
        study.read(tmp_path / "records", "cpu")


def test_the_committed_report_is_what_the_committed_records_give(tmp_path):
    (tmp_path / "records").symlink_to(ROOT / "study/records")
    study.main(["--study", str(tmp_path)])
    for made in [path for path in tmp_path.iterdir() if path.is_file()]:
        assert made.read_bytes() == (ROOT / "study" / made.name).read_bytes(), made.name
