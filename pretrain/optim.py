"""The predictor's constant learning rate."""

from typing import Any

from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from mmengine.optim.scheduler import CosineAnnealingLR
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS, OPTIMIZERS, PARAM_SCHEDULERS
from torch import nn

import common.engine.steps  # noqa: F401  (registers the wrapper)
from common.engine.processes import unwrapped


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
    """Cosine annealing of every group that is not marked `fix_lr`, one step at the start of each epoch."""

    def _get_value(self) -> list[float]:
        groups = self.optimizer.param_groups
        decayed = super()._get_value()
        return [g["lr"] if g.get("fix_lr") else value for g, value in zip(groups, decayed, strict=True)]
