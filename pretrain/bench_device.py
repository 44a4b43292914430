"""What pretraining costs on a GPU: the rows `gpu_*` of pretrain.bench. A CPU rehearses them at tiny sizes."""

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import timm
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader
from typing_extensions import override

from common.bench import DeviceBenchmark, Found, device_peak, silence, write_photos
from common.config import join_data, load_config
from common.engine.batch import plan_batch
from common.engine.draws import Draw, mix
from common.engine.runner import build_runner, set_run
from pretrain.device_views import DeviceViews, start_device_views, use_device_views
from pretrain.train import CONFIGS
from pretrain.views import MultiView, PixelBatches, collate_visits

SIMSIAM: dict[str, Any] = dict(guide="none")
FRESH: dict[str, Any] = dict(guide="nearest", views="fresh")
SHARED: dict[str, Any] = dict(guide="nearest", views="shared")
BYOL: dict[str, Any] = dict(type="BYOL", **FRESH)
CHOSEN: dict[str, Any] = dict(BYOL, chosen_only=True)
AMP = torch.bfloat16


class Sizes(NamedTuple):
    """The amount of work to measure on a GPU, or to rehearse on a CPU."""

    profile: str  # whose networks the step rows take
    batch: int
    pixels: int
    repeats: int
    cifar_images: int
    cifar_batch: int
    cifar_backbone: str
    epochs: int
    photos: int
    visits: int
    workers: int


SIZES = {
    "cuda": Sizes("imagenet", 128, 224, 8, 50_000, 512, "resnet18_cifar", 3, 256, 3072, 8),
    "cpu": Sizes("demo", 4, 32, 2, 64, 16, "test_resnet", 2, 8, 16, 1),
}


class Clock:
    """Times what runs in `with clock:` on the device, into `seconds`; on CUDA, by CUDA's own clock."""

    def __init__(self, device: str) -> None:
        self.device, self.seconds = device, 0.0

    def __enter__(self) -> "Clock":
        self._start = self._now()
        return self

    def __exit__(self, *_: Any) -> None:
        end = self._now()
        if self.device == "cuda":
            torch.cuda.synchronize()
            self.seconds = self._start.elapsed_time(end) / 1000
        else:
            self.seconds = end - self._start

    def _now(self) -> Any:
        if self.device != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


Step = Callable[[], Any]


def step_of(device: str, changes: dict[str, Any]) -> Step:
    """Return a training step of the profile's SimSiam with `changes`, in bf16 and channels-last, on fixed images."""
    start_as_runner()
    config = load_config(CONFIGS / SIZES[device].profile / "simsiam.py")
    config.optim_wrapper.dtype = "bfloat16"
    model = MODELS.build(config.model | changes).train().to(device, memory_format=torch.channels_last)
    wrapper = build_optim_wrapper(model, config.optim_wrapper)
    views = [images_of(device) for _ in range(model.num_views)]

    def step() -> None:
        if hasattr(model, "start_step"):
            model.start_step()
        model.train_step({"inputs": views}, optim_wrapper=wrapper)

    return step


def supervised_step(device: str) -> Step:
    """Return a step of supervised training of the same backbone in plain PyTorch, in bf16 and channels-last."""
    start_as_runner()
    name = load_config(CONFIGS / SIZES[device].profile / "simsiam.py").model.backbone.name
    model = timm.create_model(name, num_classes=1000).train().to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    images = images_of(device)
    labels = torch.arange(len(images), device=device)

    def step() -> None:
        with torch.autocast(device, AMP):
            loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def start_as_runner() -> None:
    """Do what the Runner does by the configs' settings before it builds a model."""
    torch.manual_seed(0)
    cv2.setNumThreads(0)
    torch.backends.cudnn.benchmark = True


def images_of(device: str) -> Tensor:
    """Return a batch of noise (N, 3, H, W), channels-last."""
    sizes = SIZES[device]
    images = torch.randn(sizes.batch, 3, sizes.pixels, sizes.pixels, device=device)
    return images.to(memory_format=torch.channels_last)


def compare(device: str, ours: Callable[[], Step], reference: Callable[[], Step]) -> tuple[float, str, float | None]:
    """Time steps of `ours` and `reference` in turns, after building and warming up one and then the other.

    Returns the median ratio of their times, the median times in words, and the peak MiB of `ours`.
    """
    used, steps = device_peak(device), [ours()]
    for _ in range(3):
        steps[0]()
    memory = used()
    steps.append(reference())
    for _ in range(3):
        steps[1]()
    ratios, clocks = [], (Clock(device), Clock(device))
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(SIZES[device].repeats):
        for step, clock, times in zip(steps, clocks, seconds, strict=True):
            with clock:
                step()
            times.append(clock.seconds)
        ratios.append(seconds[0][-1] / seconds[1][-1])
    one, other = (1000 * statistics.median(times) for times in seconds)
    return statistics.median(ratios), f"{one:.1f} / {other:.1f} ms", memory


