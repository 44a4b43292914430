"""A training step in as many parts as memory requires, in any precision; and the loop over iterations."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.device import get_device
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import LOOPS, OPTIM_WRAPPERS
from mmengine.runner import IterBasedTrainLoop
from torch import Tensor, nn
from typing_extensions import override

import common.engine.draws  # noqa: F401  (registers what the loop reads through)
from common.engine.processes import unwrapped


def take_step(runner: Any, index: int, batches: Iterator[Any], shares: Sequence[float]) -> None:
    """Take the optimiser's step `index`, from the next len(shares) batches.

    Their gradients add up, each weighted by its share of the step's images: the gradient of the mean loss. A
    model's `start_step()`, if it has one, is called once before. The hooks see one iteration and the parts' mean
    outputs.
    """
    wrapper, model = runner.optim_wrapper, unwrapped(runner.model)
    outputs: dict[str, Tensor] = {}
    batch = next(batches)
    runner.call_hook("before_train_iter", batch_idx=index, data_batch=batch)
    if hasattr(model, "start_step"):
        model.start_step()
    for part, share in enumerate(shares):
        batch = batch if part == 0 else next(batches)
        wrapper.share, wrapper.last = share, part == len(shares) - 1
        for name, value in runner.model.train_step(batch, optim_wrapper=wrapper).items():
            outputs[name] = outputs.get(name, 0.0) + value.detach() * share
    runner.call_hook("after_train_iter", batch_idx=index, data_batch=batch, outputs=outputs)


@LOOPS.register_module()
class ResumableIterLoop(IterBasedTrainLoop):
    """mmengine's loop over iterations, which resumes exactly where a checkpoint was written.

    An iteration is a step of the optimiser over `accumulate` batches of the loader. The loader's batches come
    from `EndlessBatches`; a visit's random choices follow from the run's seed and the visit's number, so they
    need no state.
    """

    def __init__(self, runner: Any, dataloader: Any, max_iters: int, accumulate: int = 1) -> None:
        super().__init__(
            runner, {**dataloader, "dataset": {"type": "Drawn", "dataset": dataloader["dataset"]}}, max_iters
        )
        self.accumulate = accumulate
        # Its workers' seeds come from its own generator, so that starting it leaves the model's random numbers alone.
        self.dataloader.generator = torch.Generator().manual_seed(runner.seed)

    def run(self) -> nn.Module:
        """Train to the last iteration, from wherever the run stands, and return the model."""
        self.runner.call_hook("before_train")
        self.runner.call_hook("before_train_epoch")
        self.runner.model.train()
        self.dataloader.batch_sampler.skip = self._iter * self.accumulate
        shares = [1 / self.accumulate] * self.accumulate
        if self._iter < self._max_iters:
            batches = iter(self.dataloader)
            while self._iter < self._max_iters:
                take_step(self.runner, self._iter, batches, shares)
                self._iter += 1
        self.runner.call_hook("after_train_epoch")
        self.runner.call_hook("after_train")
        return self.runner.model


@OPTIM_WRAPPERS.register_module()
class StepOptimWrapper(AmpOptimWrapper):
    """mmengine's wrapper for steps that the loop divides into parts, in any precision on any device.

    `dtype`: None (float32), "bfloat16", or "float16", whose gradients are scaled. mmengine's own wrapper refuses to
    run on a CPU. Only float16 reads from the device in a step, to skip the step if a gradient overflowed. The loop
    sets `share` and `last` for each part: its weight in the step's mean loss, and whether the step ends with it.
    """

    share: float = 1.0
    last: bool = True

    def __init__(
        self, optimizer: torch.optim.Optimizer, dtype: str | None = None, clip_grad: dict[str, Any] | None = None
    ) -> None:
        OptimWrapper.__init__(self, optimizer, clip_grad=clip_grad)
        self.cast_dtype = None if dtype is None else getattr(torch, dtype)
        self._scale_update_param = None
        self._device = torch.device(get_device()).type
        self.loss_scaler = torch.amp.GradScaler(self._device, enabled=dtype == "float16")

    @override
    def scale_loss(self, loss: Tensor) -> Tensor:
        return loss * self.share

    @override
    def should_update(self) -> bool:
        return self.last

    @override
    def should_sync(self) -> bool:
        return self.last

    @override
    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        enabled = self.cast_dtype is not None
        with (
            OptimWrapper.optim_context(self, model),
            torch.autocast(self._device, dtype=self.cast_dtype, enabled=enabled),
        ):
            yield
