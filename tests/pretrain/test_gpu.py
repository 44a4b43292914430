"""Losses, steps and runs on a GPU against the CPU; `make gpu-check DEVICE=cpu` rehearses them."""

import os
import shutil
import signal
import sysconfig
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

import pretrain.optim  # noqa: F401  (registers what the configs name)
from common.engine import runner as engine
from common.engine.processes import unwrapped
from common.engine.steps import StepOptimWrapper, take_step
from common.errors import Stopped
from pretrain import linear, methods
from pretrain.gsg import GUIDES, Views, choose_views, gsg_loss, sent
from pretrain.methods import derangement
from tests.pretrain.test_scale import SMALL, free_port, frozen, runner_of
from tests.pretrain.tiny import outcome, remove_export, run_train

# torch asks for it at the first product on a GPU of this process, whichever test takes it.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

RESNET = dict(SMALL, backbone=dict(name="resnet18"), projector=dict(layers=2, dim=64))
FRESH = dict(guide="nearest", views="fresh")
SHARED = dict(guide="nearest", views="shared")


# The loss


def views(dtype: torch.dtype, ties: bool, device: torch.device) -> tuple[Views, Views]:
    """Return an image's and a reference's views, the same numbers on every device; with ties, distances are equal."""
    draws = torch.Generator().manual_seed(0)
    sides = []
    for _ in range(2):
        z1, z2, p1, p2 = (torch.randn(64, 32, generator=draws, dtype=torch.double) for _ in range(4))
        if ties:  # whole numbers, whose distances are exact; all four equal, or two and two
            z1 = (2 * z1).round()
            z2 = torch.where(torch.arange(64)[:, None] % 2 == len(sides), (2 * z2).round(), z1)
        sides.append(Views(*(field.to(device, dtype).requires_grad_() for field in (z1, z2, p1, p2))))
    return sides[0], sides[1]


