"""Runs that end before their time: killed, by a signal, by numbers that are not finite, by collapse."""

import multiprocessing
import os
import re
import shutil
import signal
import time
from collections.abc import Callable

import pytest
import torch
from mmengine.hooks import CheckpointHook, Hook

from common import files
from common.checkpoint import load_checkpoint
from common.engine.progress import Progress
from common.errors import Stopped, UserError
from pretrain import methods
from tests.pretrain.tiny import log, outcome, remove_export, run_train, start


def in_a_child(*extra: str, kill: Callable[[], None] = lambda: None) -> int | None:
    """Train in a process of its own, `kill` having prepared its end; return its exit code."""

    def run() -> None:
        torch.set_num_threads(1)
        kill()
        run_train(*extra, method="simsiam_gsg", options=("default_hooks.checkpoint.interval=2",))

    child = multiprocessing.get_context("fork").Process(target=run)
    child.start()
    child.join(120)
    return child.exitcode


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_after(hook: type[Hook], name: str, number: int) -> None:
    """Let this process die once the hook was called `number` times, at as many steps or epochs."""
    original, seen = getattr(hook, name), []

    def last(self, *args, **kwargs):
        original(self, *args, **kwargs)
        seen.append(1)
        if len(seen) == number:
            die()

    setattr(hook, name, last)


def die_writing(name: str) -> None:
    """Let this process die when half of the checkpoint `name` is on disk."""
    original = files._fsync

    def half(path):
        if path.name.startswith(f".{name}."):
            os.truncate(path, path.stat().st_size // 2)
            die()
        original(path)

    files._fsync = half


@pytest.mark.parametrize(
    "kill",
    [
        lambda: die_after(Progress, "after_train_iter", 1),  # before the first checkpoint
        lambda: die_after(Progress, "after_train_iter", 5),
        lambda: die_after(Progress, "after_train_epoch", 1),
        lambda: die_after(CheckpointHook, "after_train_iter", 4),  # which is saved
        lambda: die_writing("iter_2.pth"),
        lambda: die_writing("iter_4.pth"),
    ],
    ids=[
        "step 1",
        "step 5",
        "epoch 1",
        "step 4, just saved",
        "writing the first checkpoint",
        "writing the second checkpoint",
    ],
)
def test_a_run_killed_by_sigkill_resumes_to_the_same_bits(space, kill):
    assert in_a_child() == 0
    whole = outcome(space, "simsiam_gsg")
    remove_export(space)
    shutil.rmtree(space / "runs")
    assert in_a_child(kill=kill) == -signal.SIGKILL
    assert not (space / "checkpoints").exists()
    assert in_a_child("--resume") == 0
    assert outcome(space, "simsiam_gsg") == whole


@pytest.mark.parametrize("name", ["simsiam_gsg.json", "simsiam_gsg.pth"])
def test_an_export_that_was_killed_is_made_again(space, name):
    assert in_a_child(kill=lambda: die_writing(name)) == -signal.SIGKILL
    assert in_a_child("--resume") == 0
    left = (space / "checkpoints/demo").glob("[!.]*")
    assert sorted(path.name for path in left) == ["simsiam_gsg.json", "simsiam_gsg.pth"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1], ids=lambda number: number.name)
def test_a_signal_saves_after_the_step_and_the_run_resumes_to_the_same_bits(space, monkeypatch, number):
    run_train(method="byol_gsg")
    whole = outcome(space, "byol_gsg")
    remove_export(space)
    original = methods.BYOL.loss
    calls = []

    def loss(self, inputs):
        calls.append(1)
        if len(calls) == 5:
            signal.raise_signal(number)
        return original(self, inputs)

    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        patch.setattr(methods.BYOL, "loss", loss)
        with pytest.raises(Stopped, match=f"stopped by {number.name} after step 5"):
            run_train(method="byol_gsg")
    assert signal.getsignal(number) == before
    assert (space / "runs/demo/pretrain/byol_gsg/iter_5.pth").is_file()  # besides those of every third step
    run_train("--resume", method="byol_gsg")
    assert outcome(space, "byol_gsg") == whole


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_to_every_process_of_a_job_ends_it_with_one_line(space, number):
    """As Ctrl-C and Slurm do: the loader's workers get it too, and must outlive it until the step is done."""
    options = ("train_cfg.max_epochs=400", "train_dataloader.num_workers=1", "train_dataloader.persistent_workers=True")
    process = start(space=space, options=options, start_new_session=True)
    run_dir = space / "runs/demo/pretrain/simsiam"
    wait_for(lambda: (run_dir / "log.jsonl").is_file() and len(log(space)) > 2, process)
    os.killpg(process.pid, number)
    _, errors = process.communicate(timeout=60)
    last = errors.splitlines()[-1]
    assert process.returncode == 128 + number
    assert re.fullmatch(
        rf"stopped by {number.name} after step \d+, which is saved; the same command with RESUME=1 .*", last
    )
    assert "Traceback" not in errors
    assert (run_dir / f"iter_{last.split()[5].strip(',')}.pth").is_file()


