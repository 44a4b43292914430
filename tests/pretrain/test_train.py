"""The commands of the room, driven on a few embedded digits: train, resume, evaluate, and refuse."""

import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.checkpoint import load_checkpoint
from common.engine.progress import Progress
from common.errors import UserError
from common.names import METHODS
from pretrain import knn, linear, train
from tests.layouts import cifar10_binary
from tests.pretrain.tiny import ROOT, TINY, log, outcome, remove_export, run_train


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_exports_and_is_then_done(space, method, capsys):
    run_train(method=method)
    path = space / "checkpoints" / "demo" / f"{method}.pth"
    checkpoint = load_checkpoint(path)
    assert checkpoint.meta == json.loads(path.with_suffix(".json").read_text())
    assert (checkpoint.meta["method"], checkpoint.meta["epochs"], checkpoint.meta["seed"]) == (method, 2, 0)
    assert checkpoint.backbone()(torch.zeros(1, 3, 32, 32)).shape == (1, 96)
    epochs = [line for line in log(space, method) if "epoch" in line]
    assert [line["epoch"] for line in epochs] == [1, 2]
    assert all({"loss", "lr", "std", "images_per_s"} <= set(line) for line in epochs)
    first_line = capsys.readouterr().out.splitlines()[0]
    assert "profile=demo" in first_line
    assert str(space / "checkpoints") in first_line
    run_train(method=method)
    assert "already done" in capsys.readouterr().out


def test_the_export_is_the_online_backbone(space):
    run_train(method="byol")
    state = torch.load(
        space / "runs" / "demo" / "pretrain" / "byol" / "iter_6.pth", weights_only=True, map_location="cpu"
    )["state_dict"]
    exported = load_checkpoint(space / "checkpoints" / "demo" / "byol.pth").state_dict
    assert all(torch.equal(value, state[f"backbone.{key}"]) for key, value in exported.items())
    assert any(not torch.equal(value, state[f"target.0.{key}"]) for key, value in exported.items())


@pytest.mark.parametrize("method", METHODS)
def test_the_untrained_network_is_what_every_method_begins_with(space, method, monkeypatch, capsys):
    from common.engine.runner import Runner

    begun = {}
    monkeypatch.setattr(Runner, "load_or_resume", lambda self: begun.update(copy.deepcopy(self.model.state_dict())))
    options = ("train_cfg.max_epochs=1", "train_dataloader.batch_size=8")
    run_train("--seed", "3", method=method, options=options)
    run_train("--seed", "3", method="untrained", options=options)
    exported = load_checkpoint(space / "checkpoints" / "demo" / "untrained-seed3.pth")
    assert exported.meta["epochs"] == 0
    assert all(torch.equal(value, begun[f"backbone.{key}"]) for key, value in exported.state_dict.items())
    assert "untrained-seed3: batch" not in capsys.readouterr().out
    run_train("--seed", "3", method="untrained", options=options)
    assert "already done" in capsys.readouterr().out


@pytest.mark.parametrize("zero", [False, True])
def test_the_runner_starts_from_the_weights_that_were_built(space, zero, monkeypatch):
    from common.engine.runner import Runner

    seen = []
    monkeypatch.setattr(Runner, "load_or_resume", lambda self: seen.append(copy.deepcopy(self.model.state_dict())))
    options = ("model.backbone.name=resnet18", f"model.backbone.zero_init_residual={zero}", "train_cfg.max_epochs=1")
    run_train(method="byol", options=options)
    last_bn = seen[0]["backbone.layer1.0.bn2.weight"]
    assert torch.equal(last_bn, torch.zeros(64) if zero else torch.ones(64))
    assert torch.equal(seen[0]["backbone.conv1.weight"], seen[0]["target.0.conv1.weight"])


def test_the_papers_cifar10_settings_run_on_a_stand_in_in_the_official_binary_layout(space):
    """Networks, views, kNN and all; only the batch and the epochs are smaller."""
    cifar10_binary(space / "data")
    options = ["train_dataloader.batch_size=8", "train_cfg.max_epochs=1", "train_dataloader.num_workers=0"]
    knn_workers = "evaluation.workers=0"
    train.main(["--profile", "cifar10", "--method", "simsiam_gsg", "--cfg-options", *options, knn_workers])
    checkpoint = load_checkpoint(space / "checkpoints/cifar10/simsiam_gsg.pth")
    assert (checkpoint.arch, checkpoint.meta["dataset"]) == ("resnet18_cifar", "cifar10")
    lines = (space / "runs/cifar10/pretrain/simsiam_gsg/log.jsonl").read_text().splitlines()
    assert {"loss", "lr", "std", "knn"} <= set(json.loads(lines[-1]))