@pytest.mark.gpu
@pytest.mark.parametrize("ties", [False, True], ids=["no ties", "ties"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("guide", GUIDES)
def test_the_loss_and_its_gradient_are_those_of_the_cpu(
    device: torch.device, guide: str, dtype: torch.dtype, ties: bool
) -> None:
    found = []
    for place in (torch.device("cpu"), device):
        image, reference = views(dtype, ties, place)
        torch.manual_seed(3)  # `random` draws on the CPU, whatever the device
        loss = gsg_loss(image, reference, guide)
        loss.backward()
        gradients = [field.grad for side in (image, reference) for field in side]
        assert [gradient is None for gradient in gradients[:4]] == [True, True, False, False]  # z never learns
        found.append([loss.detach(), *(g.cpu() for g in gradients if g is not None)])
        assert loss.device.type == place.type
    tolerance = 1e-12 if dtype is torch.float64 else 1e-6
    for want, got in zip(*found, strict=True):
        torch.testing.assert_close(got.cpu(), want, rtol=tolerance, atol=tolerance)


@pytest.mark.gpu
@pytest.mark.parametrize("guide", GUIDES)
def test_under_autocast_distances_and_cosines_stay_float32(device: torch.device, guide: str) -> None:
    image, reference = views(torch.float32, False, device)
    torch.manual_seed(3)
    want, spread = gsg_loss(image, reference, guide), methods.spread(image.z1)
    torch.manual_seed(3)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        assert torch.equal(gsg_loss(image, reference, guide), want)
        assert torch.equal(methods.spread(image.z1), spread)


@pytest.mark.gpu
def test_what_is_drawn_on_the_cpu_arrives_without_a_wait(device: torch.device) -> None:
    image, reference = views(torch.float32, False, device)
    order = derangement(64)
    with without_waiting(device):
        arrived = sent(order, device)
        choose_views(image[:2], reference[:2], "random")
    assert arrived.device.type == device.type
    assert torch.equal(arrived.cpu(), order)


@contextmanager
def without_waiting(device: torch.device) -> Iterator[None]:
    """Let CUDA raise where the host would wait for it; on a CPU, do nothing."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


# One step


def build(method: str, device: torch.device, **options: Any) -> nn.Module:
    """Return a model of the same weights on every device; BYOL's target differs from its online network."""
    torch.manual_seed(0)
    model = MODELS.build(dict(type=method, **options)).train()
    if method == "BYOL":
        with torch.no_grad():
            for parameter in model.target.parameters():
                parameter.add_(0.01 * torch.randn_like(parameter))
    return model.to(device)


def wrapper_of(model: nn.Module, lr: float = 0.05, **options: Any) -> StepOptimWrapper:
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return StepOptimWrapper(optimizer=torch.optim.SGD(learning, lr, momentum=0.9, weight_decay=5e-4), **options)


def images(model: Any, n: int = 16) -> list[Tensor]:
    """Return a batch of every view that the model takes, the same numbers on every device."""
    draws = torch.Generator().manual_seed(1)
    dtype = next(model.parameters()).dtype
    return [torch.randn(n, 3, 32, 32, generator=draws).to(dtype) for _ in range(model.num_views)]


def step(model: Any, wrapper: StepOptimWrapper, n: int = 16) -> Tensor:
    """Take one step on the same images with the same draws; return the loss."""
    torch.manual_seed(7)
    if hasattr(model, "start_step"):
        model.start_step()
    return model.train_step({"inputs": images(model, n)}, optim_wrapper=wrapper)["loss"]


def assert_same(one: nn.Module, other: nn.Module, bound: float) -> None:
    """Compare weights within `bound`, and BN's statistics, of any size, relative to themselves as well."""
    for (name, want), got in zip(one.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(got.cpu(), want.cpu(), rtol=0, atol=bound, msg=lambda said, n=name: f"{n}: {said}")
    for want, got in zip(one.buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(got.cpu(), want.cpu(), rtol=1e-4, atol=bound)


def moved(before: Sequence[Tensor], model: nn.Module) -> float:
    pairs = zip(before, model.parameters(), strict=True)
    return max((old.cpu() - new.detach().cpu()).abs().max().item() for old, new in pairs)


def weights(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


# A ReLU whose argument is nearly 0 falls on one side on one device and on the other on another, in float32: a gradient
# is then off by an image's share, some 0.5 %. A small learning rate keeps the weights within the bound.
SLOW, BOUND = 0.0003, 1e-5


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("dtype", "lr", "bound"), [(torch.float32, SLOW, BOUND), (torch.float64, 0.05, 1e-6)], ids=["float32", "float64"]
)
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("SimSiam", {}),
        ("SimSiam", FRESH),
        ("SimSiam", SHARED),
        ("SimSiam", dict(FRESH, guide="random")),
        ("BYOL", {}),
        ("BYOL", FRESH),
        ("BYOL", SHARED),
        ("BYOL", dict(FRESH, chosen_only=True)),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value.values())) or "plain",
)
def test_a_step_ends_at_the_weights_of_the_cpu(
    device: torch.device, method: str, options: dict[str, Any], dtype: torch.dtype, lr: float, bound: float
) -> None:
    models = []
    for place in (torch.device("cpu"), device):
        model = build(method, place, **(RESNET | options)).to(dtype)
        before = weights(model)
        loss = step(model, wrapper_of(model, lr))
        assert loss.device.type == place.type
        assert moved(before, model) > 10 * bound
        models.append(model)
    assert_same(*models, bound=bound)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_steps_in_lower_precision_are_finite_and_learn(device: torch.device, dtype: str) -> None:
    model = build("SimSiam", device, **(SMALL | FRESH))
    wrapper, before = wrapper_of(model, dtype=dtype), weights(model)
    losses = torch.stack([step(model, wrapper, n=8).detach() for _ in range(5)])  # the first may overflow in float16
    assert losses.isfinite().all()
    assert losses.dtype is torch.float32
    assert losses[-1] < losses[0]
    assert all(parameter.dtype is torch.float32 and parameter.isfinite().all() for parameter in model.parameters())
    assert moved(before, model) > 1e-3


@pytest.mark.gpu
def test_a_step_whose_gradients_overflow_is_left_out_and_the_scaler_goes_on_after_a_resume(
    device: torch.device, tmp_path: Any
) -> None:
    model = build("SimSiam", device, **SMALL)
    wrapper, before = wrapper_of(model, dtype="float16"), weights(model)
    wrapper.loss_scaler.load_state_dict({**wrapper.loss_scaler.state_dict(), "scale": 2.0**100})
    assert step(model, wrapper, n=4).isfinite()
    assert moved(before, model) == 0  # float16 ends at 65504
    torch.save(wrapper.state_dict(), tmp_path / "state.pth")
    state = torch.load(tmp_path / "state.pth", weights_only=True)
    assert state["loss_scaler"]["scale"] == 2.0**99
    resumed = wrapper_of(model, dtype="float16")
    resumed.load_state_dict(state)
    step(model, resumed, n=4)
    assert resumed.loss_scaler.get_scale() == 2.0**98
    resumed.loss_scaler.load_state_dict({**resumed.loss_scaler.state_dict(), "scale": 2.0**10})
    step(model, resumed, n=4)
    assert moved(before, model) > 1e-3


@pytest.mark.gpu
def test_parts_add_up_to_the_whole_batch(device: torch.device) -> None:
    """BN frozen, so that parts do not matter to it; in float64, so that no ReLU's argument changes its sign."""
    found = []
    for parts in (1, 4):
        model = frozen(build("SimSiam", device, **RESNET)).double()
        before, batch, size = weights(model), images(model), 16 // parts
        batches = ({"inputs": [x[part * size : (part + 1) * size] for x in batch]} for part in range(parts))
        runner = Namespace(model=model, optim_wrapper=wrapper_of(model), call_hook=lambda *_, **__: None)
        take_step(runner, 0, batches, [1 / parts] * parts)
        assert moved(before, model) > 1e-3
        found.append(model)
    assert_same(*found, bound=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("options", [{}, dict(FRESH, chosen_only=True)], ids=["plain", "chosen only"])
def test_channels_last_ends_at_the_same_weights(device: torch.device, options: dict[str, Any]) -> None:
    found, layouts = [], []
    for last in (False, True):
        model = build("BYOL", device, **(RESNET | options))
        if last:
            model = model.to(memory_format=torch.channels_last)
            model.data_preprocessor.register_forward_hook(engine._images_channels_last)
        model.backbone.layer4.register_forward_hook(
            lambda module, inputs, out: layouts.append(inputs[0].is_contiguous(memory_format=torch.channels_last))
        )
        step(model, wrapper_of(model, SLOW))
        found.append(model)
    assert layouts == [False] * 2 + [True] * 2
    assert_same(*found, bound=BOUND)


@pytest.mark.gpu
def test_compiled_ends_at_the_weights_of_eager(device: torch.device) -> None:
    """Four steps of four views each: the third and fourth replay what the second recorded as CUDA graphs."""
    headers = Path(sysconfig.get_path("include"), "Python.h")
    if device.type == "cuda" and not (headers.is_file() and any(map(shutil.which, ("cc", "gcc", "clang")))):
        pytest.skip("torch.compile needs a C compiler and Python's headers")
    found = []
    for options in (None, {"mode": "reduce-overhead"} if device.type == "cuda" else {"backend": "aot_eager"}):
        model = build("SimSiam", device, **(SMALL | FRESH))
        if options is not None:
            model.backbone.compile(**options)
        wrapper = wrapper_of(model, SLOW)
        for _ in range(4):
            step(model, wrapper)
        found.append(model)
    assert_same(*found, bound=BOUND)


# Runs

# Six steps: a line is logged after the fourth, the epoch and the run end with the sixth. The first one warms up.
FEW_LINES = (
    "train_dataloader.batch_size=2",
    "train_cfg.max_epochs=1",
    "default_hooks.progress.interval=4",
    "default_hooks.checkpoint.interval=100",
)
BETWEEN_LINES = (2, 3, 5)
LARS = ("type=LARS", "trust_coeff=0.001", "always_adapt=True")


@pytest.mark.gpu
@pytest.mark.parametrize("how", [(), ("--amp", "fp16"), ("--amp", "bf16", "--channels-last")], ids=" ".join)
def test_deterministic_runs_stopped_by_sigterm_resume_to_the_same_bits(
    device: torch.device, deterministic: None, space: Any, monkeypatch: pytest.MonkeyPatch, how: tuple[str, ...]
) -> None:
    run: Any = dict(method="byol_gsg", options=("default_hooks.progress.interval=2",))
    run_train("--deterministic", *how, **run)
    whole = outcome(space, "byol_gsg")
    remove_export(space)
    original, calls = methods.BYOL.loss, []

    def loss(self: Any, inputs: Any) -> Any:
        calls.append(inputs[0].device.type)
        if len(calls) == 5:
            signal.raise_signal(signal.SIGTERM)
        return original(self, inputs)

    with monkeypatch.context() as patch:
        patch.setattr(methods.BYOL, "loss", loss)
        with pytest.raises(Stopped, match="after step 5"):
            run_train("--deterministic", *how, **run)
    assert set(calls) == {device.type}
    run_train("--deterministic", "--resume", *how, **run)
    assert outcome(space, "byol_gsg") == whole


@pytest.mark.gpu
def test_the_linear_classifier_has_a_deterministic_form(device: torch.device, deterministic: None, space: Any) -> None:
    run_train(options=("train_cfg.max_epochs=1",))
    found = []
    for folder in ("one", "two"):
        where = ["--runs", folder, "--results", folder, "--data-root", "data", "--deterministic"]
        options = [*FEW_LINES, *(f"optim_wrapper.optimizer.{option}" for option in LARS)]
        linear.main(["--method", "simsiam", *where, "--cfg-options", *options])
        found.append(torch.load(space / folder / "demo/linear/simsiam/iter_6.pth", weights_only=True)["state_dict"])
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


@pytest.mark.gpu
def test_one_process_of_a_launcher_with_syncbn_trains_as_one_alone(
    device: torch.device, space: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As torchrun starts it: its environment, NCCL on a GPU, gradients averaged, SyncBN converted."""
    network = "model.backbone.name=regnety_002"  # which has activations inside BN layers
    options = ("train_cfg.max_epochs=1", "sync_bn=torch", f"optim_wrapper.optimizer.lr={SLOW}", network)
    kept: dict[str, Any] = dict(method="simsiam_gsg", options=options)
    alone = runner_of(**kept).model
    monkeypatch.undo()
    monkeypatch.chdir(space)
    place = dict(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", LOCAL_WORLD_SIZE="1", MASTER_ADDR="127.0.0.1")
    for name, value in (place | dict(MASTER_PORT=str(free_port()))).items():
        monkeypatch.setenv(name, value)
    try:
        other = ("--runs", "r", "--checkpoints", "c")
        wrapped = runner_of("--launcher", "pytorch", *other, **kept).model
        assert torch.distributed.get_backend() == ("nccl" if device.type == "cuda" else "gloo")
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    launched = unwrapped(wrapped)
    assert launched is not wrapped
    assert any(isinstance(module, nn.SyncBatchNorm) for module in launched.modules()) == (device.type == "cuda")
    assert next(launched.parameters()).device.type == device.type
    assert_same(alone, launched, bound=1e-4)


READS = ("item", "tolist", "numpy", "cpu", "__float__", "__int__", "__bool__", "__index__", "__array__")


@contextmanager
def reads_noted(patch: pytest.MonkeyPatch, reads: list[str]) -> Iterator[None]:
    """Note every call by which Python reads a tensor's numbers: on a GPU it waits."""
    with patch.context() as inner:
        for name in READS:
            original = getattr(Tensor, name)

            def read(self: Tensor, *args: Any, _name: str = name, _original: Any = original, **kwargs: Any) -> Any:
                reads.append(_name)
                return _original(self, *args, **kwargs)

            inner.setattr(torch.Tensor, name, read)
        yield


@pytest.fixture(params=["cpu", pytest.param("gpu", marks=pytest.mark.gpu)])
def place(request: pytest.FixtureRequest) -> torch.device:
    """The CPU, where every test run counts reads; and the device, where CUDA itself tells who waits."""
    return torch.device("cpu") if request.param == "cpu" else request.getfixturevalue("device")


@pytest.fixture
def watch(place: torch.device, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Return what starts to watch the steps BETWEEN_LINES, and returns those seen and what they read, to be filled."""
    watching = ExitStack()

    def start() -> tuple[list[int], list[str]]:
        original, steps, reads = engine.Runner.call_hook, [], []

        def call_hook(self: Any, name: str, **kwargs: Any) -> None:
            if name == "before_train_iter" and self.iter + 1 in BETWEEN_LINES:
                steps.append(self.iter + 1)
                watching.enter_context(without_waiting(place))
                watching.enter_context(reads_noted(monkeypatch, reads))
            original(self, name, **kwargs)
            if name == "after_train_iter":
                watching.close()

        monkeypatch.setattr(engine.Runner, "call_hook", call_hook)
        return steps, reads

    with watching:
        yield start


@pytest.mark.parametrize("how", [(), ("--amp", "bf16", "--channels-last")], ids=["float32", "bf16 channels-last"])
@pytest.mark.parametrize("method", ["simsiam", "simsiam_gsg", "byol_gsg", "byol_gsg-random"])
def test_no_step_of_pretraining_reads_from_the_device_between_log_lines(
    space: Any, watch: Any, method: str, how: tuple[str, ...]
) -> None:
    steps, reads = watch()
    run_train(*how, method=method, options=FEW_LINES)
    assert steps == list(BETWEEN_LINES)
    assert reads == []


@pytest.mark.parametrize("optimizer", [(), LARS], ids=["SGD", "LARS"])
def test_no_step_of_the_linear_classifier_reads_from_the_device_between_log_lines(
    space: Any, watch: Any, optimizer: tuple[str, ...]
) -> None:
    run_train(options=("train_cfg.max_epochs=1",))
    steps, reads = watch()
    options = [f"optim_wrapper.optimizer.{option}" for option in optimizer]
    linear.main(["--method", "simsiam", "--data-root", "data", "--cfg-options", *FEW_LINES, *options])
    assert steps == list(BETWEEN_LINES)
    assert reads == []


def test_a_step_that_reads_is_found(
    place: torch.device, space: Any, watch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the two tests above rest on."""
    original = methods.SimSiam.loss

    def loss(self: Any, inputs: Any) -> Any:
        found = original(self, inputs)
        found["loss"].item()
        return found

    monkeypatch.setattr(methods.SimSiam, "loss", loss)
    _, reads = watch()
    if place.type == "cuda":
        with pytest.raises(RuntimeError, match="synchroniz"):
            run_train(options=FEW_LINES)
    else:
        run_train(options=FEW_LINES)
        assert reads == ["item"] * 3
