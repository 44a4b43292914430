"""The training loop: mmengine's epochs, resumable at any step."""

from typing import Any

import torch
from mmengine.registry import LOOPS
from mmengine.runner import EpochBasedTrainLoop


@LOOPS.register_module()
class ResumableEpochLoop(EpochBasedTrainLoop):
    """mmengine's loop over epochs, which goes on within an epoch where a checkpoint was written.

    Nothing of the data's randomness needs saving: a visit's seed follows from the run's seed, the epoch and
    the image. The loader draws its workers' base seed from a generator of its own, so that starting it again
    within an epoch leaves the model's random numbers as they were.
    """

    def __init__(self, runner: Any, dataloader: Any, **kwargs: Any) -> None:
        super().__init__(runner, dataloader, **kwargs)
        self.dataloader.generator = torch.Generator().manual_seed(runner.seed)

    def run_epoch(self) -> None:
        """Run one epoch, or what is left of it."""
        self.runner.call_hook("before_train_epoch")
        self.runner.model.train()
        done = self._iter - self._epoch * len(self.dataloader)
        self.dataloader.sampler.skip = done * self.dataloader.batch_size
        for index, batch in enumerate(self.dataloader, start=done):
            self.run_iter(index, batch)
        self.runner.call_hook("after_train_epoch")
        self._epoch += 1
