"""The Runner: checkpoints whole and read as data, resuming, the log's lines."""

import errno
import gc
import json
import os
import signal
import time
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, HOOKS, MODELS
from torch import nn
from torch.utils.data import Dataset

from common.backbones import build_backbone
from common.checkpoint import META_KEYS, load_checkpoint, save_checkpoint
from common.engine import runner as engine
from common.engine import stopping
from common.engine.processes import seed_of_rank
from common.engine.progress import StepOutputs
from common.engine.resume import newest_resume_file, read_resume_file
from common.engine.runner import build_runner, set_run, train
from common.engine.stopping import StopOnSignal
from common.errors import Stopped, UserError
from common.log import truncate_log

EPOCHS, STEPS, BATCH = 3, 4, 2  # steps are those of an epoch


@MODELS.register_module()
class TinyModel(BaseModel):
    def __init__(self, width=1, with_backbone=False):
        super().__init__()
        self.layer = nn.Linear(3, width)
        if with_backbone:
            self.backbone = build_backbone("resnet18")

    def forward(self, inputs, mode="loss"):
        return {"loss": (self.layer(inputs) - 1).square().mean()}


@DATASETS.register_module()
class TinyDataset(Dataset):
    def __len__(self):
        return STEPS * BATCH

    def __getitem__(self, index):
        return {"inputs": torch.full((3,), float(index))}


@HOOKS.register_module()
class StopAt(Hook):
    """Stop the run as Ctrl-C would, after step `step`, and note the steps that were done."""

    def __init__(self, step=None):
        self.step = step

    def before_train(self, runner):
        runner.steps = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        runner.steps.append(runner.iter + 1)
        if self.step == runner.iter + 1:
            raise KeyboardInterrupt


@pytest.fixture
def make(tmp_path):
    """Return a maker of Runners in one work_dir."""

    def make(*, resume=False, overwrite=False, settings="settings", stop=None, backbone=None, **changes):
        config = Config(
            {
                "model": {"type": "TinyModel", "with_backbone": backbone is not None},
                "train_dataloader": {
                    "dataset": {"type": "TinyDataset"},
                    "batch_size": BATCH,
                    "collate_fn": {"type": "default_collate"},
                    "sampler": {"type": "DefaultSampler", "shuffle": True},
                },
                "train_cfg": {"by_epoch": True, "max_epochs": EPOCHS},
                "optim_wrapper": {"optimizer": {"type": "SGD", "lr": 0.01, "momentum": 0.9}},
                "param_scheduler": {"type": "CosineAnnealingLR", "T_max": EPOCHS * STEPS, "by_epoch": False},
                "default_scope": "mmengine",
                "default_hooks": {
                    "checkpoint": {"type": "CheckpointHook", "interval": 1, "max_keep_ckpts": 2},
                    "progress": {"type": "Progress", "interval": 2},
                },
                "custom_hooks": [{"type": "StopAt", "step": stop}],
                "visualizer": {"type": "Visualizer", "vis_backends": [{"type": "LocalVisBackend"}]},
                "experiment_name": f"{tmp_path.name}-{len(made)}",
            }
        )
        config.merge_from_dict(changes)
        set_run(config, work_dir=tmp_path / "run", seed=0)
        made.append(config)
        return build_runner(config, settings=settings, resume=resume, overwrite=overwrite, backbone=backbone)

    made = []
    return make


def work(tmp_path):
    return sorted(p.name for p in (tmp_path / "run").glob("*.pth"))


def log(tmp_path):
    return [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]


WHOLE_LOG = [(2, None), (4, None), (4, 1), (6, None), (8, None), (8, 2), (10, None), (12, None), (12, 3)]


def places(lines):
    return [(line["step"], line.get("epoch")) for line in lines]


def interrupted(make, *, stop):
    with pytest.raises(KeyboardInterrupt):
        train(make(stop=stop))


def test_a_run_logs_its_progress(make, tmp_path, capsys):
    train(make())
    lines = log(tmp_path)
    assert places(lines) == WHOLE_LOG
    for line in lines:
        assert {"loss", "lr", "images_per_s"} <= set(line)
        assert line["loss"] > 0
        assert line["images_per_s"] > 0
        assert "time" not in line
    assert lines[0]["lr"] > lines[-1]["lr"]  # cosine
    shown = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ")]
    assert [line.split()[1] for line in shown] == ["1/3", "2/3", "3/3"]
    assert all("loss" in line and "images_per_s" in line for line in shown)
    assert json.loads((tmp_path / "run" / "run.json").read_text()) == {"config_sha256": "settings", "finished": True}
    assert work(tmp_path) == ["epoch_2.pth", "epoch_3.pth"]


