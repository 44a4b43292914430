"""The linear classifier on a frozen backbone: model, metric, and the proof that the backbone stays frozen."""

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import HOOKS, METRICS, MODELS, OPTIMIZERS
from mmengine.runner import Runner
from timm.optim import Lars
from torch import Tensor, nn
from typing_extensions import override

from common.backbones import build_backbone, feature_dim
from common.engine.processes import GatheredMetric, unwrapped
from pretrain.methods import OVERLAPPING

OPTIMIZERS.register_module(name="LARS", module=Lars, force=True)


@MODELS.register_module()
class LinearProbe(BaseModel):
    """A linear layer on the pooled features of a backbone that never changes (PROTOCOLS 3.2).

    The backbone stays in eval mode during training, so that its BN statistics are fixed too. The layer starts
    with weights from N(0, 0.01^2) and bias 0.
    """

    def __init__(self, backbone: dict[str, Any], num_classes: int, **kwargs: Any) -> None:
        super().__init__(**{"data_preprocessor": OVERLAPPING, **kwargs})
        self.backbone = build_backbone(**backbone).requires_grad_(False)
        self.fc = nn.Linear(feature_dim(self.backbone), num_classes)
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)

    def init_weights(self) -> None:
        """Keep the weights as they were built; the Runner loads the backbone next."""

    @override
    def train(self, mode: bool = True) -> "LinearProbe":
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, inputs: Tensor, labels: Tensor, mode: str = "loss") -> Any:
        """Return the cross-entropy of images (N, 3, H, W) with labels (N,), or with mode "predict" the top-5 hits."""
        with torch.no_grad():
            features = self.backbone(inputs)
        logits = self.fc(features).float()  # the loss is float32 under mixed precision too
        if mode == "loss":
            return {"loss": F.cross_entropy(logits, labels)}
        top = logits.topk(min(5, logits.shape[1]), dim=1).indices
        return list((top == labels[:, None]).cpu())  # N rows of 5 flags: is the k-th guess right?


@METRICS.register_module()
class TopK(GatheredMetric):
    """Top-1 and top-5 accuracy in percent, over all processes."""

    def process(self, data_batch: Any, data_samples: Sequence[Tensor]) -> None:
        """Collect the hits of a batch, one bool tensor (5,) per image."""
        self.results.extend(data_samples)

    def compute_metrics(self, results: Sequence[Tensor]) -> dict[str, float]:
        """Return the shares of images whose first guess, or one of the first five, is right."""
        hits = torch.stack(list(results)).float()
        return {"top1": 100 * hits[:, 0].mean().item(), "top5": 100 * hits.sum(1).mean().item()}


@HOOKS.register_module()
class KeepFrozen(Hook):
    """Fail the run if one bit of the backbone changes while the classifier trains."""

    @override
    def before_train(self, runner: Runner) -> None:
        self._before = digest(_backbone(runner))

    @override
    def after_train(self, runner: Runner) -> None:
        """Raise RuntimeError if the backbone changed: that is a bug of ours, not a result."""
        if digest(_backbone(runner)) != self._before:
            raise RuntimeError("linear evaluation changed the frozen backbone; its accuracy means nothing")


@HOOKS.register_module()
class AccuracyHistory(Hook):
    """Keep the accuracy of every epoch, in the checkpoints too, for the record's last and best."""

    def __init__(self) -> None:
        self.epochs: list[dict[str, float]] = []

    @override
    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        self.epochs.append(dict(metrics or {}))

    @override
    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        checkpoint["accuracy_history"] = self.epochs

    @override
    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        self.epochs = list(checkpoint.get("accuracy_history", []))


def history(runner: Runner) -> dict[str, float]:
    """Return top1 and top5 of the last epoch, and best_top1 and best_top5 of the epoch with the best top-1.

    The best is chosen on the test set itself, as the authors' script does; the record says which is which.
    """
    epochs = next(hook for hook in runner.hooks if isinstance(hook, AccuracyHistory)).epochs
    last, best = epochs[-1], max(epochs, key=lambda epoch: epoch["top1"])
    return {**last, **{f"best_{name}": value for name, value in best.items()}}


def digest(module: nn.Module) -> str:
    """Return a SHA-256 over every parameter and buffer of the module, bit by bit."""
    state = hashlib.sha256()
    for name, value in module.state_dict().items():
        state.update(name.encode())
        state.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return state.hexdigest()


def _backbone(runner: Runner) -> nn.Module:
    return unwrapped(runner.model).backbone
