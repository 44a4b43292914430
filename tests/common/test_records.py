"""The results record: what fits the schema, where it lies, and when a run is done already."""

import copy
import json
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common import records
from common.errors import UserError
from common.names import PROFILES
from common.records import METRICS, TASKS, RecordKey, git_state, read_record, read_records, validate
from tests.recorded import write_record

VALID = {
    "schema": 1,
    "profile": "demo",
    "task": "recognition",
    "model": "simsiam_gsg",
    "dataset": "digits",
    "seed": 0,
    "metrics": {"accuracy": 91.2},
    "protocol": {"C": 0.56, "n_train": 1437},
    "provenance": {
        "checkpoint_sha256": "aa",
        "config_sha256": "bb",
        "data_fingerprint": "cc",
        "git_commit": "dd",
        "git_dirty": False,
        "versions": {"torch": "2.14.1"},
        "host": "host",
        "device": "cpu",
        "started": "2026-11-22T19:00:00Z",
        "seconds": 12.3,
    },
}
KEY = RecordKey("demo", "recognition", "simsiam_gsg", "digits", 0)
ABSENT = object()


def changed(field, value):
    """Return VALID with the dotted `field` set, or removed when `value` is ABSENT."""
    record = copy.deepcopy(VALID)
    *parents, last = field.split(".")
    inner = record
    for parent in parents:
        inner = inner[parent]
    if value is ABSENT:
        del inner[last]
    else:
        inner[last] = value
    return record


def test_the_example_of_the_design_is_valid():
    validate(VALID)
    with pytest.raises(ValueError):  # noqa: PT011  (its words are tested below)
        validate({**VALID, "schema": 2})


@settings(max_examples=30, deadline=None)
@given(
    profile=st.sampled_from(PROFILES),
    task=st.sampled_from(TASKS),
    seed=st.integers(0, 9),
    metrics=st.dictionaries(st.sampled_from(METRICS), st.floats(0, 100) | st.integers(0, 100), min_size=1),
    variant=st.none() | st.sampled_from(["c4", "fpn"]),
)
def test_what_finish_writes_is_read_back(tmp_path_factory, profile, task, seed, metrics, variant):
    root = tmp_path_factory.mktemp("results")
    key = RecordKey(profile, task, "m", "d", seed, variant)
    path = write_record(root, key, metrics)
    record = read_record(path)
    assert {k: record[k] for k in ("profile", "task", "model", "dataset", "seed", "metrics")} == {
        "profile": profile,
        "task": task,
        "model": "m",
        "dataset": "d",
        "seed": seed,
        "metrics": metrics,
    }
    assert record["protocol"] == {"C": 0.5} | ({"variant": variant} if variant else {})
    assert list(read_records(root, profile)) == [record]


def test_details_are_kept_and_must_be_an_object(tmp_path):
    details = {"AP_per_class": {"cat": 12.5}}
    path = write_record(tmp_path, KEY, {"AP": 12.5}, details=details)
    assert read_record(path)["details"] == details
    with pytest.raises(ValueError, match=r"^details is \[\], of the wrong type$"):
        validate({**VALID, "details": []})


EVERY_FIELD = [*VALID, *(f"provenance.{name}" for name in VALID["provenance"])]


@pytest.mark.parametrize("field", EVERY_FIELD)
def test_a_missing_field_is_named(field):
    with pytest.raises(ValueError, match=rf"^{field} is missing$"):
        validate(changed(field, ABSENT))


@pytest.mark.parametrize("field", EVERY_FIELD)
@pytest.mark.parametrize("value", [None, [], True])
def test_a_field_of_the_wrong_type_is_named(field, value):
    if (field, value) == ("provenance.git_dirty", True):
        pytest.skip("true is right here")
    with pytest.raises(ValueError, match=rf"^{field} is .*, of the wrong type$"):
        validate(changed(field, value))


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("extra", 1, "extra is not part of the schema"),
        ("provenance.extra", 1, "provenance.extra is not part of the schema"),
        ("schema", 2, "schema is 2, this code reads 1"),
        ("profile", "Demo", "profile 'Demo' is none of demo, "),
        ("task", "training", "task 'training' is none of knn, "),
        ("metrics", {}, "metrics is empty"),
        ("metrics", {"loss": 1.0}, "metrics.loss is none of top1, "),
        ("metrics.AP50", "12", "metrics.AP50 is '12', not a finite number"),
        ("metrics.AP50", True, "metrics.AP50 is True, not a finite number"),
        ("metrics.AP50", None, "metrics.AP50 is None, not a finite number"),
        ("metrics.AP50", float("nan"), "metrics.AP50 is nan, not a finite number"),
        ("metrics.AP50", float("inf"), "metrics.AP50 is inf, not a finite number"),
        ("metrics.AP50", -0.1, "metrics.AP50 is -0.1, not a percentage"),
        ("metrics.AP50", 100.1, "metrics.AP50 is 100.1, not a percentage"),
        ("metrics.AP50", 10**400, "metrics.AP50 is 1000"),
    ],
)
def test_a_value_that_does_not_fit_is_named(field, value, says):
    with pytest.raises(ValueError, match="^" + says.replace(".", r"\.")):
        validate(changed(field, value))


