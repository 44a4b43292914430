"""How long the demo's detector waits for its data, and what serving mmcv's operators from torchvision costs.

make bench, or one of them: python -m detection.bench --only detection_data_wait_percent
"""

import importlib.util
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from common import cli
from common.bench import Benchmark, Skipped, run_room
from common.config import load_config, share_batch
from detection.train import register

CONFIG = Path(__file__).parent / "configs" / "demo" / "voc.py"
STEPS = 16  # measured, after two that warm up
REPEATS = 15


def data_wait() -> tuple[float, str]:
    """Return which share of a training step's time, in percent, the demo's Faster R-CNN waits for its batch.

    ResNet-18 as initialised, the demo's scenes, loader and hooks; sums over the steps after the second. And the
    median time of a step, in words.
    """
    import torch
    from mmengine.hooks import Hook

    register()
    import common.steps  # noqa: F401  (registers the loop)
    from common.dense import fit_to_arch
    from common.embedded import ensure_embedded
    from common.engine import build_runner, set_run

    class Times(Hook):
        """Note when each batch had come and when each step was done, after all other hooks."""

        priority = "LOWEST"

        def __init__(self) -> None:
            self.came: list[float] = []
            self.done: list[float] = []

        def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
            self.came.append(time.perf_counter())

        def after_train_iter(
            self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
        ) -> None:
            self.done.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        ensure_embedded(Path(folder))
        config = load_config(CONFIG, data=Path(folder), options={"train_cfg.max_iters": STEPS + 2})
        fit_to_arch(config, "resnet18")
        share_batch(config, "none")
        set_run(config, work_dir=Path(folder) / "run", seed=0)
        runner = build_runner(config, settings="bench")
        times = Times()
        runner.register_hook(times)
        runner.train()
    steps = [after - before for before, after in zip(times.done[1:], times.done[2:], strict=False)]
    waits = [came - before for before, came in zip(times.done[1:], times.came[2:], strict=False)]
    said = f"{statistics.median(steps):.2f} seconds an iteration, {torch.get_num_threads()} threads"
    return 100 * sum(waits) / sum(steps), said


def compiled_ops() -> Any:
    """Return mmcv's compiled extension, or None where it is not built."""
    from common import openmmlab

    openmmlab.prepare()
    spec = importlib.util.find_spec("mmcv._ext")
    if spec is None or isinstance(spec.loader, openmmlab.TorchvisionOps):
        return None
    return importlib.import_module("mmcv._ext")


def op_ratio(name: str, repeats: int = REPEATS, size: int = 1000) -> tuple[float, str]:
    """Return the median time of torchvision's operator over that of mmcv's compiled one, taken in turn; and both.

    `nms`: 4 * size boxes at IoU 0.7; `roi_align`: size RoIs of 7 x 7 from a map of 200 x 304 with 64 channels,
    forward and backward. Raises Skipped where mmcv's are not built.
    """
    import torch

    from common import openmmlab

    if compiled_ops() is None:
        raise Skipped("mmcv's compiled operators are not installed; torchvision serves them")
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(4 * size, 2, generator=generator) * 600
    boxes = torch.cat([corners, corners + 8 + torch.rand(4 * size, 2, generator=generator) * 200], 1)
    if name == "nms":
        scores = torch.rand(len(boxes), generator=generator)
        run = {key: partial(nms, boxes, scores, 0.7, 0) for key, nms in _both("nms", openmmlab)}
    else:
        image = torch.rand(1, 64, 200, 304, generator=generator)
        rois = torch.cat([torch.zeros(size, 1), boxes[:size]], 1)
        forward, backward = dict(_both("roi_align_forward", openmmlab)), dict(_both("roi_align_backward", openmmlab))
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
    import torch

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


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print the table, and write it where asked."""
    run_room("detection.bench", __doc__ or "", BENCHMARKS, argv)


if __name__ == "__main__":
    cli.run(main)
