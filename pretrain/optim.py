"""The optimiser's side of a step: parts and precision; and the predictor's constant learning rate."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.device import get_device
from mmengine.optim import AmpOptimWrapper, DefaultOptimWrapperConstructor, OptimWrapper
from mmengine.optim.scheduler import CosineAnnealingLR
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS, OPTIMIZERS, PARAM_SCHEDULERS
from torch import Tensor, nn

from common.engine import unwrapped


@OPTIM_WRAPPERS.register_module()
class StepOptimWrapper(AmpOptimWrapper):
    """mmengine's wrapper for steps that the loop divides into parts, in any precision on any device.

    `dtype`: None (float32), "bfloat16", or "float16", whose gradients are scaled. mmengine's own refuses to
    run on a CPU. `share` and `last` are set by the loop for each part: its weight in the step's mean loss,
    and whether the step ends with it.
    """

    share: float = 1.0
    last: bool = True

    def __init__(self, dtype: str | None = None, **kwargs: Any) -> None:
        OptimWrapper.__init__(self, **kwargs)
        self.cast_dtype = None if dtype is None else getattr(torch, dtype)
        self._scale_update_param = None
        self._device = torch.device(get_device()).type
        self.loss_scaler = torch.amp.GradScaler(self._device, enabled=dtype == "float16")

    def scale_loss(self, loss: Tensor) -> Tensor:
        """Return the part's loss weighted by its share of the step's images."""
        return loss * self.share

    def should_update(self) -> bool:
        """Tell whether the optimiser steps after this part."""
        return self.last

    def should_sync(self) -> bool:
        """Tell whether the processes' gradients are averaged in this part's backward pass."""
        return self.last

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Forward in the wrapper's precision, and average gradients only where the step ends."""
        enabled = self.cast_dtype is not None
        with (
            OptimWrapper.optim_context(self, model),
            torch.autocast(self._device, dtype=self.cast_dtype, enabled=enabled),
        ):
            yield


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class FixedPredictorLR(DefaultOptimWrapperConstructor):
    """Two parameter groups: encoder, and predictor marked `fix_lr` (SimSiam's `--fix-pred-lr`, PROTOCOLS 1.2)."""

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """Return the optimiser over all of the model's parameters; all of them decay."""
        model = unwrapped(model)
        predictor = list(model.get_submodule("predictor").parameters())
        inside = {id(parameter) for parameter in predictor}
        groups: list[dict[str, Any]] = [{"params": [p for p in model.parameters() if id(p) not in inside]}]
        if predictor:
            groups.append({"params": predictor, "fix_lr": True})
        optimizer = OPTIMIZERS.build({**self.optimizer_cfg, "params": groups})
        options = {"type": "StepOptimWrapper", **self.optim_wrapper_cfg}
        return OPTIM_WRAPPERS.build(options, default_args={"optimizer": optimizer})


@PARAM_SCHEDULERS.register_module()
class CosineButFixed(CosineAnnealingLR):
    """Cosine annealing, stepped once an epoch at its start, of every group that is not marked `fix_lr`."""

    def _get_value(self) -> list[float]:
        groups = self.optimizer.param_groups
        decayed = super()._get_value()
        return [g["lr"] if g.get("fix_lr") else value for g, value in zip(groups, decayed, strict=True)]