@pytest.mark.parametrize("content", [None, 1, "text", [VALID]])
def test_a_record_is_an_object(content):
    with pytest.raises(ValueError, match="a record is an object"):
        validate(content)


@pytest.mark.parametrize(
    ("key", "path"),
    [
        (KEY, "demo/recognition/simsiam_gsg/digits-seed0.json"),
        (
            RecordKey("imagenet", "detection", "byol", "voc", 3, "c4"),
            "imagenet/detection/byol/voc-c4-seed3.json",
        ),
    ],
)
def test_the_path_contract(key, path):
    assert key.path(Path("results")) == Path("results") / path


@pytest.mark.parametrize("value", [float("nan"), 101.0, -1.0])
def test_a_bad_metric_leaves_no_record(tmp_path, value):
    with pytest.raises(ValueError, match=r"metrics\.accuracy"):
        write_record(tmp_path, KEY, {"accuracy": value})
    assert not list(tmp_path.iterdir())


def test_records_of_one_profile_never_bring_another_s(tmp_path):
    for profile in ("demo", "cifar10", "imagenet"):
        for dataset in ("b", "a"):
            write_record(tmp_path, RecordKey(profile, "knn", "m", dataset, 0), {"top1": 1.0})
    found = list(read_records(tmp_path, "cifar10"))
    assert [(r["profile"], r["dataset"]) for r in found] == [("cifar10", "a"), ("cifar10", "b")]
    assert list(read_records(tmp_path / "nowhere", "demo")) == []


def test_a_record_in_the_folder_of_another_profile_is_refused(tmp_path):
    path = tmp_path / "imagenet" / "knn" / "m" / "digits-seed0.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(VALID))
    with pytest.raises(UserError, match=rf"^{path} is a record of profile 'demo'"):
        list(read_records(tmp_path, "imagenet"))


@pytest.mark.parametrize(
    ("content", "field"),
    [
        (json.dumps(changed("provenance.seconds", "long")), "provenance.seconds"),
        (json.dumps(changed("metrics.accuracy", float("nan"))), "metrics.accuracy is nan"),
        (json.dumps(VALID)[:100], "column"),
        ("", "column"),
        ("\xff", "utf-8"),
    ],
)
def test_an_invalid_record_on_disk_is_one_line_with_file_and_field(tmp_path, content, field):
    path = KEY.path(tmp_path)
    path.parent.mkdir(parents=True)
    path.write_bytes(content.encode("latin-1"))
    for read in (lambda: read_record(path), lambda: list(read_records(tmp_path, "demo"))):
        with pytest.raises(UserError) as caught:
            read()
        line = str(caught.value)
        assert len(line.splitlines()) == 1
        assert line.startswith(f"{path} is no valid results record: ")
        assert field in line


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Let the module believe that it lies in `tmp_path`."""
    monkeypatch.setattr(records, "__file__", str(tmp_path / "common" / "records.py"))
    (tmp_path / "common").mkdir()
    git_state.cache_clear()
    yield tmp_path
    git_state.cache_clear()


def test_git_state_outside_a_checkout(elsewhere, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(elsewhere.parent))
    assert git_state() == ("unknown", False)


def test_git_state_without_git(elsewhere, monkeypatch):
    monkeypatch.setenv("PATH", str(elsewhere))
    assert git_state() == ("unknown", False)


def test_git_state_in_a_checkout(elsewhere):
    def git(*arguments):
        named = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        done = subprocess.run(["git", *named, *arguments], cwd=elsewhere, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    git("init", "--quiet")
    (elsewhere / "file").write_text("1")
    git("add", "file")
    git("commit", "--quiet", "--message", "one")
    (elsewhere / "untracked").touch()
    assert git_state() == (git("rev-parse", "HEAD"), False)
    (elsewhere / "file").write_text("2")
    git_state.cache_clear()
    assert git_state() == (git("rev-parse", "HEAD"), True)