@pytest.mark.parametrize(("interval", "steps"), [(3, [3, 4, 6, 8, 9, 12]), (1000, [4, 8, 12])])
def test_numbers_are_read_where_a_line_is_logged_and_none_is_lost(make, tmp_path, monkeypatch, interval, steps):
    """Of 12 steps in epochs of 4, the last value before a line is logged, and the history holds every one."""
    losses, reads = [], []
    forward, read = TinyModel.forward, StepOutputs.read

    def spy(self, inputs, mode="loss"):
        out = forward(self, inputs, mode)
        losses.append(out["loss"].item())
        return out

    monkeypatch.setattr(TinyModel, "forward", spy)

    def note(self, runner):
        if self._unread:
            reads.append(len(losses))
        read(self, runner)

    monkeypatch.setattr(StepOutputs, "read", note)
    runner = make(**{"default_hooks.progress.interval": interval, "default_hooks.logger": None})
    train(runner)
    assert reads == steps
    assert {line["step"]: line["loss"] for line in log(tmp_path)} == {step: losses[step - 1] for step in reads}
    assert runner.message_hub.get_scalar("train/loss").data[0].tolist() == losses


def test_histories_do_not_grow_with_the_run(make, tmp_path, monkeypatch):
    monkeypatch.setattr(StepOutputs, "KEPT", 2)
    runner = make()
    train(runner)
    history, counts = runner.message_hub.get_scalar("train/loss").data
    assert 2 <= len(history) == len(counts) <= 4
    assert history[-1] == log(tmp_path)[-1]["loss"]
    lengths = {len(buffer.data[0]) for buffer in runner.message_hub.log_scalars.values()}
    assert max(lengths) <= 5  # `train/time` comes after the others have been cut


