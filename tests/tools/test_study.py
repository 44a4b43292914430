"""`make study` on a stand-in for CIFAR-10: real runs of a tiny network, in the order of the protocol."""

from dataclasses import replace

import numpy as np
import pytest

from analysis import study as grid
from analysis.study import SCALES, Arm
from common.errors import Diverged, UserError
from common.files import Claim
from common.records import read_record
from tests.layouts import cifar10_binary
from tools import study


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Make the scale `cpu` tiny, and return a function that runs the command in `tmp_path`."""
    options = SCALES["cpu"].options | {
        "model.backbone.name": "test_resnet",
        "model.projector.dim": 16,
        "model.predictor.hidden_dim": 8,
        "train_dataloader.dataset.images.first": 8,
        "evaluation.k": 3,
        "custom_hooks.0.interval": 1,
    }
    monkeypatch.setitem(
        SCALES, "cpu", replace(SCALES["cpu"], epochs=1, batch=4, options=options, arguments=(), saving=1)
    )
    cifar10_binary(tmp_path / "data", per_file=20)
    folders = ["--data", tmp_path / "data", "--runs", tmp_path / "runs", "--study", tmp_path / "study"]
    return lambda *words: study.main([str(word) for word in (*folders, *words)])


def test_a_budget_that_is_spent_adds_one_run_and_the_next_call_the_next(place, tmp_path, capsys):
    place("--budget", "0s", "--only", "simsiam simsiam_gsg")
    (path,) = (tmp_path / "study/records").rglob("*.json")
    record = read_record(path)
    assert (record["task"], record["model"], record["seed"], record["variant"]) == ("study", "simsiam", 0, "cpu")
    assert set(record["metrics"]) == {"knn_top1", "linear_top1"}
    facts = {"epochs": 1, "batch": 4, "n_train": 100, "n_test": 20, "precision": "float32"}
    assert {name: record["protocol"][name] for name in facts} == facts
    assert record["protocol"]["copy"].startswith("CIFAR-10 (unknown copy ")
    assert record["details"]["even_std"] == 0.25
    assert 0 < record["details"]["std"] <= 0.3
    assert 1 <= record["details"]["effective_rank"] <= 96
    assert len(record["details"]["curve"]) == 1
    assert {file.name for file in (tmp_path / "runs").rglob("*.pth")} >= {"iter_1.pth", "iter_2.pth"}
    said = capsys.readouterr().out
    assert "1a         1 of 9" in said
    assert "5 of the runs asked for are left" in said
    place("--budget", "0s", "--only", "simsiam simsiam_gsg")
    assert {path.name for path in (tmp_path / "study/records").rglob("*.json")} == {
        "cifar10-cpu-seed0.json",
        "cifar10-cpu-seed1.json",
    }


def test_the_network_before_training_is_measured_without_a_log(place, tmp_path):
    place("--budget", "0s", "--only", "1a")
    (path,) = (tmp_path / "study/records").rglob("*.json")
    record = read_record(path)
    assert (record["model"], record["protocol"]["epochs"]) == ("untrained", 0)
    assert set(record["metrics"]) == {"knn_top1", "linear_top1"}
    assert set(record["details"]) == {"effective_rank", "weight_decay", "winner_converged"}
    row = next(line for line in grid.write_report(tmp_path / "study").read_text().splitlines() if "Untrained" in line)
    knn, linear = (f"{record['metrics'][name]:.2f}" for name in ("knn_top1", "linear_top1"))
    assert row == f"| Untrained network | 1 | {knn} | {linear} |  | {record['details']['effective_rank']:.1f} |  |"
    assert "higher with GSG, at equal epochs? | Not run yet. |" in (tmp_path / "study/README.md").read_text()


def test_a_run_that_another_process_has_is_left_to_it(place, tmp_path):
    claim = Claim(tmp_path / "study/records/cifar10/study/simsiam/.cifar10-cpu-seed0.claim")
    claim.acquire()
    place("--budget", "0s", "--only", "simsiam")
    claim.release()
    assert [path.name for path in (tmp_path / "study/records").rglob("*.json")] == ["cifar10-cpu-seed1.json"]


def test_a_run_that_diverges_is_reported_and_one_that_is_interrupted_goes_on(place, tmp_path, monkeypatch, capsys):
    ends = iter([KeyboardInterrupt(), Diverged("the loss is nan at step 7; lower the learning rate")])

    def pretrain(job):
        assert job.resume
        raise next(ends)

    monkeypatch.setattr("pretrain.fit.pretrain", pretrain)
    with pytest.raises(KeyboardInterrupt):
        place("--only", "simsiam", "--budget", "0s")
    assert not list((tmp_path / "study").rglob("*.json"))
    place("--only", "simsiam", "--budget", "0s")
    assert "error: simsiam, seed 0: the loss is nan at step 7" in capsys.readouterr().out
    assert grid.failures(tmp_path / "study/records", "cpu") == [
        "SimSiam, seed 0: the loss is nan at step 7; lower the learning rate"
    ]
    ((_, _, seed), *_) = study.missing(study.chosen("simsiam"), "cpu", tmp_path / "study/records")
    assert seed == 1


def test_the_cheapest_missing_run_of_the_first_open_question_comes_first(tmp_path):
    order = [(q.title, arm.name, seed) for q, arm, seed in study.missing(study.chosen(""), "cpu", tmp_path)]
    assert order[:7] == [
        *(("1a", "untrained", seed) for seed in (0, 1, 2)),
        ("1a", "simsiam", 0),
        ("1a", "simsiam", 1),
        ("1a", "simsiam", 2),
        ("1a", "simsiam_gsg", 0),
    ]
    costs = {name: Arm(name).cost for name in ("simsiam", "simsiam_gsg", "simsiam_gsg-shared_views", "byol_gsg")}
    assert costs == {"simsiam": 6, "simsiam_gsg": 12, "simsiam_gsg-shared_views": 6, "byol_gsg": 16}
    assert Arm("byol_gsg-chosen_only").cost == 10
    assert Arm("untrained", times=0).cost == 0


def test_a_run_that_would_not_end_within_the_budget_is_not_begun():
    pace = study.Pace()
    assert pace.of(Arm("simsiam_gsg")) == 0
    pace.add(Arm("simsiam"), 60.0)
    assert pace.of(Arm("simsiam_gsg")) == 120.0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--budget", "90"), "BUDGET is '90'; write a number and s, m or h"),
        (("--only", "7"), "ONLY: unknown question or run '7'"),
        (("--only", "simsim"), "did you mean 'simsiam'"),
        (("--scale", "tpu"), "unknown SCALE 'tpu'; known: cpu, gpu"),
        (("--data", "nowhere"), "make data DATASET=cifar10 DATA=nowhere"),
    ],
)
def test_mistakes(place, words, message):
    with pytest.raises(UserError, match=message):
        place(*words)


def test_the_effective_rank_counts_equal_directions():
    rng = np.random.default_rng(0)
    directions = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    x = np.concatenate([directions[:3], -directions[:3]]) + 5.0
    assert study.effective_rank(x) == pytest.approx(3.0, abs=1e-6)
    assert study.effective_rank(np.ones((4, 6))) == 0.0


def test_the_validation_images_are_of_every_class_in_any_order():
    turns, blocks = np.tile(np.arange(10), 40), np.repeat(np.arange(10), 40)
    for labels in (turns, blocks):
        assert np.bincount(labels[study.validation(labels)]).tolist() == [4] * 10
    assert study.validation(np.zeros(20, int)).nonzero()[0].tolist() == [9, 19]