def step_ratio(ours: dict[str, Any], reference: dict[str, Any], device: str) -> Found:
    """Return the step time of `ours` over that of `reference`, both changes of SimSiam."""
    return Found(*compare(device, partial(step_of, device, ours), partial(step_of, device, reference)))


def ssl_view_ratio(device: str) -> Found:
    """Return the time of SimSiam's step per view over that of a supervised step per image."""
    ratio, said, memory = compare(device, partial(step_of, device, SIMSIAM), partial(supervised_step, device))
    return Found(ratio / 2, said, memory)


class EpochSeconds(Hook):
    """The wall-clock seconds of every epoch, to its last step's end on the device."""

    priority = "LOWEST"

    def __init__(self, device: str) -> None:
        self.seconds: list[float] = []
        self._clock = Clock(device)

    @override
    def before_train_epoch(self, runner: Any) -> None:
        self._clock.__enter__()

    @override
    def after_train_epoch(self, runner: Any) -> None:
        self._clock.__exit__()
        self.seconds.append(self._clock.seconds)


def cifar_config(device: str, method: str, root: Path) -> Config:
    """Return the config of CIFAR-10 with device views, batch 512, bf16, channels-last, for the images in `root`."""
    sizes = SIZES[device]
    config = join_data(load_config(CONFIGS / "cifar10" / f"{method}.py"), root)
    config.train_dataloader.batch_size = sizes.cifar_batch
    config.model.backbone.name = sizes.cifar_backbone
    config.optim_wrapper.dtype, config.channels_last = "bfloat16", True
    config.train_cfg.max_epochs, config.custom_hooks = sizes.epochs, []
    config.default_hooks.checkpoint.save_last = False  # saving would count as part of the last epoch
    if device == "cuda" and any(map(shutil.which, ("cc", "gcc", "clang"))):
        config.compile = dict(mode="reduce-overhead")
    use_device_views(config)
    plan_batch(config, 1, 1).apply(config)
    return config


def write_cifar(root: Path, count: int) -> None:
    """Write `count` images of noise in the binary layout of CIFAR-10: the speed does not depend on what they show."""
    folder = root / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    (folder / "batches.meta.txt").write_text("\n".join(f"class{k}" for k in range(10)))
    rng = np.random.default_rng(0)
    for part, rows in enumerate(np.array_split(np.arange(count), 5), 1):
        records = rng.integers(0, 256, (len(rows), 1 + 3 * 32 * 32), dtype=np.uint8)
        records[:, 0] = rows % 10
        (folder / f"data_batch_{part}.bin").write_bytes(records.tobytes())


@cache
def cifar_epochs(device: str, method: str) -> tuple[float, float | None]:
    """Return the median seconds per epoch of our loop, without the first epoch, and the peak MiB."""
    with tempfile.TemporaryDirectory() as folder, silence():
        write_cifar(Path(folder), SIZES[device].cifar_images)
        config = cifar_config(device, method, Path(folder))
        set_run(config, work_dir=Path(folder) / "run", seed=0)
        used = device_peak(device)
        runner = build_runner(config, settings="bench")
        start_device_views(runner)
        times = EpochSeconds(device)
        runner.register_hook(times)
        runner.train()
    return statistics.median(times.seconds[1:]), used()


def cifar_epoch(method: str, device: str) -> Found:
    """Return the seconds per epoch of our loop."""
    seconds, memory = cifar_epochs(device, method)
    return Found(seconds, f"{SIZES[device].cifar_images / seconds:.0f} images/s", memory)


