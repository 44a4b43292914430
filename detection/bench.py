"""How long the detector waits for its data, and what serving mmcv's operators from torchvision costs.

`make bench` measures all; `python -m detection.bench --only detection_data_wait_percent` measures one.
"""

import importlib.util
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.hooks import Hook
from typing_extensions import override

from common import cli
from common.bench import Benchmark, DeviceBenchmark, Found, Skipped, device_peak, run_room, write_photos
from common.config import join_data, load_config
from common.embedded import ensure_embedded
from common.engine.batch import plan_batch
from common.engine.runner import build_runner, set_run
from common.mmlab import ops
from common.mmlab.finetune import fit_to_arch
from detection import register

CONFIGS = Path(__file__).parent / "configs"
WARM_UP, STEPS = {"cpu": 2, "cuda": 20}, {"cpu": 16, "cuda": 120}  # numbers of steps
IMAGES = 100  # JPEGs per year of VOC, on "cuda"
REPEATS = 15


def data_wait(device: str = "cpu") -> Found:
    """Return the share of a training step's time, in percent, that Faster R-CNN waits for its batch.

    On "cuda" it trains by the paper's VOC settings with a newly initialised ResNet-50, on JPEGs of VOC's size; on "cpu"
    it is the demo, with ResNet-18 on small scenes. A wait begins when the device has finished the previous step. The
    share is taken of the sums over all steps after the warm-up. Also returns the median time per step, in words, and
    the peak MiB on the device.
    """
    register()
    on_gpu = device == "cuda"
    warm_up, steps = WARM_UP[device], STEPS[device]

    class Times(Hook):
        """Note when each batch came and when each step was done."""

        priority = "LOWEST"  # after all other hooks

        def __init__(self) -> None:
            self.came: list[float] = []
            self.done: list[float] = []

        @override
        def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
            self.came.append(time.perf_counter())

        @override
        def after_train_iter(
            self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
        ) -> None:
            if on_gpu:
                torch.cuda.synchronize()
            self.done.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        if on_gpu:
            write_voc(data / "VOCdevkit")
        else:
            ensure_embedded(data)
        used = device_peak("cuda" if on_gpu else "cpu")
        # Saving would count as part of the last step.
        options = {"train_cfg.max_iters": warm_up + steps, "default_hooks.checkpoint.save_last": False}
        config = load_config(CONFIGS / ("imagenet" if on_gpu else "demo") / "voc.py", options=options)
        config = join_data(config, data)
        fit_to_arch(config, "resnet50" if on_gpu else "resnet18")
        plan_batch(config, 1, 1).apply(config)
        set_run(config, work_dir=data / "run", seed=0)
        runner = build_runner(config, settings="bench")
        times = Times()
        runner.register_hook(times)
        runner.train()
    begun, done, came = times.done[warm_up - 1 : -1], times.done[warm_up:], times.came[warm_up:]
    seconds = [after - before for before, after in zip(begun, done, strict=True)]
    waits = [after - before for before, after in zip(begun, came, strict=True)]
    count = config.train_dataloader.num_workers
    said = f"{statistics.median(seconds):.3f} seconds per iteration, "
    said += f"{count} loading processes" if on_gpu else f"{torch.get_num_threads()} threads"
    return Found(100 * sum(waits) / sum(seconds), said, used())


def write_voc(root: Path) -> None:
    """Write VOC2007 and VOC2012 under `root` in the official layout: IMAGES photographs each, three objects in each."""
    from mmdet.datasets import VOCDataset

    rng = np.random.default_rng(0)
    for year in ("VOC2007", "VOC2012"):
        write_photos(root / year / "JPEGImages", IMAGES)
        names = sorted(path.stem for path in (root / year / "JPEGImages").iterdir())
        for part in ("Annotations", "ImageSets/Main"):
            (root / year / part).mkdir(parents=True)
        for name in names:
            objects = ""
            for label in rng.choice(VOCDataset.METAINFO["classes"], 3):
                (x0, x1), (y0, y1) = (sorted(rng.choice(side, 2, replace=False) + 1) for side in (500, 375))
                box = f"<xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax>"
                objects += f"<object><name>{label}</name><bndbox>{box}</bndbox></object>"
            size = "<size><width>500</width><height>375</height><depth>3</depth></size>"
            xml = f"<annotation><filename>{name}.jpg</filename>{size}{objects}</annotation>"
            (root / year / "Annotations" / f"{name}.xml").write_text(xml)
        (root / year / "ImageSets" / "Main" / "trainval.txt").write_text("".join(f"{name}\n" for name in names))


