"""The results record: what fits the schema, where it lies, and when a run has been done."""

import copy
import json
import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common import records
from common.errors import UserError
from common.names import PROFILES
from common.records import (
    FORMER_NAMES,
    METRICS,
    PROTOCOL,
    TASKS,
    RecordKey,
    git_state,
    key_of,
    read_record,
    read_records,
    validate,
)
from tests.recorded import write_record

VALID = {
    "schema": 2,
    "profile": "demo",
    "task": "recognition",
    "model": "simsiam_gsg",
    "dataset": "digits",
    "variant": None,
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
OLD = {name: value for name, value in VALID.items() if name != "variant"} | {"schema": 1}
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
        validate({**VALID, "schema": 3})


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
    assert (record["schema"], record["variant"], record["protocol"]) == (2, variant, {"C": 0.5})
    assert (key_of(record), record["metrics"]) == (key, metrics)
    assert read_records(root, profile) == ([record], [])


@pytest.mark.parametrize("variant", [None, "frozen"])
def test_a_record_of_schema_1_means_the_same(tmp_path, variant):
    key = RecordKey("demo", "recognition", "simsiam_gsg", "digits", 0, variant)
    new = {**VALID, "variant": variant, "protocol": {"batch": 256, "precision": "float16"}}
    old = {**VALID, "schema": 1, "protocol": {"batch_size": 256, "amp": "fp16"}}
    del old["variant"]
    if variant:
        old["protocol"]["variant"] = variant
    key.path(tmp_path).parent.mkdir(parents=True)
    for record in (old, new):
        key.path(tmp_path).write_text(json.dumps(record))
        assert read_records(tmp_path, "demo") == ([new], [])
    assert key_of(new) == key
    with pytest.raises(ValueError, match=r"^variant is not part of the schema$"):
        validate({**old, "variant": variant})
    with pytest.raises(ValueError, match=r"^variant is missing$"):
        validate({**old, "schema": 2})


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("optimiser", "LARS", "optimiser is not part of the schema"),
        ("variant", "frozen", "variant is not part of the schema"),
        ("epochs", 90.0, "epochs is 90.0, of the wrong type"),
        ("epochs", True, "epochs is True, of the wrong type"),
        ("batch_size", "256", "batch is '256', of the wrong type"),
        ("any_size", 0, "any_size is 0, of the wrong type"),
    ],
)
def test_a_protocol_speaks_the_vocabulary_except_in_schema_1(name, value, says):
    with pytest.raises(ValueError, match=rf"^protocol\.{says}$"):
        validate(changed(f"protocol.{name}", value))
    old = {**changed(f"protocol.{name}", value), "schema": 1}
    del old["variant"]
    validate(old)


def test_every_fact_says_what_it_means_and_former_names_lead_to_facts():
    assert all(fact.means for fact in PROTOCOL.values())
    assert set(FORMER_NAMES.values()) <= set(PROTOCOL)
    assert not set(FORMER_NAMES) & set(PROTOCOL)


def test_details_are_kept_and_must_be_an_object(tmp_path):
    details = {"AP_per_class": {"cat": 12.5}}
    path = write_record(tmp_path, KEY, {"AP": 12.5}, details=details)
    assert read_record(path)["details"] == details
    with pytest.raises(ValueError, match=r"^details is \[\], of the wrong type$"):
        validate({**VALID, "details": []})


def test_a_flipped_digit_is_found(tmp_path):
    path = write_record(tmp_path, KEY, {"accuracy": 91.2})
    path.write_text(path.read_text().replace("91.2", "97.2"))
    with pytest.raises(UserError, match=r"does not fit its sha256: .*; delete it and run its command again$"):
        read_record(path)


EVERY_FIELD = [*VALID, *(f"provenance.{name}" for name in VALID["provenance"])]


@pytest.mark.parametrize("field", EVERY_FIELD)
def test_a_missing_field_is_named(field):
    with pytest.raises(ValueError, match=rf"^{field} is missing$"):
        validate(changed(field, ABSENT))


@pytest.mark.parametrize("field", EVERY_FIELD)
@pytest.mark.parametrize("value", [None, [], True])
def test_a_field_of_the_wrong_type_is_named(field, value):
    if (field, value) in (("provenance.git_dirty", True), ("variant", None)):
        pytest.skip("this value is right here")
    with pytest.raises(ValueError, match=rf"^{field} is .*, of the wrong type$"):
        validate(changed(field, value))


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("extra", 1, "extra is not part of the schema"),
        ("provenance.extra", 1, "provenance.extra is not part of the schema"),
        ("schema", 3, "schema is 3, this code reads 1 to 2"),
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
    found, problems = read_records(tmp_path, "cifar10")
    assert [(r["profile"], r["dataset"]) for r in found] == [("cifar10", "a"), ("cifar10", "b")]
    assert problems == []
    assert read_records(tmp_path / "nowhere", "demo") == ([], [])