def test_a_seed_has_its_own_name_and_weights(space):
    run_train("--seed", "0")
    run_train("--seed", "1")
    zero, one = (load_checkpoint(space / "checkpoints" / "demo" / f"simsiam{s}.pth") for s in ("", "-seed1"))
    assert one.meta["seed"] == 1
    assert any(not torch.equal(value, one.state_dict[key]) for key, value in zero.state_dict.items())


# Six steps in two epochs; runs of simsiam_gsg that end at other moments are in test_interruption.
@pytest.mark.parametrize(
    ("method", "stop", "every", "extra"),
    [
        ("byol", 3, 3, ()),  # the checkpoint is there, the epoch's end is not
        ("byol_gsg", 2, 1, ()),
        ("byol_gsg", 4, 1, ("--accumulate", "2")),
    ],
)
def test_an_interrupted_run_resumes_to_the_same_bits(space, monkeypatch, method, stop, every, extra):
    options = (f"default_hooks.checkpoint.interval={every}",)
    run_train(*extra, method=method, options=options)
    whole = outcome(space, method)
    remove_export(space)
    original = Progress.after_train_iter

    def stop_there(self, runner, *args, **kwargs):
        original(self, runner, *args, **kwargs)
        if runner.iter + 1 == stop:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "after_train_iter", stop_there)
        with pytest.raises(KeyboardInterrupt):
            run_train(*extra, method=method, options=options)
    assert not (space / "checkpoints").exists()
    torch.manual_seed(12345)  # whatever this process drew since must not matter
    run_train("--resume", *extra, method=method, options=options)
    assert outcome(space, method) == whole


@pytest.mark.parametrize(
    ("arch", "width"), [("test_resnet", 96), pytest.param("resnet50", 2048, marks=pytest.mark.slow)]
)
def test_knn_and_linear_read_the_export_and_are_then_done(space, capsys, arch, width):
    run_train(method="simsiam_gsg", options=(f"model.backbone.name={arch}", "train_cfg.max_epochs=1"))
    checkpoint = load_checkpoint(space / "checkpoints/demo/simsiam_gsg.pth")
    assert (checkpoint.arch, checkpoint.meta["feature_dim"]) == (arch, width)
    extra = {knn: ["evaluation.k=3"], linear: ["train_cfg.max_epochs=2"]}
    for module, options in extra.items():
        command = ["--method", "simsiam_gsg", "--data-root", "data", "--cfg-options", *options]
        module.main(command)
        assert f"loaded {len(checkpoint.state_dict)} of {len(checkpoint.state_dict)}" in capsys.readouterr().out
        module.main(command)
        assert "already done" in capsys.readouterr().out
    read = {
        task: json.loads((space / f"results/demo/{task}/simsiam_gsg/data-seed0.json").read_text())
        for task in ("knn", "linear")
    }
    assert set(read["knn"]["metrics"]) == {"top1"}
    assert set(read["linear"]["metrics"]) == {"top1", "top5", "best_top1", "best_top5"}
    assert read["knn"]["protocol"]["n_train"] == 12
    assert {record["provenance"]["checkpoint_sha256"] for record in read.values()} == {checkpoint.sha256}


@pytest.mark.parametrize("name", ["convnext_atto", "mobilenetv3_small_050"])
def test_any_convolutional_network_of_timm_can_be_pretrained(space, name):
    run_train(options=(f"model.backbone.name={name}", "train_cfg.max_epochs=1"))
    checkpoint = load_checkpoint(space / "checkpoints/demo/simsiam.pth")
    width = checkpoint.backbone()(torch.zeros(1, 3, 32, 32)).shape[1]
    assert (checkpoint.arch, checkpoint.meta["feature_dim"]) == (name, width)
    knn.main(["--method", "simsiam", "--data-root", "data", "--cfg-options", "evaluation.k=3"])


