"""What a pretraining run does besides its steps: the kNN monitor and the check on collapse."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_gather_object, broadcast
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from typing_extensions import override

from common.backbones import feature_dim
from common.engine.batch import processes
from common.engine.processes import unwrapped
from common.engine.stopping import start_worker
from common.errors import UserError
from common.features import Features, forward
from pretrain.data import open_images
from pretrain.neighbours import evaluation_view, knn_accuracy


@HOOKS.register_module()
class KnnMonitor(Hook):
    """After each `interval` epochs, log the kNN accuracy of the online backbone as `val/knn`, in percent.

    The settings are those of `make knn`, the config's `evaluation`. Several processes share the images.
    """

    def __init__(self, interval: int = 1) -> None:
        self.interval = interval
        self._sets: Sequence[Any] = ()

    @override
    def before_train(self, runner: Runner) -> None:
        # Opened now, so that a fault in them ends the run before its first step.
        self.evaluation = runner.cfg.evaluation
        self._sets = [open_images(split=split, **self.evaluation["images"]) for split in ("train", "test")]

    @override
    def after_train_epoch(self, runner: Runner) -> None:
        if not self.every_n_epochs(runner, self.interval):
            return
        settings = self.evaluation
        backbone = unwrapped(runner.model).backbone
        with first_buffers(backbone):
            bank, mine = (self._features(backbone, images, runner) for images in self._sets)
        parts = all_gather_object(mine)
        queries = Features(np.concatenate([p.x for p in parts]), np.concatenate([p.y for p in parts]), mine.fingerprint)
        k = min(settings["k"], len(self._sets[0].labels))
        accuracy = knn_accuracy(bank, queries, k=k, temperature=settings["temperature"])
        runner.message_hub.update_scalar("val/knn", accuracy)

    def _features(self, backbone: torch.nn.Module, images: Any, runner: Runner) -> Features:
        """Return the features of this process's share of the images."""
        share = range(runner.rank, len(images.labels), runner.world_size)
        training, device = backbone.training, next(backbone.parameters()).device
        backbone.eval()
        batches = forward(
            [(backbone, device)],
            images,
            evaluation_view(self.evaluation),
            share,
            batch_size=self.evaluation["batch_size"],
            workers=-(-self.evaluation["workers"] // processes(runner.launcher)[1]),  # the setting is per node
            start_worker=partial(start_worker, None),
        )
        x = np.empty((len(share), feature_dim(backbone)), np.float32)
        done = 0
        for rows in batches:
            x[done : done + len(rows)] = rows
            done += len(rows)
        backbone.train(training)
        return Features(x, images.labels[list(share)], images.fingerprint)


@contextmanager
def first_buffers(backbone: torch.nn.Module) -> Iterator[None]:
    """Give every process the first one's buffers inside: each has its own BN statistics, and the export has those."""
    own = [buffer.clone() for buffer in backbone.buffers()]
    for buffer in backbone.buffers():
        broadcast(buffer)
    try:
        yield
    finally:
        for buffer, kept in zip(backbone.buffers(), own, strict=True):
            buffer.copy_(kept)


@HOOKS.register_module()
class CollapseMonitor(Hook):
    """Report an epoch in which the representations collapsed; with `stop`, end the run there.

    In a collapsed epoch, the standard deviation of the L2-normalised projections (`std`) stays below `threshold`
    times 1/sqrt(d), its value for evenly spread directions (Chen and He, section 4.1).
    """

    priority = "BELOW_NORMAL"

    def __init__(self, threshold: float = 0.1, stop: bool = False) -> None:
        self.threshold, self.stop = threshold, stop
        self._largest: torch.Tensor | float = 0.0  # a tensor stays on the device until the epoch ends

    @override
    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        std, largest = (outputs or {})["std"], self._largest
        self._largest = torch.maximum(std, largest) if isinstance(largest, torch.Tensor) else std.clamp(min=largest)

    @override
    def after_train_epoch(self, runner: Runner) -> None:
        """Report a collapse. With `stop`, raises UserError."""
        even = unwrapped(runner.model).projection_dim ** -0.5
        largest, self._largest = float(self._largest), 0.0
        if largest >= self.threshold * even:
            return
        said = (
            f"collapse: in epoch {runner.epoch + 1} the std of normalised projections never passed {largest:.2g} "
            f"(threshold {self.threshold * even:.2g}, spread evenly {even:.2g})"
        )
        if self.stop:
            raise UserError(f"{said}; stopped as --stop-on-collapse asks; lower the learning rate or change the method")
        if runner.rank == 0:
            print(said, flush=True)

    @override
    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        checkpoint["largest_std"] = float(self._largest)

    @override
    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        self._largest = checkpoint.get("largest_std", 0.0)
