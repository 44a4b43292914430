"""`make evaluate`: what it says before, what it runs, how it goes on, and the table at its end."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from common.backbones import build_backbone
from common.errors import UserError
from common.names import PROFILES
from common.records import RecordKey
from common.run import Subject
from common.sources import SOURCES
from tests.dense import Place, place, tiny_data
from tests.recorded import write_record
from tools import evaluate, warmup
from tools.plan import Benchmark, Survey, Work, benchmarks
from tools.stages import Outcome

__all__ = ["place", "tiny_data"]


def table(out):
    """Return the cells of the table that ends an output, by benchmark."""
    rows = [re.split(r"\s{2,}", line) for line in out.splitlines()]
    return {name: cells for name, *cells in rows}


DENSE = [("detection", "voc"), ("detection", "coco"), ("segmentation", "ade20k")]
METRICS = {"knn": "top1", "linear": "top1", "detection": "AP", "segmentation": "mIoU"}


@pytest.fixture
def chain(tmp_path, monkeypatch):
    """Return a chain whose commands leave records, or fail where `failing` has their title; nothing is computed."""
    monkeypatch.chdir(tmp_path)
    Path("net.pth").write_bytes(b"weights")

    class Chain:
        left_out, refused, failing = {}, {}, set()

        def __init__(self):
            self.ran = {}

        def main(self, *argv, ours=False):
            evaluate.main([*argv, *([] if ours else ["--checkpoint", "net.pth", "--name", "mine"])])

    def survey(subjects, wanted, profile, data, root, processes):
        left_out = {one: made.left_out[one.dataset] for one in wanted if one.dataset in made.left_out}
        return Survey(made.refused, {one: Work(100, 50.0) for one in wanted if one not in left_out}, left_out)

    def run(title, words):
        title = title.partition(" ")[2]
        made.ran[title] = words
        if title in made.failing:
            return Outcome(1, 0.1)
        values = {name: words[words.index(name) + 1] for name in words if name.startswith("--") and name != words[-1]}
        module = next(word for word in words if "." in word and not word.startswith("tools"))
        task = {"pretrain.knn": "knn", "pretrain.linear": "linear", "transfer.run": "recognition"}.get(module)
        task = task or module.split(".")[0]
        for dataset in values.get("--dataset", "ade20k" if task == "segmentation" else "digits").split():
            if task != "analysis":
                key = RecordKey(values["--profile"], task, values.get("--name") or values["--method"], dataset, 0)
                metric = METRICS.get(task) or SOURCES[dataset].metric
                write_record(
                    Path("results"),
                    key,
                    {metric: 50.0},
                    checkpoint=Subject("", Path("net.pth"), "", values.get("--key")).sha256,
                )
        return Outcome(0, 0.1)

    made = Chain()
    monkeypatch.setattr(evaluate, "_surveyed", survey)
    monkeypatch.setattr(evaluate, "run", run)
    return made


def test_everything_runs_and_a_table_and_the_page_end_it(chain, capsys):
    chain.main()
    assert list(chain.ran) == [
        *("mine: kNN Digits", "mine: Linear Digits", "mine: recognition", "mine: VOC detection"),
        *("mine: COCO detection", "mine: ADE20K segmentation", "geometry", "tables and page"),
    ]
    recognition = chain.ran["mine: recognition"]
    assert recognition[0] == "transfer.run"
    assert recognition[-2:] == ["--dataset", "digits scenes"]
    assert all("--resume" in chain.ran[f"mine: {name}"] for name in ("Linear Digits", "VOC detection"))
    assert all("--overwrite" not in words for words in chain.ran.values())
    before, after = capsys.readouterr().out.split("in all about 0:00:14, besides")
    assert "kNN Digits                          100 images at     50.0 a second: 0:00:02" in before
    assert table(after)["kNN Digits"] == ["top-1", "50.00"]
    assert table(after)["Scenes transfer"] == ["mAP", "50.00"]
    assert after.endswith(f"the page: {Path('reports/demo/index.html').resolve()}\n")
    chain.main()  # the records are the state: what is done costs nothing
    assert capsys.readouterr().out.split("in all about ")[1].startswith("0:00:00")


def test_it_goes_on_after_failures_and_names_them_at_the_end(chain, capsys):
    chain.failing = {"mine: kNN Digits", "mine: recognition", "geometry"}
    chain.left_out = {"coco": "no coco; run `make data DATASET=coco`"}
    with pytest.raises(UserError, match="failed: mine: kNN Digits, mine: recognition, geometry; what they printed"):
        chain.main()
    assert len(chain.ran) == 7
    out = capsys.readouterr().out
    assert "left out: COCO detection: no coco; run `make data DATASET=coco`" in out
    cells = {name: cells[-1] for name, cells in table(out).items() if cells}
    assert cells["kNN Digits"] == cells["Digits transfer"] == "failed"
    assert (cells["VOC detection"], cells["COCO detection"]) == ("50.00", "left out")


def test_a_record_of_a_failed_command_or_of_another_file_is_not_shown(chain, capsys):
    chain.main("--only=knn linear")
    chain.failing = {"mine: Linear Digits"}
    with pytest.raises(UserError, match="Linear Digits"):
        chain.main("--only=linear")
    assert table(capsys.readouterr().out)["Linear Digits"] == ["top-1", "failed"]
    Path("net.pth").write_bytes(b"other weights")
    chain.failing = {"mine: kNN Digits"}
    with pytest.raises(UserError, match="kNN Digits"):
        chain.main("--only=knn")
    assert "recorded" not in capsys.readouterr().out


def test_refused_checkpoints_of_several_methods_do_not_stop_the_others(chain, capsys):
    chain.refused = {"simsiam": "checkpoint simsiam.pth is missing; make it with `make pretrain`"}
    Path("checkpoints/demo").mkdir(parents=True)
    for method in ("byol", "byol_gsg", "simsiam_gsg"):
        Path(f"checkpoints/demo/{method}.pth").write_bytes(b"weights")
    with pytest.raises(UserError, match="failed: checkpoint of simsiam;"):
        chain.main("--method=all", "--only=knn", ours=True)
    assert chain.ran["geometry"][-4:-2] == ["--method", "simsiam_gsg byol byol_gsg"]
    out = capsys.readouterr().out
    assert "refused: simsiam: checkpoint simsiam.pth is missing" in out
    assert table(out)["kNN Digits"] == ["top-1", *["50.00"] * 3]
    chain.refused = {"mine": "it is damaged"}
    with pytest.raises(UserError, match=r"^it is damaged$"):
        chain.main()


def test_options_choose_benchmarks_and_reach_the_commands(chain):
    chain.main("--only=linear, voc", "--gpus=2", "--overwrite", "--runs=elsewhere", "--key=student")
    assert list(chain.ran) == ["mine: Linear Digits", "mine: VOC detection", "tables and page"]
    for title, module in (("mine: Linear Digits", "pretrain.linear"), ("mine: VOC detection", "detection.train")):
        words = chain.ran[title]
        assert words[:6] == ["tools.launch", "--standalone", "--nproc_per_node", "2", "-m", module]
        assert words[-4:] == ["--resume", "--overwrite", "--launcher", "pytorch"]
        assert (words[words.index("--runs") + 1], words[words.index("--key") + 1]) == ("elsewhere", "student")
    with pytest.raises(UserError, match="unknown ONLY 'vocs'; known: knn, digits, linear"):
        chain.main("--only=vocs")


@pytest.mark.parametrize(
    ("files", "titles", "words"),
    [
        (["train/a/1.png", "val/a/1.png"], ["kNN mine", "Linear mine", "mine transfer"], ["--data-root", "sets/mine"]),
        (["ImageSets/Main/train.txt"], ["mine detection"], ["--dataset", "voc"]),
        (["annotations/instances_train.json"], ["mine detection"], ["--dataset", "coco"]),
        (["annotations/train/1.png"], ["mine segmentation"], ["--classes", "a,b"]),
    ],
)
def test_a_folder_of_the_users_is_evaluated_by_what_it_holds(chain, request, files, titles, words):
    request.addfinalizer(lambda: SOURCES.pop("mine", None))
    for file in files:
        path = Path("sets/mine", file)
        path.parent.mkdir(parents=True)
        path.touch()
    chain.main("--data-root=sets/mine", "--classes=a,b")
    measuring = {title.removeprefix("mine: "): words for title, words in chain.ran.items() if "mine: " in title}
    assert list(measuring) == titles
    for ran in measuring.values():
        assert "--data-root sets/mine" in " ".join(ran)
        assert " ".join(words) in " ".join(ran)
    assert ("geometry" in chain.ran) == ("kNN mine" in titles)


def test_a_folder_that_fits_no_task_is_refused(chain):
    Path("empty").mkdir()
    with pytest.raises(UserError, match="has neither train/ and val/, with one folder per class, nor ImageSets"):
        chain.main("--data-root=empty")
    with pytest.raises(UserError, match="is not a folder"):
        chain.main("--data-root=gone")
    Path("empty/ImageSets/Main").mkdir(parents=True)
    Path("empty/ImageSets/Main/a.txt").touch()
    with pytest.raises(UserError, match="profile cifar10 has no detection, which empty is for"):
        chain.main("--data-root=empty", "--profile=cifar10")


@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_has_the_benchmarks_that_its_configs_have(profile):
    found = {(one.task, one.dataset) for one in benchmarks(profile)}
    assert found & {*DENSE} == (set() if profile == "cifar10" else {*DENSE})
    assert {"knn", "linear", "recognition"} <= {task for task, _ in found}


def test_the_survey_measures_what_is_there_and_names_what_is_missing(place: Place, monkeypatch, capsys):
    monkeypatch.setattr(warmup, "ENOUGH", 0.0)
    (place.data / "dtd").mkdir(exist_ok=True)
    ours = Subject("mine", place.checkpoint("resnet18"), "make pretrain")
    gone = Subject("gone", place.root / "gone.pth", "make pretrain METHOD=gone")
    here = [Benchmark("recognition", "scenes", (32, 32)), Benchmark("linear", "scenes", (32, 32), passes=3)]
    here += [Benchmark(task, layout, layout=layout) for task, layout in (DENSE[0], DENSE[2])]
    broken, missing = (Benchmark("recognition", name, (32, 32)) for name in ("dtd", "pets"))
    found = warmup.survey([gone, ours], [*here, broken, missing], "demo", place.data)
    assert list(found.refused) == ["gone"]
    assert "make it with `make pretrain METHOD=gone`" in found.refused["gone"]
    assert [found.work[one].images for one in here] == [10, 30, 520, 1600]
    assert all(work.per_second > 0 for work in found.work.values())
    assert found.work[here[0]].per_second == found.work[here[1]].per_second  # one measurement
    assert list(found.left_out) == [missing]
    assert "run `make data DATASET=pets" in found.left_out[missing]
    assert "note: recognition on dtd: " in capsys.readouterr().out
    shared = warmup.survey([ours], here[1:3], "demo", place.data, processes=1000)
    for one in here[1:3]:
        assert shared.work[one].per_second > 50 * found.work[one].per_second
    small = Subject("small", place.checkpoint("resnet18_cifar"), "make pretrain")
    found = warmup.survey([small], [here[2]], "imagenet", place.data)
    assert "run `make data DATASET=voc" in found.left_out[here[2]]
    found = warmup.survey([small], [here[3]], "demo", place.data)
    assert "resnet18_cifar cannot serve a dense task" in found.left_out[here[3]]


def test_a_warm_up_that_is_killed_is_one_line(monkeypatch):
    monkeypatch.setattr(evaluate, "_survey", os._exit)
    with pytest.raises(UserError, match="the warm-up was killed"):
        evaluate._surveyed(1)


@pytest.mark.parametrize(
    ("batches", "seconds", "expected"),
    [([4], [2], 2), ([4, 6], [2, 3], 2), ([4, 6, 6], [9, 1, 1], 6), ([4, 6], [40, 1], 0.1)],
)
def test_the_first_batch_warms_up_unless_it_is_all_there_is_or_takes_long(monkeypatch, batches, seconds, expected):
    now = 0.0
    monkeypatch.setattr(warmup.time, "perf_counter", lambda: now)

    def arriving():
        nonlocal now
        for count, lasts in zip(batches, seconds, strict=True):
            now += lasts
            yield count

    assert warmup.per_second(arriving()) == pytest.approx(expected)


@pytest.mark.slow
def test_a_real_file_ends_with_its_row_in_the_tables(tmp_path):
    tensors = build_backbone("resnet18").state_dict()
    torch.save({"state_dict": {f"module.encoder.{name}": value for name, value in tensors.items()}}, tmp_path / "a.pth")
    command = [sys.executable, "-m", "tools.evaluate", "--checkpoint", "a.pth", "--name", "theirs", "--only", "knn"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "theirs" in (tmp_path / "reports/demo/table-standard.md").read_text()
    assert done.stdout.splitlines()[-4].startswith("kNN Digits  top-1")