def test_two_processes_stop_after_the_same_step_and_one_can_go_on(space):
    torchrun = ("-m", "tools.launch", "--standalone", "--nproc_per_node", "2")
    # A checkpoint every step: the one of the signal's step has just been written, or is being written.
    options = ("train_cfg.max_epochs=40", "default_hooks.checkpoint.interval=1")
    process = start("--launcher", "pytorch", space=space, options=options, prefix=torchrun)
    wait_for(lambda: (space / "runs/demo/pretrain/simsiam/log.jsonl").is_file() and len(log(space)) > 5, process)
    process.send_signal(signal.SIGTERM)  # torchrun passes it on
    _, errors = process.communicate(timeout=90)
    assert process.returncode == 128 + signal.SIGTERM
    assert "Traceback" not in errors
    (line,) = [line for line in errors.splitlines() if "stopped by SIGTERM after step" in line]
    step = int(line.split("after step ")[1].split(",")[0])
    state = torch.load(space / f"runs/demo/pretrain/simsiam/iter_{step}.pth", weights_only=True)
    assert len(state["random_states"]) == 2
    assert log(space)[-1]["step"] <= step
    run_train("--resume", options=options)  # the other half of each batch comes to this process
    assert [line["step"] for line in log(space) if "epoch" not in line] == list(range(1, 121))
    assert load_checkpoint(space / "checkpoints/demo/simsiam.pth").meta["epochs"] == 40


def test_of_two_equal_runs_at_once_one_is_refused_and_the_other_is_whole(space):
    first = start(space=space, options=("train_cfg.max_epochs=40",))
    wait_for(lambda: (space / "runs/demo/pretrain/simsiam/log.jsonl").is_file(), first)
    first.send_signal(signal.SIGSTOP)  # else it may end before the other begins
    second = start("--resume", space=space, options=("train_cfg.max_epochs=40",))
    _, errors = second.communicate(timeout=90)
    first.send_signal(signal.SIGCONT)
    assert second.returncode == 1
    folder = "runs/demo/pretrain/simsiam"
    assert errors.startswith(f"error: {folder}: another process ({first.pid} on ")
    assert len(errors.splitlines()) == 1
    assert first.wait(90) == 0
    assert [line["step"] for line in log(space) if "epoch" not in line] == list(range(1, 121))


def test_a_second_ctrl_c_stops_at_once(space, monkeypatch):
    original = methods.SimSiam.loss

    def loss(self, inputs):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        return original(self, inputs)

    before = signal.getsignal(signal.SIGINT)  # a shell's background jobs ignore it
    monkeypatch.setattr(methods.SimSiam, "loss", loss)
    with pytest.raises(KeyboardInterrupt):
        run_train()
    assert signal.getsignal(signal.SIGINT) == before


def test_a_mistake_is_one_line_however_many_processes_make_it(space):
    launch = ("-m", "tools.launch", "--standalone", "--nproc_per_node", "2")
    process = start("--launcher", "pytorch", space=space, options=("model.giude=nearest",), prefix=launch)
    said, errors = process.communicate(timeout=90)
    assert process.returncode == 1
    assert [line for line in errors.splitlines() if "rror" in line] == [
        "error: config simsiam.py: nothing reads the key 'model.giude'; did you mean 'model.guide'?"
    ]
    assert said.count("[pretrain.train]") == 1


