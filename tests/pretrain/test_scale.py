"""One step, however it is carried out: several processes, several parts, other precisions, other layouts."""

import copy
import json
import os
import socket
import subprocess
import sys
from argparse import Namespace
from importlib.machinery import ModuleSpec
from pathlib import Path
from unittest.mock import ANY, MagicMock, call

import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import nn

import pretrain.optim
from common.checkpoint import load_checkpoint
from common.engine import runner as engine
from common.engine.batch import plan_batch, processes
from common.engine.processes import _meeting, unwrapped
from common.engine.runner import Runner
from common.errors import UserError
from pretrain import knn, linear, methods, train
from pretrain.fit import pretrain
from tests.pretrain.tiny import ROOT, TINY, log, remove_export, run_train, start

SMALL = dict(
    backbone=dict(name="test_resnet"), projector=dict(layers=2, dim=16), predictor=dict(hidden_dim=8), guide="none"
)


def runner_of(*extra: str, method: str = "simsiam", options: tuple[str, ...] = ()) -> Runner:
    """Run the tiny training and return its Runner."""
    [job] = train.jobs(["--method", method, *extra, "--cfg-options", *TINY, *options])
    return pretrain(job)


# Several processes


def settings(batch=512, workers=32, accumulate=1) -> Config:
    return Config(
        dict(
            train_dataloader=dict(batch_size=batch, num_workers=workers, persistent_workers=True),
            train_cfg=dict(accumulate=accumulate),
            optim_wrapper=dict(optimizer=dict(lr=0.05)),
            auto_scale_lr=dict(base_batch_size=256, enable=True),
        )
    )


@pytest.mark.parametrize(
    ("launcher", "environment", "accumulate", "each", "workers"),
    [
        ("none", {}, 1, 512, 32),
        ("none", {}, 4, 128, 32),
        ("pytorch", {"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "8"}, 1, 64, 4),
        ("pytorch", {"WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8"}, 2, 16, 4),
        ("slurm", {"SLURM_NTASKS": "16", "SLURM_NNODES": "4"}, 1, 32, 8),
    ],
)
def test_a_batch_is_the_total_over_processes_and_parts(monkeypatch, launcher, environment, accumulate, each, workers):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    config = settings(accumulate=accumulate)
    plan = plan_batch(config, *processes(launcher))
    plan.apply(config)
    assert (config.train_dataloader.batch_size, config.train_dataloader.num_workers) == (each, workers)
    assert config.optim_wrapper.optimizer.lr == pytest.approx(0.1)  # by the total, however it is shared
    assert "batch 512" in plan.said
    assert "learning rate 0.1 = 0.05 x 512 / 256" in plan.said


def test_a_batch_that_cannot_be_shared_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UserError, match="multiple of 3"):
        plan_batch(settings(), *processes("pytorch"))
    monkeypatch.delenv("WORLD_SIZE")
    with pytest.raises(UserError, match="torchrun"):
        processes("pytorch")


def frozen(model: nn.Module) -> nn.Module:
    """Return the model with BN in eval mode, also while it trains."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.eval()
    return model


def steps(rank: int, world: int, method: str, folder: str) -> None:
    """Five steps on this process's share of fixed batches; the first gradients and the last weights go to disk."""
    torch.set_num_threads(1)
    config = Config(dict(find_unused_parameters=False))
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", LOCAL_RANK=str(rank))
    if world > 1:
        os.environ["MASTER_PORT"] = Path(folder, "port").read_text()
        torch.distributed.init_process_group("gloo")
    torch.manual_seed(0)
    model = MODELS.build(dict(type=method, **SMALL))
    if world > 1:
        wrap = Namespace(cfg=config, distributed=True, rank=rank, world_size=world, seed=0)
        model = Runner.wrap_model(wrap, None, model)
    frozen(model)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05, momentum=0.9)
    draws = torch.Generator().manual_seed(1)
    losses = []
    for step in range(5):
        views = [torch.randn(8, 3, 32, 32, generator=draws)[rank::world] for _ in range(2)]
        if method == "BYOL":
            unwrapped(model).start_step()
        loss = model(views)["loss"]
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            gradients = {n: p.grad.clone() for n, p in unwrapped(model).named_parameters() if p.grad is not None}
        optimizer.step()
        losses.append(loss.item())
    torch.save((losses, gradients, unwrapped(model).state_dict()), f"{folder}/{world}-{rank}.pth")
    if world > 1:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("method", ["SimSiam", "BYOL"])
