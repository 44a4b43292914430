"""How long a checkpoint's benchmarks will take, from images a second in a short warm-up. This imports torch."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import InstanceData, PixelData

from common.checkpoint import Checkpoint
from common.config import load_config
from common.errors import UserError
from common.features import BATCH, evaluation_transform, forward, pick_devices, pick_workers
from common.images import LabelledImages
from common.mmlab.finetune import fit_to_arch
from common.run import Subject
from common.sources import SOURCES, add_folder, make_data, read_splits
from tools.plan import Benchmark, Survey, Work, config_of

ENOUGH, LONG = 3.0, 30.0  # seconds of measuring, and of a first batch after which there is no need of another


def survey(
    subjects: Sequence[Subject],
    benchmarks: Sequence[Benchmark],
    profile: str,
    data: Path,
    root: Path | None = None,
    processes: int = 1,
) -> Survey:
    """Check every checkpoint, look for the data, and measure the first good checkpoint's speed on each benchmark.

    `root` is the user's folder that the benchmarks are on, if they are; `processes` share the work of a trainer.
    """
    result = Survey({}, {}, {})
    if root is not None:
        add_folder(root, profile)  # this may be another process than that of `benchmarks`
    checkpoint = None
    for subject in subjects:
        try:
            loaded = subject.load()
            checkpoint = checkpoint or loaded
        except UserError as error:
            result.refused[subject.name] = str(error)
    speeds: dict[Any, float] = {}
    if checkpoint is None:
        return result
    for benchmark in benchmarks:
        try:
            work = _work(benchmark, checkpoint, profile, data, speeds)
            result.work[benchmark] = work._replace(per_second=work.per_second * _share(benchmark, processes))
        except _LeftOutError as error:
            result.left_out[benchmark] = str(error)
        except UserError as error:
            print(f"note: {benchmark.task} on {benchmark.dataset}: {error}", flush=True)
    return result


def _share(benchmark: Benchmark, processes: int) -> float:
    """Return how much faster the command is than the warm-up, which forwards on all devices and trains on one."""
    if benchmark.task == "linear":
        return processes / len(pick_devices())
    return processes if benchmark.view is None else 1


class _LeftOutError(UserError):
    """The data are not there, or the network cannot serve the task."""


def _work(benchmark: Benchmark, checkpoint: Checkpoint, profile: str, data: Path, speeds: dict[Any, float]) -> Work:
    """Return the benchmark's work; `speeds` keeps what was measured, by view or data set."""
    if benchmark.view is None:
        return _training(benchmark, checkpoint.arch, profile, data)
    try:
        splits = read_splits(benchmark.dataset, data)
    except UserError as error:
        if (data / SOURCES[benchmark.dataset].folder).exists():
            raise
        raise _LeftOutError(str(error)) from None
    if benchmark.view not in speeds:
        speeds[benchmark.view] = per_second(_forwarded(checkpoint, next(iter(splits.values())), benchmark.view))
    images = sum(len(images.labels) for images in splits.values())
    return Work(images * benchmark.passes, speeds[benchmark.view])


def _forwarded(checkpoint: Checkpoint, images: LabelledImages, view: tuple[int, Any]) -> Iterator[int]:
    """Read and forward images as the evaluations do; yield the number of each batch."""
    networks = [(checkpoint.backbone().to(device), device) for device in pick_devices()]
    size, resize = view
    batches = forward(
        networks,
        images,
        evaluation_transform(size, resize=resize),
        range(len(images.labels)),
        batch_size=BATCH[networks[0][1].type],
        workers=pick_workers(len(images.labels)),
    )
    return (len(rows) for rows in batches)


def _training(benchmark: Benchmark, arch: str, profile: str, data: Path) -> Work:
    """Return the images that finetuning sees, and its speed on noise of their size, without reading any."""
    layout = benchmark.layout
    parts = SOURCES[layout].parts or (layout,)
    downloaded = profile != "demo" and benchmark.dataset == layout
    if downloaded and not all((data / SOURCES[part].folder).exists() for part in parts):
        raise _LeftOutError(f"no {layout} in {data}; {make_data(layout, data)}")
    config: Any = load_config(config_of(benchmark, profile))
    try:
        fit_to_arch(config, arch)
    except UserError as error:
        raise _LeftOutError(str(error)) from None
    images = config.train_cfg.max_iters * config.train_dataloader.batch_size
    return Work(images, per_second(_trained(benchmark.task, config)))


def _trained(task: str, config: Any) -> Iterator[int]:
    """Forward and backward two images of noise at a time, of the middle of the config's scales; yield 2 for each."""
    device = pick_devices()[0]
    scales = config.train_dataloader.get("batch_sampler", {}).get("scales") or _scales(config.train_dataloader.dataset)
    side = min(scales[len(scales) // 2])
    model, noise = _model(task, config, height=side, width=min(side * 4 // 3, max(scales[0])))
    model = model.to(device).train()
    while True:
        data = model.data_preprocessor(noise(), training=True)
        loss, _ = model.parse_losses(model(**data, mode="loss"))
        loss.backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        yield 2


def _scales(dataset: Mapping[str, Any]) -> Sequence[tuple[int, int]]:
    """Return the (longest, shorter) sides to which a data set of detection resizes."""
    one = dataset["datasets"][0] if "datasets" in dataset else dataset
    return next(step.get("scales") or [step["scale"]] for step in one["pipeline"] if "Resize" in step["type"])


def _model(task: str, config: Any, *, height: int, width: int) -> tuple[Any, Any]:
    """Return the network, and the function that makes a batch of two images of noise with something to find."""
    import_module(task).register()
    images = [torch.randint(256, (3, height, width), dtype=torch.uint8) for _ in range(2)]
    about = {"img_shape": (height, width), "ori_shape": (height, width), "scale_factor": (1.0, 1.0)}
    if task == "detection":
        from mmdet.structures import DetDataSample as Sample

        box = torch.tensor([[0.1 * width, 0.1 * height, 0.6 * width, 0.7 * height]])
        truth = {"gt_instances": InstanceData(bboxes=box, labels=torch.tensor([0]))}
    else:
        from mmseg.structures import SegDataSample as Sample

        truth = {"gt_sem_seg": PixelData(data=torch.zeros(1, height, width, dtype=torch.int64))}

    def noise() -> dict[str, Any]:
        samples = [Sample(metainfo=about) for _ in images]
        for sample in samples:
            sample.set_data({key: value.clone() for key, value in truth.items()})
        return {"inputs": list(images), "data_samples": samples}

    with DefaultScope.overwrite_default_scope(config.default_scope):
        return MODELS.build(config.model), noise


def per_second(batches: Iterable[int]) -> float:
    """Return images a second of batches, each the number of its images, for ENOUGH seconds or to their end.

    The first batch warms up, unless it took LONG or there is no other.
    """
    batches = iter(batches)
    started = time.perf_counter()
    done = next(batches)
    seconds = time.perf_counter() - started
    if seconds < LONG:
        started, more = time.perf_counter(), 0
        for count in batches:
            more += count
            if time.perf_counter() - started > ENOUGH:
                break
        if more:
            done, seconds = more, time.perf_counter() - started
    return done / seconds