def wait_for(condition, process) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def break_at(monkeypatch, step: int, value: float) -> None:
    """Make the loss `value` at this step."""
    calls = []
    original = methods.SimSiam.loss

    def loss(self, inputs):
        calls.append(1)
        out = original(self, inputs)
        return {**out, "loss": out["loss"] * value} if len(calls) == step else out

    monkeypatch.setattr(methods.SimSiam, "loss", loss)


# A line after every step; and no line, so that the loss is read before the checkpoint of step 6 of the epoch.
EACH_STEP = ("default_hooks.checkpoint.interval=1",)
NO_LINE = ("default_hooks.checkpoint.interval=2", "train_dataloader.batch_size=2", "default_hooks.progress.interval=9")


@pytest.mark.parametrize(("value", "options"), [("nan", EACH_STEP), ("inf", EACH_STEP), ("nan", NO_LINE)])
def test_a_loss_that_is_not_finite_stops_with_the_step_and_the_last_good_checkpoint(space, monkeypatch, value, options):
    break_at(monkeypatch, 5, float(value))
    with pytest.raises(
        UserError, match=r"the loss is .* at step 5; the last good checkpoint is .*iter_4\.pth"
    ) as caught:
        run_train(options=options)
    assert "\n" not in str(caught.value)
    files = {path.name: path for path in (space / "runs/demo/pretrain/simsiam").glob("iter_*.pth")}
    assert not {"iter_5.pth", "iter_6.pth"} & files.keys()
    state = torch.load(files["iter_4.pth"], weights_only=True)
    assert all(v.isfinite().all() for v in state["state_dict"].values())
    monkeypatch.undo()
    monkeypatch.chdir(space)
    run_train("--resume", options=options)
    assert load_checkpoint(space / "checkpoints/demo/simsiam.pth")


@pytest.mark.parametrize(
    ("broken", "option", "said"),
    [
        (4, "interval=1", r"after step 4; the last good checkpoint is .*iter_3\.pth"),
        (6, "interval=9", "after step 6; no checkpoint was written yet"),
    ],
)
def test_weights_that_are_not_finite_are_never_saved(space, monkeypatch, broken, option, said):
    """The step whose update overflows has a finite loss; its checkpoint or export would be the last."""
    original = torch.optim.SGD.step
    steps = []

    def step(self, *args, **kwargs):
        steps.append(1)
        original(self, *args, **kwargs)
        if len(steps) == broken:
            with torch.no_grad():
                self.param_groups[0]["params"][0].fill_(float("nan"))

    monkeypatch.setattr(torch.optim.SGD, "step", step)
    saving = (f"default_hooks.checkpoint.{option}", "default_hooks.checkpoint.save_last=False")
    with pytest.raises(UserError, match=f"no longer finite {said}"):
        run_train(options=saving)
    assert not (space / "checkpoints").exists()


def test_no_checkpoint_yet_is_said(space, monkeypatch):
    break_at(monkeypatch, 1, float("nan"))
    with pytest.raises(UserError, match="no checkpoint was written yet"):
        run_train()


def test_a_collapse_is_reported_plainly_and_stops_the_run_when_asked(space, monkeypatch, capsys):
    original = methods.spread
    monkeypatch.setattr(methods, "spread", lambda z: original(z) * 0.01)
    run_train()
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("collapse")]
    assert [line.split(" the std")[0] for line in said] == ["collapse: in epoch 1", "collapse: in epoch 2"]
    assert "threshold 0.025, spread evenly 0.25" in said[0]  # d = 16
    remove_export(space)
    with pytest.raises(UserError, match=r"collapse: in epoch 1 .* --stop-on-collapse"):
        run_train("--stop-on-collapse")
    assert (space / "runs/demo/pretrain/simsiam/iter_3.pth").is_file()


def test_a_healthy_run_reports_no_collapse_nor_does_one_that_recovers_within_the_epoch(space, monkeypatch, capsys):
    original, calls = methods.spread, []
    monkeypatch.setattr(
        methods, "spread", lambda z: (calls.append(1), original(z) * (0.01 if len(calls) % 3 else 1))[1]
    )
    run_train("--stop-on-collapse")
    assert "collapse:" not in capsys.readouterr().out