class BareLoop:
    """A bare PyTorch loop over the model, views, optimiser and batch of `cifar_epochs`, on the images in `root`."""

    def __init__(self, device: str, root: Path) -> None:
        self.device = device
        config = cifar_config(device, "simsiam", root)
        data = config.train_dataloader.dataset
        start_as_runner()
        self.model: Any = MODELS.build(config.model).train().to(device, memory_format=torch.channels_last)
        self.model.data_preprocessor.serve(PixelBatches(data.images, data.augmentation))
        if "compile" in config:
            self.model.backbone.compile(**config.compile)
        options = {key: value for key, value in config.optim_wrapper.optimizer.items() if key != "type"}
        self.optimizer = torch.optim.SGD(self.model.parameters(), **options)

    def epoch(self) -> float:
        """Train for an epoch and return its seconds."""
        count, batch = SIZES[self.device].cifar_images, SIZES[self.device].cifar_batch
        with Clock(self.device) as clock:
            order = torch.randperm(count)
            order = order.pin_memory() if self.device == "cuda" else order  # as a loader gives it
            for step in range(count // batch):
                data = {"inputs": order[step * batch :][:batch], "seed": torch.tensor([step])}
                views = self.model.data_preprocessor(data)["inputs"]
                views = [view.contiguous(memory_format=torch.channels_last) for view in views]
                with torch.autocast(self.device, AMP):
                    loss = self.model(views)["loss"]
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
        return clock.seconds


def loop_overhead(device: str) -> Found:
    """Return how much longer an epoch of our loop takes than one of a bare PyTorch loop, in percent."""
    ours, memory = cifar_epochs(device, "simsiam")
    with tempfile.TemporaryDirectory() as folder, silence():
        write_cifar(Path(folder), SIZES[device].cifar_images)
        bare = BareLoop(device, Path(folder))
    reference = statistics.median([bare.epoch() for _ in range(SIZES[device].epochs)][1:])
    return Found(100 * (ours / reference - 1), f"{ours:.2f} / {reference:.2f} s", memory)


def loader_ratio(device: str) -> Found:
    """Return the loader's images per second with views made on the device, over those with views made by itself."""
    start_as_runner()
    sizes = SIZES[device]
    with tempfile.TemporaryDirectory() as folder, silence():
        write_photos(Path(folder) / "train" / "photos", sizes.photos)
        images = dict(name="folder", root=folder, split="train")
        steps = load_config(CONFIGS / "imagenet" / "simsiam.py").train_dataloader.dataset.augmentation
        batches = PixelBatches(images, steps)
        views = DeviceViews(num_views=2).to(device)
        views.serve(batches)
        rates, used = [], device_peak(device)
        for data, finish in ((batches, views), (MultiView(images, steps), partial(on_device, device))):
            loader = loader_of(device, data)
            with Clock(device) as clock:
                for batch in loader:
                    finish(batch)
            rates.append(sizes.visits / clock.seconds)
    said = f"{rates[0]:.0f} / {rates[1]:.0f} images/s, {sizes.workers} processes each"
    return Found(rates[0] / rates[1], said, used())


def loader_of(device: str, data: MultiView) -> DataLoader:
    """Return a loader of `Sizes.visits` visits."""
    sizes = SIZES[device]
    draws = [Draw(k % sizes.photos, mix(k)) for k in range(sizes.visits)]
    batch = min(64, sizes.visits // 2)
    return DataLoader(
        data,
        batch,
        sampler=draws,
        num_workers=sizes.workers,
        collate_fn=collate_visits,
        pin_memory=device == "cuda",
    )


def on_device(device: str, batch: dict[str, Any]) -> Sequence[Tensor]:
    """Return the finished views of a loader on the device."""
    return [view.to(device, non_blocking=True) for view in batch["inputs"]]


_RESNET = "ResNet-50 at 224, bf16, channels-last, batch 128"
_CIFAR = "CIFAR-10: ResNet-18, batch 512, bf16, device views, --compile reduce-overhead, without the kNN monitor"
DEVICE_BENCHMARKS = {
    "gpu_gsg_fresh_step_ratio": DeviceBenchmark(
        f"GSG step, fresh views / SimSiam step ({_RESNET})", 2.05, "lower", partial(step_ratio, FRESH, SIMSIAM)
    ),
    "gpu_gsg_shared_step_ratio": DeviceBenchmark(
        f"GSG step, shared views / SimSiam step ({_RESNET})", 1.05, "lower", partial(step_ratio, SHARED, SIMSIAM)
    ),
    "gpu_byol_selected_step_ratio": DeviceBenchmark(
        f"BYOL+GSG step, chosen views only / four forward passes ({_RESNET})",
        0.70,
        "lower",
        partial(step_ratio, CHOSEN, BYOL),
    ),
    "gpu_ssl_view_ratio": DeviceBenchmark(
        f"SimSiam step per view / supervised step per image ({_RESNET})", 1.15, "lower", ssl_view_ratio
    ),
    "gpu_loop_overhead_percent": DeviceBenchmark(
        f"an epoch of our loop over a bare PyTorch loop's, percent more ({_CIFAR})", 5.0, "lower", loop_overhead
    ),
    "gpu_cifar_epoch_seconds": DeviceBenchmark(
        f"seconds per epoch of 50,000 images, SimSiam ({_CIFAR})", 3.0, "lower", partial(cifar_epoch, "simsiam")
    ),
    "gpu_cifar_gsg_epoch_seconds": DeviceBenchmark(
        f"seconds per epoch of 50,000 images, SimSiam with GSG, fresh views ({_CIFAR})",
        6.0,
        "lower",
        partial(cifar_epoch, "simsiam_gsg"),
    ),
    "gpu_loader_ratio": DeviceBenchmark(
        "the loader's images per second, views on the device / views by the loader (B.1, JPEGs of 500x375)",
        1.5,
        "higher",
        loader_ratio,
    ),
}