def test_linear_evaluation_of_imagenet_runs_by_accumulation_and_on_two_processes_alike(space):
    """The protocol but for views of 64 pixels, on 12 images in one step; two processes make the same step."""
    run_train(options=("train_cfg.max_epochs=1",))
    subject = ["--checkpoint", "checkpoints/demo/simsiam.pth", "--name", "tiny", "--profile", "imagenet"]
    options = ["train_dataloader.batch_size=12", "train_cfg.max_epochs=2", "train_dataloader.num_workers=0"]
    options += ["val_dataloader.num_workers=0", "val_dataloader.persistent_workers=False"]
    options += ["train_dataloader.dataset.augmentation.0.size=64", "val_dataloader.dataset.size=64"]
    records = []
    for where, extra, start in (
        ("one", ["--accumulate", "3"], ["-m", "pretrain.linear"]),
        (
            "two",
            ["--launcher", "pytorch"],
            ["-m", "tools.launch", "--standalone", "--nproc_per_node", "2", "-m", "pretrain.linear"],
        ),
    ):
        command = [sys.executable, *start, *subject, *extra, "--data-root", "data", "--results", where]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [*command, "--runs", f"{where}-runs", "--cfg-options", *options],
            cwd=space, env=environment, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "batch 12 = " in done.stdout
        records.append(json.loads((space / where / "imagenet/linear/tiny/data-seed0.json").read_text()))
    one, two = records
    assert one["protocol"] == two["protocol"]
    assert (one["protocol"]["batch"], one["protocol"]["optimizer"]) == (12, "LARS")
    assert one["metrics"] == pytest.approx(two["metrics"])
    assert set(one["metrics"]) == {"top1", "top5", "best_top1", "best_top5"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("model.giude=nearest",), "did you mean 'model.guide'"),
        (("modle.guide=nearest",), "did you mean 'model'"),
        (("model.guide=nearst",), "unknown guide 'nearst'"),
        (("model.type=SimSam",), "did you mean 'SimSiam'"),
        (("train_cfg.max_epoch=3",), "did you mean 'train_cfg.max_epochs'"),
        (("optim_wrapper.optimizer.lrr=3",), "did you mean 'optim_wrapper.optimizer.lr'"),
        (("train_dataloader.batch_size=1",), "at least 2"),
        (("model.guide=nearest",), "num_views=4"),
        (("model.views=frseh",), "unknown views 'frseh'"),
        (("model.backbone.name=resnet19",), "unknown backbone 'resnet19'"),
        (("train_dataloader.batch_size=99",), "fewer than a batch"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_a_wrong_setting_is_one_line_naming_it(space, options, message):
    with pytest.raises(UserError, match=message) as caught:
        run_train(options=options)
    assert "\n" not in str(caught.value)
    assert not (space / "checkpoints").exists()


@pytest.mark.parametrize("lost", ["all", "file", "json", "bit"])
def test_an_export_that_was_lost_is_made_again_from_the_finished_run_to_the_same_bytes(space, monkeypatch, lost):
    run_train(method="byol_gsg")
    path, before = space / "checkpoints/demo/byol_gsg.pth", files_of(space)
    if lost == "bit":
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    if lost in ("all", "file"):
        path.unlink()
    if lost in ("all", "json"):
        path.with_suffix(".json").unlink()
    monkeypatch.setattr("pretrain.methods.BYOL.loss", None)
    monkeypatch.setattr("pretrain.export.git_state", lambda: ("another", False))
    run_train("--resume", method="byol_gsg")
    after = files_of(space)
    compared = [p for p in before if p.suffix in (".pth", ".json")]
    assert {p.name for p in compared} >= {"iter_6.pth", "run.json", "byol_gsg.pth", "byol_gsg.json"}
    assert [p for p in compared if after[p] != before[p]] == []
    if lost == "json":  # nothing says what that file was
        assert after[path.with_name("byol_gsg.pth.replaced-1")] == before[path]


@pytest.mark.parametrize("resume", [[], ["--resume"]])
def test_a_record_of_linear_that_was_lost_is_made_again_without_a_step(space, monkeypatch, resume):
    run_train(options=("train_cfg.max_epochs=1",))
    command = ["--method", "simsiam", "--data-root", "data", *resume, "--cfg-options", "train_cfg.max_epochs=2"]
    linear.main(command)
    path = space / "results/demo/linear/simsiam/data-seed0.json"
    metrics = json.loads(path.read_text())["metrics"]
    log_file = space / "runs/demo/linear-data/simsiam/log.jsonl"
    lines = [set(json.loads(line)) for line in log_file.read_text().splitlines()]
    path.unlink()
    monkeypatch.setattr("common.engine.steps.take_step", None)
    monkeypatch.setattr("pretrain.loop.take_step", None)
    linear.main(command)
    assert json.loads(path.read_text())["metrics"] == metrics
    assert "top1" in lines[-1]  # of the validation after the first epoch
    assert [set(json.loads(line)) for line in log_file.read_text().splitlines()] == lines


def files_of(space):
    return {p: p.read_bytes() for part in ("runs", "checkpoints", "results") for p in (space / part).rglob("*.*")}


def test_a_dry_run_of_other_settings_does_not_touch_a_finished_one(space, capsys):
    run_train()
    before = files_of(space)
    with pytest.raises(
        UserError, match=r"checkpoints/demo/simsiam\.pth is an export of other settings; add OVERWRITE=1"
    ):
        run_train(options=("train_cfg.max_epochs=1",))
    remove_export(space)
    with pytest.raises(UserError, match=r"pretrain/simsiam holds a finished run of other settings; .*OVERWRITE=1"):
        run_train(options=("train_cfg.max_epochs=1",))
    assert files_of(space) == {path: content for path, content in before.items() if "checkpoints" not in path.parts}
    run_train("--resume")  # the run is still there to be exported
    capsys.readouterr()
    run_train("--overwrite", options=("train_cfg.max_epochs=1",))
    kept = "checkpoints/demo/simsiam.pth.replaced-1"
    assert f"replacing an export of other settings, which is kept: {kept}" in capsys.readouterr().out
    weights = torch.load(space / kept, weights_only=True)["state_dict"]
    new = load_checkpoint(space / "checkpoints/demo/simsiam.pth")
    assert any(not torch.equal(value, new.state_dict[key]) for key, value in weights.items())
    assert new.meta["epochs"] == 1


def test_a_dry_run_of_linear_does_not_touch_a_finished_one(space):
    run_train(options=("train_cfg.max_epochs=1",))

    def run_linear(*extra, epochs, data="data"):
        command = ["--method", "simsiam", "--data-root", data, *extra]
        linear.main([*command, "--cfg-options", f"train_cfg.max_epochs={epochs}"])

    run_linear(epochs=2)
    before = files_of(space)
    path = space / "results/demo/linear/simsiam/data-seed0.json"
    with pytest.raises(UserError, match=r"data-seed0\.json is the record of .*other settings; add OVERWRITE=1"):
        run_linear(epochs=1)
    assert files_of(space) == before
    run_linear("--overwrite", epochs=1)
    assert json.loads(path.read_text())["protocol"]["epochs"] == 1
    assert path.with_name("data-seed0.json.replaced-1").read_bytes() == before[path]
    shutil.copytree("data", "birds")
    run_linear(epochs=1, data="birds")  # another data set has a run of its own
    assert path.with_name("birds-seed0.json").is_file()


def test_other_data_are_other_settings_whatever_their_folder_is_called(space):
    """A classifier of one folder must not be resumed for another, nor a result be taken for another's."""
    shutil.copytree("data", "elsewhere/data")
    commands = [
        (train, ["--method", "simsiam", "--cfg-options", *TINY[1:], "train_cfg.max_epochs=1"]),
        (linear, ["--method", "simsiam", "--resume", "--cfg-options", "train_cfg.max_epochs=1"]),
    ]
    for folder in ("data", "elsewhere/data"):  # a copy is the same data
        for module, command in commands:
            module.main(["--data-root", folder, *command])
    before = files_of(space)
    image = Path("elsewhere/data/train/a/0.png")
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(image)
    shutil.copytree("elsewhere/data", "other")
    for folder, refused in (("elsewhere/data", commands), ("other", commands[:1])):  # linear has a folder for each
        for module, command in refused:
            with pytest.raises(UserError, match=r"other settings.* OVERWRITE=1"):
                module.main(["--data-root", folder, *command])
    assert files_of(space) == before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["train_dataloader.drop_last=True"], "the training set has 1437 images, fewer than a batch of 2000"),
        (["model.num_classes=3"], "config: model.num_classes is 3, but digits-train has 10 classes; set it so"),
        (["model.num_classes=11"], "config: model.num_classes is 11, but digits-train has 10 classes; set it so"),
        (
            ["val_dataloader.dataset.images.name=folder", "val_dataloader.dataset.images.root=data"],
            "have other classes",
        ),
    ],
)
def test_a_classifier_without_a_step_or_of_other_classes_is_not_recorded(space, options, said):
    run_train(options=("train_cfg.max_epochs=1",))
    with pytest.raises(UserError, match=said):
        linear.main(
            ["--method", "simsiam", "--data", ".", "--cfg-options", "train_dataloader.batch_size=2000", *options]
        )
    assert not (space / "results").exists()


def test_a_truncated_image_stops_the_run_and_names_the_file(space):
    path = space / "data" / "train" / "b" / "3.png"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(UserError, match=r"train/b/3\.png"):
        run_train()


def test_a_missing_checkpoint_names_the_command_that_makes_it(space):
    with pytest.raises(UserError, match="make pretrain PROFILE=demo METHOD=byol SEED=2"):
        knn.main(["--method", "byol", "--seed", "2"])