def compiled_ops() -> Any:
    """Return mmcv's compiled extension, or None where it is not built."""
    ops.prepare()
    spec = importlib.util.find_spec("mmcv._ext")
    if spec is None or isinstance(spec.loader, ops.TorchvisionOps):
        return None
    return importlib.import_module("mmcv._ext")


def op_ratio(name: str, repeats: int = REPEATS, size: int = 1000) -> tuple[float, str]:
    """Time torchvision's operator and mmcv's compiled one in turns; return the ratio of the medians, and both in words.

    `nms`: 4 * size boxes at IoU 0.7; `roi_align`: size RoIs of 7 x 7 from a map of 200 x 304 with 64 channels,
    forward and backward. Raises Skipped where mmcv's are not built.
    """
    if compiled_ops() is None:
        raise Skipped("mmcv's compiled operators are not installed; torchvision serves them")
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(4 * size, 2, generator=generator) * 600
    boxes = torch.cat([corners, corners + 8 + torch.rand(4 * size, 2, generator=generator) * 200], 1)
    if name == "nms":
        scores = torch.rand(len(boxes), generator=generator)
        run = {key: partial(nms, boxes, scores, 0.7, 0) for key, nms in _both("nms", ops)}
    else:
        image = torch.rand(1, 64, 200, 304, generator=generator)
        rois = torch.cat([torch.zeros(size, 1), boxes[:size]], 1)
        forward, backward = dict(_both("roi_align_forward", ops)), dict(_both("roi_align_backward", ops))
        run = {key: partial(_roi_align, forward[key], backward[key], image, rois) for key in forward}
    seconds: dict[str, list[float]] = {key: [] for key in run}
    for repeat in range(repeats + 1):
        for key, call in run.items():
            start = time.perf_counter()
            call()
            if repeat:  # the first warms up
                seconds[key].append(time.perf_counter() - start)
    ours, theirs = (statistics.median(seconds[key]) for key in ("torchvision", "mmcv"))
    return ours / theirs, f"{1000 * ours:.1f} / {1000 * theirs:.1f} ms"


def _both(name: str, ours: Any) -> list[tuple[str, Callable[..., Any]]]:
    return [("torchvision", getattr(ours, name)), ("mmcv", getattr(compiled_ops(), name))]


def _roi_align(forward: Callable[..., Any], backward: Callable[..., Any], image: Any, rois: Any) -> None:
    output, argmax = torch.zeros(len(rois), image.shape[1], 7, 7), torch.zeros(0)
    options = dict(aligned_height=7, aligned_width=7, spatial_scale=0.25, sampling_ratio=0, pool_mode=1, aligned=True)
    forward(image, rois, output, argmax, argmax, **options)
    backward(output, rois, argmax, argmax, torch.zeros_like(image), **options)


BENCHMARKS = {
    "detection_data_wait_percent": Benchmark(
        "a step's time spent waiting for data, percent (demo: Faster R-CNN, ResNet-18, 4 scenes of 96 pixels)",
        5.0,
        "lower",
        data_wait,
    ),
    "detection_nms_ratio": Benchmark(
        "NMS of 4000 boxes, torchvision's / mmcv's compiled", 1.1, "lower", partial(op_ratio, "nms")
    ),
    "detection_roi_align_ratio": Benchmark(
        "RoIAlign of 1000 RoIs, forward and backward, torchvision's / mmcv's compiled",
        1.1,
        "lower",
        partial(op_ratio, "roi_align"),
    ),
}
DEVICE_BENCHMARKS = {
    "gpu_detection_wait_percent": DeviceBenchmark(
        "a step's time spent waiting for data, percent (Faster R-CNN, ResNet-50, the paper's VOC settings)",
        5.0,
        "lower",
        data_wait,
    ),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the rows that `argv` names and print their table."""
    run_room("detection.bench", __doc__ or "", BENCHMARKS, argv, DEVICE_BENCHMARKS)


if __name__ == "__main__":
    cli.run(main)