def test_images_per_second_are_those_of_the_clock_without_what_comes_between_epochs(make, tmp_path):
    class Pause(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            time.sleep(0.05)

        def after_train_epoch(self, runner):
            time.sleep(1)

    runner = make()
    runner.register_hook(Pause())
    train(runner)
    speeds = [line["images_per_s"] for line in log(tmp_path)]
    assert all(2 * BATCH / 1 < speed < BATCH / 0.05 for speed in speeds)  # two steps between lines


@pytest.mark.parametrize(("world", "steps"), [(1, range(1, 33)), (2, (10, 12, 20, 24, 30))])
def test_processes_ask_each_other_for_signals_at_the_same_few_steps(monkeypatch, world, steps):
    """12 steps in an epoch; the other process got SIGTERM. One process alone stops after the very step."""
    asked = []

    def all_reduce(received, op):
        assert op == "max"
        asked.append(runner.iter + 1)

    monkeypatch.setattr(stopping, "all_reduce", all_reduce)
    runner = Namespace(world_size=world, train_loop=Namespace(steps=12), max_iters=36)
    hook = StopOnSignal()
    for runner.iter in range(32):
        hook.after_train_iter(runner, 0)
    assert asked == ([] if world == 1 else list(steps))
    hook._received = signal.SIGTERM
    saved = []
    runner.save_checkpoint = lambda folder, name, by_epoch: saved.append(name)
    runner.work_dir, runner.iter = "w", steps[-1] - 1
    with pytest.raises(Stopped, match=f"stopped by SIGTERM after step {steps[-1]}"):
        hook.after_train_iter(runner, 0)
    assert saved == [f"iter_{steps[-1]}.pth"]


def test_batches_for_a_gpu_are_pinned_unless_the_config_says_otherwise(monkeypatch):
    def pinned(**options):
        loader = dict(dataset=[1, 2], batch_size=1, sampler=range(2), collate_fn=dict(type="default_collate"))
        return engine.Runner.build_dataloader(loader | options, seed=0).pin_memory

    assert (pinned(), pinned(pin_memory=True)) == (False, False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert (pinned(), pinned(pin_memory=False)) == (True, False)


def test_a_resumed_run_ends_as_an_uninterrupted_one(make, tmp_path):
    whole = make()
    train(whole)
    expected, lines = whole.model.state_dict(), log(tmp_path)
    interrupted(make, stop=6)
    assert work(tmp_path) == ["epoch_1.pth"]
    runner = make(resume=True)
    train(runner)
    assert runner.steps == list(range(STEPS + 1, EPOCHS * STEPS + 1))
    found = runner.model.state_dict()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert places(log(tmp_path)) == WHOLE_LOG
    assert [line["loss"] for line in log(tmp_path)] == [line["loss"] for line in lines]
    seconds = [line["seconds"] for line in log(tmp_path)]
    assert seconds == sorted(seconds)  # a resumed run counts on


def test_interruptions_do_not_make_checkpoints_pile_up(make, tmp_path):
    """A file every step, and one of a signal between two that the hook writes: two are kept."""
    every = {"default_hooks.checkpoint": {"type": "CheckpointHook", "by_epoch": False, "max_keep_ckpts": 2}}

    def options(interval):
        return {**every, "default_hooks.checkpoint.interval": interval}

    for stop in (4, 6, 8):
        with pytest.raises(KeyboardInterrupt):
            train(make(resume=True, stop=stop, **options(1)))
        assert len(work(tmp_path)) == 2
    runner = make(resume=True, stop=10, **options(3))
    with pytest.raises(KeyboardInterrupt):
        train(runner)
    assert work(tmp_path) == ["iter_7.pth", "iter_9.pth"]
    runner.save_checkpoint(runner.work_dir, "iter_10.pth", by_epoch=False)  # as a signal does
    assert newest_resume_file(tmp_path / "run").name == "iter_10.pth"
    with pytest.raises(KeyboardInterrupt):
        train(make(resume=True, stop=12, **options(1)))
    assert work(tmp_path) == ["iter_10.pth", "iter_11.pth"]


def test_a_finished_run_that_is_resumed_has_no_step_left_and_keeps_its_files(make, tmp_path):
    whole = make()
    train(whole)
    kept, lines = work(tmp_path), log(tmp_path)
    runner = make(resume=True)
    train(runner)
    assert runner.steps == []
    assert all(torch.equal(value, runner.model.state_dict()[key]) for key, value in whole.model.state_dict().items())
    assert work(tmp_path) == kept
    assert places(log(tmp_path)) == places(lines) == WHOLE_LOG


@pytest.mark.parametrize(
    ("stop", "options"),
    [
        (None, {}),  # finished
        (6, {}),
        (2, {"resume": True}),  # before its first checkpoint
        (2, {"settings": "others"}),  # what such a run left is in nobody's way
    ],
)
def test_a_run_starts_afresh_without_resume_or_without_a_checkpoint(make, tmp_path, stop, options):
    interrupted(make, stop=stop) if stop else train(make())
    (tmp_path / "run" / "log.jsonl").write_text('{"step": 1, "old": 1}\n')
    runner = make(**options)
    assert work(tmp_path) == []
    train(runner)
    assert runner.steps == list(range(1, EPOCHS * STEPS + 1))
    assert places(log(tmp_path)) == WHOLE_LOG


@pytest.mark.parametrize("resume", [True, False])
@pytest.mark.parametrize(("stop", "kind"), [(6, "an interrupted"), (None, "a finished")])
def test_changed_settings_are_refused_and_nothing_is_lost(make, tmp_path, resume, stop, kind):
    if stop is None:
        train(make())
    else:
        interrupted(make, stop=stop)
    kept, lines, state = work(tmp_path), log(tmp_path), (tmp_path / "run" / "run.json").read_text()
    with pytest.raises(UserError, match=rf"{kind} run of other settings; .* OVERWRITE=1") as caught:
        make(resume=resume, settings="others")
    assert str(tmp_path / "run") in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert work(tmp_path) == kept != []
    assert log(tmp_path) == lines
    assert (tmp_path / "run" / "run.json").read_text() == state


@pytest.mark.parametrize("content", [None, "", "[]", '{"fin'])
def test_checkpoints_whose_settings_are_not_known_are_not_deleted(make, tmp_path, content):
    interrupted(make, stop=6)
    state = tmp_path / "run" / "run.json"
    state.unlink() if content is None else state.write_text(content)
    with pytest.raises(UserError, match="run of other settings"):
        make()
    assert work(tmp_path) == ["epoch_1.pth"]


def test_a_run_of_other_settings_is_overwritten_where_that_is_asked_for(make, tmp_path):
    train(make())
    runner = make(resume=True, overwrite=True, settings="others")
    assert work(tmp_path) == []
    train(runner)
    assert runner.steps[0] == 1
    state = json.loads((tmp_path / "run" / "run.json").read_text())
    assert state == {"config_sha256": "others", "finished": True}
    assert make(resume=True, overwrite=True, settings="others").cfg.load_from  # which are now those of the run


def test_a_model_that_does_not_fit_the_resume_file_is_refused(make):
    interrupted(make, stop=6)
    with pytest.raises(UserError, match=r"epoch_1\.pth does not fit this model"):
        train(make(resume=True, **{"model.width": 2}))


def test_a_full_disk_leaves_the_previous_checkpoint_and_the_run_resumes(make, tmp_path, monkeypatch):
    save, calls = torch.save, []

    def full(content, file, *args, **kwargs):
        calls.append(file)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return save(content, file, *args, **kwargs)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        train(make())
    monkeypatch.undo()
    folder = tmp_path / "run"
    # The hook drops epoch 1 before it writes epoch 3; epoch 2 must stay.
    assert work(tmp_path) == ["epoch_2.pth"]
    assert [name for name in os.listdir(folder) if name.endswith(".part")] == []
    assert read_resume_file(folder / "epoch_2.pth")["meta"]["iter"] == 2 * STEPS
    runner = make(resume=True)
    train(runner)
    assert runner.steps == [9, 10, 11, 12]
    assert places(log(tmp_path)) == WHOLE_LOG


def test_a_disk_that_fills_while_the_bytes_are_written_leaves_the_old_file(make, tmp_path, monkeypatch):
    runner = make()
    train(runner)
    before = (tmp_path / "run" / "epoch_3.pth").read_bytes()
    monkeypatch.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")))
    with pytest.raises(OSError, match="No space left"):
        runner.save_checkpoint(str(tmp_path / "run"), "epoch_3.pth")
    assert (tmp_path / "run" / "epoch_3.pth").read_bytes() == before
    assert work(tmp_path) == ["epoch_2.pth", "epoch_3.pth"]


class Payload:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (os.mkdir, (str(self.mark),))


def with_code(path):
    torch.save(read_resume_file(path) | {"meta": Payload(path.with_name("it_ran"))}, path)


def with_a_flipped_bit(path):
    weight = read_resume_file(path)["state_dict"]["layer.weight"]
    content = bytearray(path.read_bytes())
    content[content.index(weight.numpy().tobytes())] ^= 1
    path.write_bytes(content)


def truncated(path):
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (with_code, r"unsupported GLOBAL \S+mkdir"),
        (with_a_flipped_bit, "damaged"),
        (truncated, "truncated or damaged"),
    ],
)
def test_a_damaged_resume_file_is_one_line_and_runs_no_code(make, tmp_path, damage, reason):
    interrupted(make, stop=10)
    path = tmp_path / "run" / "epoch_2.pth"
    damage(path)
    said = rf"^cannot resume from {path} \({reason}\); delete it to resume from an earlier one$"
    with pytest.raises(UserError, match=said) as caught:
        train(make(resume=True))
    assert len(str(caught.value).splitlines()) == 1
    assert not path.with_name("it_ran").exists()
    path.unlink()  # the advice holds
    runner = make(resume=True)
    train(runner)
    assert runner.steps[0] == STEPS + 1


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model.wdith": 2}, "TinyModel has no option 'wdith'; correct its name"),
        ({"model.type": "TinyModle"}, "TinyModle is not in the"),
        ({"optim_wrapper.optimizer.type": "SDG"}, "optim_wrapper.optimizer is of an unknown `type`"),
        ({"optim_wrapper.optimizer.momentun": 0.9}, "SGD has no option 'momentun'; correct its name"),
        ({"optim_wrapper.clip_grad": {"norm_type": 1}}, "optim_wrapper.clip_grad lacks 'max_norm'; set it"),
        ({"train_dataloader.dataset.type": "Tinny"}, "Tinny is not in the"),
        ({"default_hooks.progress.intervall": 2}, "Progress has no option 'intervall'; correct its name"),
    ],
    ids=str,
)
def test_a_wrong_entry_is_named_and_an_earlier_run_kept(make, tmp_path, changes, says):
    interrupted(make, stop=6)
    with pytest.raises(UserError) as caught:
        train(make(resume=True, **changes))
    assert says in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert work(tmp_path) == ["epoch_1.pth"]