def test_two_processes_learn_what_one_learns_from_the_whole_batch(tmp_path, method):
    (tmp_path / "port").write_text(str(free_port()))
    torch.multiprocessing.spawn(steps, (2, method, str(tmp_path)), nprocs=2)
    torch.multiprocessing.spawn(steps, (1, method, str(tmp_path)), nprocs=1)
    (loss, gradients, weights), first, second = (torch.load(tmp_path / f"{n}.pth") for n in ("1-0", "2-0", "2-1"))
    for whole, one, other in zip(loss, first[0], second[0], strict=True):
        assert (one + other) / 2 == pytest.approx(whole, abs=2e-6)
    for name, value in gradients.items():  # averaged: the same on both processes
        assert torch.equal(first[1][name], second[1][name])
        torch.testing.assert_close(first[1][name], value, rtol=1e-3, atol=1e-6)
    for name, value in weights.items():
        assert torch.equal(first[2][name], second[2][name]), name
        torch.testing.assert_close(first[2][name], value, rtol=1e-3, atol=1e-5)


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


RANKS = '''
"""Train as the arguments say, and keep this process's weights."""
import sys, torch
from common import cli
from common.engine.processes import unwrapped
from pretrain import train
from pretrain.fit import pretrain
def main():
    [job] = train.jobs(sys.argv[1:])
    runner = pretrain(job)
    state = {k: v for k, v in unwrapped(runner.model).state_dict().items() if "running" not in k}
    torch.save((state, torch.get_rng_state()), f"rank{runner.rank}.pth")
cli.run(main)
'''


