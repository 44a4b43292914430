"""The road of a run: when it is done already, and what its record replaces."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from common.errors import UserError
from common.files import sha256_of_file
from common.records import RecordKey, read_record, read_records
from common.run import Folders, Job, Measured, Subject, pending, record, todo

KEY = RecordKey("demo", "recognition", "simsiam_gsg", "digits", 0)


class Unread(Job):
    """A run that measures without reading its checkpoint."""

    def load(self):
        return None


@pytest.fixture
def job(tmp_path):
    path = tmp_path / "ours.pth"
    path.write_bytes(b"weights")
    subject = Subject("simsiam_gsg", path, "make pretrain")
    return Unread(key=KEY, subject=subject, settings="bb", folders=Folders(results=tmp_path / "results"))


def finish(job, accuracy=91.2):
    return record(job, lambda job, checkpoint: Measured({"accuracy": accuracy}, {"C": 0.5}, "cc", "cpu"))


def test_a_run_is_done_once(job, capsys):
    assert pending([job]) == [job]
    path = finish(job)
    provenance = read_record(path)["provenance"]
    assert provenance["checkpoint_sha256"] == sha256_of_file(job.subject.path)
    assert provenance["config_sha256"] == "bb"
    said = f"simsiam_gsg, recognition on digits: accuracy 91.20  -> {path}\n"
    assert capsys.readouterr().out == said
    assert pending([job]) == []
    assert capsys.readouterr().out == ""
    assert todo([job]) == []
    assert capsys.readouterr().out == f"already done: {path}\n"
    assert pending([replace(job, again=True)])


@pytest.mark.parametrize("cause", ["checkpoint", "settings", "record", "seed", "product", "empty", "flipped"])
def test_a_run_is_done_again_for(tmp_path, job, cause):
    product, weights = tmp_path / "prediction.png", tmp_path / "final.pth"
    product.write_text("pixels")
    torch.save({"bias": torch.zeros(100)}, weights)
    job = replace(job, products=[product, weights])
    path = finish(job)
    assert pending([job]) == []
    changes = {}
    if cause == "checkpoint":
        job.subject.path.write_bytes(b"other weights")
    elif cause == "settings":
        changes = dict(settings="other")
    elif cause == "record":
        path.unlink()
    elif cause == "seed":
        changes = dict(key=replace(KEY, seed=1))
    elif cause == "product":
        product.unlink()
    elif cause == "empty":
        product.write_bytes(b"")
    else:
        content = bytearray(weights.read_bytes())
        content[content.index(bytes(400))] ^= 1
        weights.write_bytes(content)
    assert len(pending([replace(job, **changes)])) == 1


def test_a_checkpoint_is_hashed_once_a_run(job, monkeypatch):
    hashed = []
    monkeypatch.setattr("common.run.sha256_of_network", lambda path, key: hashed.append(path) or "aa")
    pending([job])
    finish(job)
    assert hashed == [job.subject.path]


@pytest.mark.parametrize("cause", ["checkpoint", "settings"])
def test_a_record_of_other_settings_is_refused_or_replaced_with_a_word_and_kept(job, capsys, cause):
    path = finish(job)
    before = path.read_text()
    if cause == "checkpoint":
        job.subject.path.write_bytes(b"other weights")
    job = replace(job, settings="bb" if cause == "checkpoint" else "other")
    with pytest.raises(UserError, match=rf"^{path} is the record of another .*; add OVERWRITE=1 \(--overwrite\) to"):
        pending([replace(job, overwrite=False)])
    assert pending([job]) == [job]
    assert path.read_text() == before
    capsys.readouterr()
    finish(job, accuracy=1.0)
    kept = path.with_name(f"{path.name}.replaced-1")
    assert capsys.readouterr().out.startswith(f"replacing a record of other settings, which is kept: {kept}\n")
    assert kept.read_text() == before
    assert [record["metrics"] for record in read_records(job.folders.results, "demo")[0]] == [{"accuracy": 1.0}]


def test_a_record_of_the_same_settings_is_replaced_and_one_that_was_damaged_meanwhile_does_not_stop_a_run(job):
    path = finish(job)
    finish(job, accuracy=1.0)
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    path.write_text("{")
    with pytest.raises(UserError, match=rf"^{path} is not a valid results record: "):
        pending([job])
    finish(job, accuracy=2.0)
    assert read_record(path)["metrics"] == {"accuracy": 2.0}
    assert path.with_name(f"{path.name}.replaced-1").read_text() == "{"


def test_a_missing_checkpoint_names_the_command_that_makes_it(job, tmp_path):
    subject = Subject("m", tmp_path / "gone.pth", "make pretrain METHOD=byol")
    with pytest.raises(UserError, match=r"gone\.pth is missing; make it with `make pretrain METHOD=byol`$"):
        pending([replace(job, subject=subject)])


def test_of_several_processes_the_first_writes(job, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert finish(job) == Path(job.place)
    assert not job.place.exists()