def test_a_bug_of_ours_is_not_taken_for_a_wrong_entry():
    with pytest.raises(KeyError):
        engine.with_config_mistakes_named(lambda: {}["loss"])


def test_the_backbone_of_a_checkpoint_is_loaded(make, tmp_path, capsys):
    torch.manual_seed(1)
    meta = dict.fromkeys(META_KEYS, "") | {"arch": "resnet18"}
    save_checkpoint(tmp_path / "a.pth", build_backbone("resnet18").state_dict(), meta)
    checkpoint = load_checkpoint(tmp_path / "a.pth")
    runner = make(backbone=checkpoint, **{"train_cfg.max_epochs": 1, "default_hooks.checkpoint.interval": 9})
    train(runner)
    found = runner.model.backbone.state_dict()
    assert all(torch.equal(found[key], value) for key, value in checkpoint.state_dict.items())
    assert f"loaded {len(found)} of {len(found)} backbone tensors from {tmp_path / 'a.pth'}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("files", "newest"),
    [
        ([], None),
        (["epoch_2.pth", "epoch_10.pth", "epoch_9.pth"], "epoch_10.pth"),  # not in the order of the alphabet
        (["iter_500.pth", "iter_1000.pth"], "iter_1000.pth"),
        (["epoch_1.pth", ".epoch_2.pth.x1.part", "best_epoch_3.pth", "epoch_x.pth"], "epoch_1.pth"),
    ],
)
def test_the_newest_resume_file(tmp_path, files, newest):
    for name in files:
        (tmp_path / name).touch()
    assert newest_resume_file(tmp_path) == (newest and tmp_path / newest)