def test_a_record_in_the_folder_of_another_profile_is_a_problem(tmp_path):
    path = tmp_path / "imagenet" / "knn" / "m" / "digits-seed0.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(VALID))
    problem = f"{path} is a record of profile 'demo'; move it where it belongs"
    assert read_records(tmp_path, "imagenet") == ([], [problem])


@pytest.mark.parametrize(
    ("content", "field"),
    [
        (json.dumps(changed("provenance.seconds", "long")), "provenance.seconds"),
        (json.dumps(changed("metrics.accuracy", float("nan"))), "metrics.accuracy is nan"),
        (json.dumps(VALID)[:100], "column"),
        ("", "column"),
        ("\xff", "utf-8"),
        ("\xef\xbb\xbf" + json.dumps(VALID), "BOM"),
        ("[" * 100_000, "recursion"),
        (json.dumps(VALID)[:-1] + ', "details": ' + '{"a": ' * 900 + "1" + "}" * 901, "nested more than 20 deep"),
        (json.dumps(VALID)[:-1] + ', "seed": ' + "9" * 5000 + "}", "4300 digits"),
        (json.dumps(changed("provenance.host", "a\ud800")), "provenance.host is 'a\\ud800', which is not Unicode text"),
        (json.dumps(changed("model", "\udfff")), "model is '\\udfff', which is not Unicode text"),
        (json.dumps(changed("provenance.versions", {"\ud800": "1"})), "provenance.versions's keys is '\\ud800'"),
        (json.dumps(changed("variant", 3)), "variant is 3, of the wrong type"),
        (json.dumps(changed("protocol.test_scales", [[float("nan")]])), "protocol.test_scales is nan"),
        (json.dumps(changed("provenance.seconds", 10**400)), "provenance.seconds is 1000"),
        (json.dumps(changed("a\n\x1b[31mb", 1)), "a\\n\\x1b[31mb is not part of the schema"),
        (json.dumps(OLD | {"protocol": {"variant": 3}}), "protocol.variant is 3, of the wrong type"),
        (json.dumps(OLD | {"protocol": {"variant": ["c4"]}}), "protocol.variant is ['c4'], of the wrong type"),
    ],
)
def test_an_invalid_record_on_disk_is_one_line_with_file_and_field(tmp_path, content, field):
    path = KEY.path(tmp_path)
    path.parent.mkdir(parents=True)
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError) as caught:
        read_record(path)
    line = str(caught.value)
    assert len(line.splitlines()) == 1
    assert len(line) < 600
    assert line.startswith(f"{path} is not a valid results record: ")
    assert field in line
    assert read_records(tmp_path, "demo") == ([], [line])


def test_a_host_name_that_is_not_utf_8_loses_no_record(tmp_path, monkeypatch):
    monkeypatch.setattr("platform.node", lambda: "h\udcff")
    assert read_record(write_record(tmp_path, KEY, {"accuracy": 1.0}))["provenance"]["host"] == "h?"


def test_linked_folders_are_followed_but_not_in_circles(tmp_path):
    results, outside = tmp_path / "results", tmp_path / "outside"
    path = write_record(tmp_path / "away", KEY, {"accuracy": 1.0})
    (results / "demo").mkdir(parents=True)
    (results / "demo" / "recognition").symlink_to(path.parent.parent)
    outside.mkdir()
    (outside / "back").symlink_to(results)
    (results / "demo" / "outside").symlink_to(outside)
    (results / "demo" / "self").symlink_to(".")
    (results / "demo" / "nothing").symlink_to("missing")
    records, problems = read_records(results, "demo")
    assert ([key_of(record) for record in records], problems) == ([KEY], [])


def test_what_is_not_a_file_is_one_problem(tmp_path):
    (tmp_path / "demo" / "folder.json").mkdir(parents=True)
    os.mkfifo(tmp_path / "demo" / "fifo.json")
    (tmp_path / "demo" / "link.json").symlink_to("missing")
    records, problems = read_records(tmp_path, "demo")
    assert (records, len(problems)) == ([], 3)
    assert all(
        "json is not a valid results record: it is not a readable file; make it readable" in problem
        for problem in problems
    )


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