@pytest.mark.parametrize(("launcher", "views"), [("pytorch", []), ("slurm", []), ("pytorch", ["--device-views"])])
def test_two_processes_train_alike_share_the_work_and_leave_one_run(space, launcher, views):
    (space / "ranks.py").write_text(RANKS)
    arguments = ["--method", "simsiam_gsg", "--launcher", launcher, "--data-root", "data", *views, "--cfg-options"]
    arguments += [*TINY[1:-1], "default_hooks.checkpoint.interval=2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    if launcher == "pytorch":
        torchrun = ["-m", "tools.launch", "--standalone", "--nproc_per_node", "2"]
        done = [subprocess.run([sys.executable, *torchrun, "ranks.py", *arguments], cwd=space, env=environment)]
    else:
        environment |= dict(SLURM_NTASKS="2", SLURM_NNODES="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))
        command = [sys.executable, "ranks.py", *arguments]
        ranks = [
            subprocess.Popen(command, cwd=space, env=environment | dict(SLURM_PROCID=str(r), SLURM_LOCALID=str(r)))
            for r in range(2)
        ]
        done = [Namespace(returncode=rank.wait(timeout=120)) for rank in ranks]
    assert [process.returncode for process in done] == [0] * len(done)
    (one, random_one), (two, random_two) = (torch.load(space / f"rank{rank}.pth") for rank in range(2))
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    assert not torch.equal(random_one, random_two)  # references are drawn within a process, by its own generator
    lines = log(space, "simsiam_gsg")
    assert [line["step"] for line in lines] == [1, 2, 3, 3, 4, 5, 6, 6]  # batch 4 in all: three steps an epoch
    assert ["knn" in line for line in lines] == ["epoch" in line for line in lines]
    state = torch.load(space / "runs/demo/pretrain/simsiam_gsg/iter_6.pth", weights_only=True)
    assert len(state["random_states"]) == 2
    # The bank was shared by the processes, and is judged as a whole: as one process judges the export.
    knn.main(["--method", "simsiam_gsg", "--data-root", "data", "--cfg-options", "evaluation.k=12"])
    record = json.loads((space / "results/demo/knn/simsiam_gsg/data-seed0.json").read_text())
    assert lines[-1]["knn"] == pytest.approx(record["metrics"]["top1"])


FUSED = ["regnety_002", "efficientnet_b0", "densenet121", "mobilenetv3_small_100"]  # activations inside BN layers


@pytest.mark.parametrize("name", ["test_resnet", *FUSED])
def test_with_syncbn_a_network_stays_what_it_was(monkeypatch, name):
    torch.manual_seed(0)
    model = MODELS.build(dict(type="SimSiam", **(SMALL | dict(backbone=dict(name=name)))))
    layers = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    views = [torch.randn(8, 3, 32, 32) for _ in range(2)]
    want = copy.deepcopy(model)(views)["loss"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(engine, "MMDistributedDataParallel", lambda model, **kwargs: model)
    run = Namespace(cfg=Config(dict(sync_bn="torch")), distributed=True, rank=0, world_size=1)
    synced = Runner.wrap_model(run, None, model)
    assert sum(isinstance(module, nn.SyncBatchNorm) for module in synced.modules()) == len(layers) > 0
    assert torch.equal(synced(views)["loss"], want)  # of one process; torch's layer then needs no GPU


# Several parts


def test_parts_add_up_to_the_gradient_of_the_whole_batch(space, monkeypatch):
    """BN frozen, so that parts do not matter to it; 12 images in steps of 8 and 4: the last step is shorter."""
    normal = nn.modules.batchnorm._BatchNorm
    monkeypatch.setattr(
        normal,
        "forward",
        lambda self, x: F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps),
    )
    options = ("train_dataloader.batch_size=8", "train_dataloader.drop_last=False", "optim_wrapper.optimizer.lr=0.001")
    whole = runner_of(method="byol", options=options)
    parts = runner_of("--runs", "r", "--checkpoints", "c", "--accumulate", "4",
                      method="byol", options=options)  # fmt: skip
    assert (whole.iter, parts.iter) == (4, 4)
    assert (whole.train_dataloader.batch_size, parts.train_dataloader.batch_size) == (8, 2)
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(parts.model.state_dict()[name], value, rtol=1e-3, atol=1e-5)


def test_the_target_moves_once_a_step_of_many_parts(space, monkeypatch):
    moves = []
    monkeypatch.setattr(methods.BYOL, "start_step", lambda self: moves.append(self))
    run_train("--accumulate", "2", method="byol")
    assert len(moves) == 6


# Precision, layout, compilation

SLOW = ("optim_wrapper.optimizer.lr=0.0001",)  # so that rounding is not what training amplifies


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_mixed_precision_keeps_float32_weights_and_learns_nearly_the_same(space, monkeypatch, dtype):
    plain = runner_of(method="byol_gsg", options=SLOW)
    seen = []
    original = methods.gsg_loss

    def spy(image, *args):
        seen.append({value.dtype for value in image})
        return original(image, *args)

    monkeypatch.setattr(methods, "gsg_loss", spy)
    project = methods.SimSiam.project
    lower = []
    monkeypatch.setattr(
        methods.SimSiam, "project", lambda self, x: (lower.append(project(self, x).dtype), project(self, x))[1]
    )
    mixed = runner_of("--amp", dtype, "--runs", "r", "--checkpoints", "c", method="byol_gsg", options=SLOW)
    assert set(lower) == {{"bf16": torch.bfloat16, "fp16": torch.float16}[dtype]}  # the networks
    assert seen[0] == {torch.float32}  # distances and cosines
    scaler = mixed.optim_wrapper.loss_scaler
    assert scaler.is_enabled() == (dtype == "fp16")
    state = torch.load(mixed.work_dir + "/iter_6.pth", weights_only=True)
    assert ("scale" in state["optimizer"]["loss_scaler"]) == (dtype == "fp16")
    differences = []
    for name, value in plain.model.named_parameters():
        other = mixed.model.get_parameter(name)
        assert other.dtype == torch.float32
        assert other.isfinite().all()
        differences.append((value - other).abs().max().item())
    assert 0 < max(differences) < 1e-3


def test_channels_last_changes_the_layout_and_not_the_result(space, monkeypatch):
    plain = runner_of(options=SLOW)
    other = runner_of("--channels-last", "--runs", "r", "--checkpoints", "c", options=SLOW)
    weight = other.model.backbone.layer1[0].conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    for name, value in plain.model.named_parameters():
        torch.testing.assert_close(other.model.get_parameter(name), value, rtol=1e-3, atol=1e-4)


def test_images_are_channels_last_where_the_networks_see_them(space, monkeypatch):
    """The target's too, and the chosen ones: layouts survive a permutation and a choice."""
    project, seen = methods.SimSiam.project, []

    def note(x):
        seen.append(x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous())

    monkeypatch.setattr(methods.SimSiam, "project", lambda self, x: (note(x), project(self, x))[1])
    targets = methods.BYOL.targets
    monkeypatch.setattr(
        methods.BYOL,
        "targets",
        lambda self, inputs, z=(): ([note(x) for x in inputs], targets(self, inputs, z))[1],
    )
    run_train("--channels-last", method="byol_gsg", options=("model.chosen_only=True", "train_cfg.max_epochs=1"))
    assert seen == [True] * 3 * (4 + 2)


@pytest.mark.usefixtures("deterministic")
def test_deterministic_is_a_setting_of_its_own_and_asks_cublas_for_it(space, monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    run_train()
    remove_export(space)
    runner = runner_of("--deterministic", "--overwrite", options=("env_cfg.cudnn_benchmark=True",))
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cudnn.deterministic
    assert not torch.backends.cudnn.benchmark
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert runner.cfg.randomness == dict(seed=0, deterministic=True)
    remove_export(space)
    state = space / "runs/demo/pretrain/simsiam/run.json"
    state.write_text(state.read_text().replace("true", "false"))  # as if interrupted
    with pytest.raises(UserError, match="other settings"):
        run_train("--resume")


@pytest.mark.parametrize(
    ("launcher", "environment", "says"),
    [
        ("pytorch", dict(WORLD_SIZE="6", LOCAL_WORLD_SIZE="3", RANK="0", LOCAL_RANK="0"), "only 2 GPUs; set GPUS=2$"),
        ("slurm", dict(SLURM_NTASKS="6", SLURM_NNODES="2", SLURM_PROCID="0"), "set GPUS=2, or .*--gres=gpu:3"),
    ],
)
def test_more_processes_than_gpus_are_refused_before_they_meet(space, monkeypatch, launcher, environment, says):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match=f"GPUS=3 processes on this machine, .*{says}"):
        run_train("--launcher", launcher, options=("train_dataloader.batch_size=12",))
    assert not torch.distributed.is_initialized()


SLURM = {"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_LOCALID": "0", "SLURM_NODELIST": "node[3-4]"}


@pytest.fixture
def on_slurm(monkeypatch, tmp_path):
    """Return the function that has this process be a task of a job's step; `scontrol` does what it is told."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")  # to be restored
        monkeypatch.delenv(name)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def task(job: int, step: int, scontrol: str = "echo node3; echo node4") -> None:
        (tmp_path / "scontrol").write_text(f"#!/bin/sh\n{scontrol}\n")
        (tmp_path / "scontrol").chmod(0o755)
        os.environ.pop("MASTER_PORT", None)
        for name, value in {**SLURM, "SLURM_JOB_ID": str(job), "SLURM_STEP_ID": str(step)}.items():
            monkeypatch.setenv(name, value)

    return task


def test_slurm_s_jobs_and_steps_meet_at_ports_of_their_own(on_slurm):
    ports = []
    for job in (41, 42, 10**7):
        for step in range(3):
            on_slurm(job, step)
            with _meeting("slurm"):
                ports.append(int(os.environ["MASTER_PORT"]))
    assert len(set(ports)) == 9
    assert all(1024 < port < 32768 for port in ports)  # where Linux begins to give ports away
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR")
    assert [os.environ[name] for name in names] == ["1", "2", "0", "node3"]
    on_slurm(1, 0)
    os.environ["MASTER_PORT"] = "4711"
    with _meeting("slurm"):
        assert os.environ["MASTER_PORT"] == "4711"


@pytest.mark.parametrize(
    ("scontrol", "says"), [("echo no such node >&2; exit 1", "no such node"), ("exit 0", ""), ("exec /nowhere", "")]
)
def test_a_failing_scontrol_is_one_line(on_slurm, scontrol, says):
    on_slurm(1, 0, scontrol)
    with pytest.raises(UserError) as caught, _meeting("slurm"):
        raise AssertionError
    said = str(caught.value)
    assert said.startswith(f"`scontrol show hostnames node[3-4]` failed: {says}")
    assert said.endswith("; set MASTER_ADDR to the first node's name")
    assert len(said.splitlines()) == 1


def test_a_missing_scontrol_is_one_line(on_slurm, monkeypatch, tmp_path):
    on_slurm(1, 0)
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    with pytest.raises(UserError, match="No such file or directory: 'scontrol'; set MASTER_ADDR"), _meeting("slurm"):
        raise AssertionError


def test_a_port_that_is_taken_is_one_line(space):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        environment = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
        process = start("--launcher", "pytorch", space=space, more=environment | {"MASTER_PORT": str(port)})
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.splitlines()[-1] == (
        f"error: the processes cannot meet at MASTER_ADDR=127.0.0.1, MASTER_PORT={port}: that port is taken; set both "
        "to a place that is free"
    )
    assert "Traceback" not in errors


def test_compile_compiles_the_backbone_and_keeps_its_names(space, monkeypatch):
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    original = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self, **kwargs: original(self, backend=backend))
    runner = runner_of("--compile")
    assert compiled
    exported = load_checkpoint(space / "checkpoints/demo/simsiam.pth").state_dict
    assert all(torch.equal(value, runner.model.backbone.state_dict()[name]) for name, value in exported.items())


def test_compile_without_a_compiler_is_one_line(space, monkeypatch):
    def fail(self):
        # What torch 2.14 raises; hiding the compiler from it takes a process of its own and a minute.
        raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found in torch._inductor.config.cpp.cxx")

    monkeypatch.setattr(nn.Module, "compile", fail)
    with pytest.raises(UserError, match=r"no working C\+\+ compiler; install g\+\+, or leave --compile out"):
        run_train("--compile")


@pytest.mark.slow
def test_compile_with_a_real_compiler(space):
    run_train("--compile", options=("train_cfg.max_epochs=1",))
    assert load_checkpoint(space / "checkpoints/demo/simsiam.pth")


# BYOL with GSG from the chosen views alone


def test_chosen_views_alone_give_the_same_gradients_when_bn_is_frozen():
    torch.manual_seed(0)
    naive = frozen(MODELS.build(dict(type="BYOL", **(SMALL | dict(guide="nearest")))))
    with torch.no_grad():
        for parameter in naive.target.parameters():  # a target that differs from the online network
            parameter.add_(0.05 * torch.randn_like(parameter))
    quick = copy.deepcopy(naive)
    quick.chosen_only = True
    views = [torch.randn(8, 3, 32, 32) for _ in range(4)]
    losses = []
    for model in (naive, quick):
        torch.manual_seed(5)
        losses.append(model(views)["loss"])
        losses[-1].backward()
    torch.testing.assert_close(losses[1], losses[0])
    for (name, one), other in zip(naive.named_parameters(), quick.parameters(), strict=True):
        if one.grad is None:
            assert other.grad is None, name
        else:
            torch.testing.assert_close(other.grad, one.grad, rtol=1e-4, atol=1e-6)


def test_chosen_views_alone_cost_two_online_passes_instead_of_four(monkeypatch):
    model = MODELS.build(dict(type="BYOL", chosen_only=True, **(SMALL | dict(guide="nearest"))))
    passes = []
    model.backbone.register_forward_hook(lambda *_: passes.append(1))
    model([torch.randn(4, 3, 32, 32) for _ in range(4)])
    assert len(passes) == 2


def test_chosen_views_need_fresh_references():
    for wrong in (dict(guide="none"), dict(guide="nearest", views="shared")):
        with pytest.raises(UserError, match="chosen_only"):
            MODELS.build(dict(type="BYOL", chosen_only=True, **(SMALL | wrong)))


# Ablations


@pytest.mark.parametrize(
    ("name", "want"),
    [
        ("simsiam_gsg-farthest", lambda c: c.model.guide == "farthest"),
        ("byol_gsg-random", lambda c: c.model.guide == "random" and c.model.type == "BYOL"),
        ("byol_gsg-shared_views", lambda c: c.model.views == "shared" and c.train_dataloader.dataset.num_views == 2),
        ("simsiam-no_predictor", lambda c: c.model.predictor is None),
        *((f"simsiam-batch{n}", lambda c, n=n: c.train_dataloader.batch_size == n) for n in (64, 128, 256, 512, 1024)),
    ],
)
@pytest.mark.parametrize("profile", ["demo", "cifar10", "imagenet"])
def test_ablations_are_small_changes_to_a_method(profile, name, want):
    args = Namespace(profile=profile, data=Path("data"), cfg_options={}, data_root=None, skip_corrupt=False, amp=None,
                     device_views=False, accumulate=1, channels_last=False, compile=False)  # fmt: skip
    config = train.method_config(args, name)
    assert want(config)
    model = MODELS.build(dict(config.model, backbone=dict(name="test_resnet")))
    assert model.num_views == config.train_dataloader.dataset.num_views
    before = config.optim_wrapper.optimizer.lr
    plan_batch(config, 1, 1).apply(config)
    if "batch" in name:  # the scaling rule, in every profile
        base = {"demo": 64, "cifar10": 128, "imagenet": 256}[profile]
        assert config.optim_wrapper.optimizer.lr == pytest.approx(before * config.train_dataloader.batch_size / base)


def test_every_ablation_has_its_file_and_every_file_its_name():
    from common.names import ABLATIONS

    assert {path.stem for path in (train.CONFIGS / "ablation").glob("*.py")} == set(ABLATIONS)


def test_an_ablation_trains_under_its_own_name_and_a_senseless_one_is_refused(space):
    run_train(method="simsiam_gsg-shared_views")
    assert load_checkpoint(space / "checkpoints/demo/simsiam_gsg-shared_views.pth").meta["epochs"] == 2
    for name in ("simsiam-farthest", "byol-shared_views"):
        with pytest.raises(UserError, match="no guide to vary"):
            run_train(method=name)
    with pytest.raises(UserError, match="unknown ablation 'batch65'"):
        run_train(method="simsiam-batch65")


# Any ImageFolder, and its corrupt images


def test_any_image_folder_can_be_pretrained_on(space, capsys):
    (space / "data").rename(space / "blossoms")
    train.main(["--data-root", "blossoms", "--method", "simsiam", "--cfg-options", *TINY[1:]])
    assert load_checkpoint(space / "checkpoints/demo/simsiam.pth").meta["dataset"] == "blossoms"
    with pytest.raises(UserError, match=r"^--data-root elsewhere \(DATA_ROOT\) is not a folder; correct it$"):
        train.main(["--data-root", "elsewhere", "--method", "simsiam", "--cfg-options", *TINY[1:]])


@pytest.mark.parametrize("layout", [".", "train", "2026/may"])
def test_a_tree_of_images_without_classes_can_be_pretrained_on(space, layout):
    folder = space / "photos" / layout
    folder.mkdir(parents=True)
    for number, path in enumerate((space / "data/train").rglob("*.png")):
        path.rename(folder / f"{number}.png")
    (space / "photos/val").mkdir()
    train.main(["--data-root", "photos", "--method", "simsiam", "--cfg-options", *TINY[1:-1]])
    assert load_checkpoint(space / "checkpoints/demo/simsiam.pth").meta["dataset"] == "photos"
    lines = log(space)
    assert lines[-1]["step"] == 6
    assert all("knn" not in line for line in lines)
    with pytest.raises(
        UserError, match="has no folder 'train'" if layout != "train" else "no class folders with images"
    ):
        linear.main(["--data-root", "photos", "--method", "simsiam"])


def test_without_a_test_folder_there_is_no_knn(space):
    for path in sorted((space / "data/val").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (space / "data/val").rmdir()
    train.main(["--data-root", "data", "--method", "simsiam", "--cfg-options", *TINY[1:-1]])
    assert all("knn" not in line for line in log(space))


def test_corrupt_images_are_passed_over_and_counted_when_asked(space, capfd):
    path = space / "data" / "train" / "b" / "3.png"
    path.write_bytes(path.read_bytes()[:300])
    run_train("--skip-corrupt")
    assert [line["skipped"] for line in log(space) if "epoch" in line] == [1, 1]
    said = capfd.readouterr()
    assert "train/b/3.png" in said.err
    assert "epoch 1: 1 corrupt images skipped" in said.out


# Live logs


def test_tensorboard_gets_what_the_log_says(space):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run_train()
    (events,) = (space / "runs/demo/pretrain/simsiam").rglob("events.out.tfevents*")
    read = EventAccumulator(str(events.parent)).Reload()
    assert {"train/loss", "train/lr", "train/std", "train/images_per_s"} <= set(read.Tags()["scalars"])
    losses = {event.step: event.value for event in read.Scalars("train/loss")}
    assert losses == {line["step"]: pytest.approx(line["loss"], rel=1e-6) for line in log(space)}


@pytest.mark.parametrize(
    ("logger", "opened", "logged", "closed"),
    [
        ("wandb", call.init(project="gsg", name="demo/pretrain/simsiam", dir=ANY), "log", call.join()),
        ("mlflow", call.set_tag("mlflow.runName", "demo/pretrain/simsiam"), "log_metrics", call.end_run()),
    ],
)
def test_another_logger_gets_what_the_log_says(space, monkeypatch, logger, opened, logged, closed):
    package = MagicMock(__spec__=ModuleSpec(logger, None))
    package.get_tracking_uri.return_value = "sqlite:///mlflow.db"
    monkeypatch.setitem(sys.modules, logger, package)
    run_train("--logger", logger)
    assert opened in package.mock_calls
    assert not package.run.log_code.called
    lines = [entry.args[0] for entry in getattr(package, logged).call_args_list]
    assert [line["train/loss"] for line in lines] == [pytest.approx(line["loss"]) for line in log(space)]
    assert package.mock_calls[-1] == closed
    assert list((space / "runs").rglob("events.out.tfevents*"))  # TensorBoard's, as ever
    run_train("--logger", logger)  # a logger is not part of the settings: the export stands
    assert package.mock_calls[-1] == closed


def test_a_logger_that_is_not_installed_is_named(space, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    for word, says in (("wandb", "LOGGER=wandb needs the package wandb"), ("comet", "unknown LOGGER 'comet'; known:")):
        with pytest.raises(UserError, match=says):
            run_train("--logger", word)
    assert not (space / "runs").exists()