def test_a_log_is_cut_back_to_a_step(tmp_path):
    path = tmp_path / "log.jsonl"
    whole = [{"step": 2}, {"step": 4, "seconds": 1.5}, {"step": 4, "epoch": 1}, {"step": 6, "seconds": 9.0}]
    path.write_text("".join(json.dumps(line) + "\n" for line in whole))
    assert truncate_log(path, 4) == 1.5
    assert [json.loads(line) for line in path.read_text().splitlines()] == whole[:3]
    assert truncate_log(path, 0) == 0
    assert path.read_text() == ""
    truncate_log(tmp_path / "none.jsonl", 4)
    assert os.listdir(tmp_path) == ["log.jsonl"]


@pytest.mark.parametrize("tail", ['{"step": 4, "lo', "{", '{"step": 4}\n{"st', "1", "\0\0"])
def test_a_last_line_that_a_kill_cut_short_is_dropped(tmp_path, tail):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 2}\n' + tail)
    truncate_log(path, 2)
    assert path.read_text() == '{"step": 2}\n'


def test_a_resumed_run_repairs_what_a_kill_left_half_written(make, tmp_path):
    interrupted(make, stop=7)
    stale = tmp_path / "run" / ".epoch_2.pth.abc.part"
    stale.write_bytes(b"half")
    with open(tmp_path / "run" / "log.jsonl", "a") as stream:
        stream.write('{"step": 8, "lo')
    train(make(resume=True))
    assert not stale.exists()
    assert places(log(tmp_path)) == WHOLE_LOG


def test_set_run_keeps_other_settings_of_randomness():
    config = Config({"randomness": {"deterministic": True, "seed": 1}})
    set_run(config, work_dir=Path("w"), seed=5, launcher="pytorch")
    assert config.randomness == {"deterministic": True, "seed": 5}
    assert (config.work_dir, config.launcher) == ("w", "pytorch")


def test_every_process_of_every_seed_has_a_stream_of_its_own():
    pairs = [(seed, rank) for seed in (*range(40), 2**32 - 1) for rank in range(40)]
    seeds = [seed_of_rank(*pair) for pair in pairs]
    assert len(set(seeds)) == len(pairs)
    assert all(0 <= seed < 2**63 for seed in seeds)
    first = {pair: seed for pair, seed in zip(pairs, seeds, strict=True) if pair in [(0, 0), (0, 1), (1, 0)]}
    assert first == {  # in every version of Python and NumPy
        (0, 0): 7896617691693857887,
        (0, 1): 2918264622725855778,
        (1, 0): 3717377837946358015,
    }


def test_a_process_draws_from_its_own_stream(monkeypatch):
    monkeypatch.setattr(engine, "MMDistributedDataParallel", lambda model, **_: model)
    monkeypatch.setattr(engine, "get_device", lambda: "cpu")
    runner = object.__new__(engine.Runner)
    runner.cfg, runner._distributed, runner._world_size = Config(), True, 2
    for runner._seed, runner._rank in ((0, 0), (0, 1), (1, 0)):
        runner.wrap_model(None, nn.Linear(1, 1))
        assert torch.initial_seed() == seed_of_rank(runner._seed, runner._rank)


def test_an_interrupted_run_s_bar_is_closed_before_the_last_line(make, capfd):
    interrupted(make, stop=6)
    before = capfd.readouterr().err
    assert before.endswith("\n")
    gc.collect()  # a bar that is still open draws itself once more when it is collected
    assert capfd.readouterr().err == ""
