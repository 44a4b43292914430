"""What a pretraining run does besides its steps: the kNN monitor and the check on collapse."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from common.data import Transformed
from common.features import Features
from pretrain.data import open_images
from pretrain.knn import evaluation_view, knn_accuracy


@HOOKS.register_module()
class KnnMonitor(Hook):
    """After each `interval` epochs, log the kNN accuracy of the online backbone as `val/knn`, in percent.

    `evaluation`: the settings of `make knn` (a config's `evaluation`).
    """

    def __init__(self, evaluation: dict[str, Any], interval: int = 1) -> None:
        self.evaluation, self.interval = evaluation, interval
        self._sets: Sequence[Any] | None = None

    def after_train_epoch(self, runner: Runner) -> None:
        """Extract both sets' features with the backbone as it is now, and vote."""
        if not self.every_n_epochs(runner, self.interval) or runner.rank != 0:
            return
        settings = self.evaluation
        if self._sets is None:
            self._sets = [open_images(split=split, **settings["images"]) for split in ("train", "test")]
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        bank, queries = (self._features(model.backbone, images) for images in self._sets)
        accuracy = knn_accuracy(bank, queries, k=settings["k"], temperature=settings["temperature"])
        runner.message_hub.update_scalar("val/knn", accuracy)

    @torch.inference_mode()
    def _features(self, backbone: torch.nn.Module, images: Any) -> Features:
        loader = DataLoader(
            Transformed(images, evaluation_view(self.evaluation)), 256, num_workers=self.evaluation["workers"]
        )
        device = next(backbone.parameters()).device
        training = backbone.training
        backbone.eval()
        x = np.concatenate([backbone(batch.to(device)).float().cpu().numpy() for batch, _ in loader])
        backbone.train(training)
        return Features(x, images.labels, images.fingerprint)
