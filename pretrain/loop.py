"""The training loop: mmengine's epochs, resumable at any step, each step in as many parts as memory requires."""

from collections.abc import Iterator
from typing import Any

import torch
from mmengine.dist import all_reduce
from mmengine.registry import LOOPS
from mmengine.runner import EpochBasedTrainLoop

from common.engine.steps import take_step


@LOOPS.register_module()
class ResumableEpochLoop(EpochBasedTrainLoop):
    """mmengine's loop over epochs, which can resume within an epoch.

    An iteration is a step of the optimiser. With `accumulate` > 1 it takes that many batches of the loader
    and adds up their gradients, each weighted by its share of the images: the gradient of the mean loss, with
    BN statistics and GSG's references taken within each part. A model's `start_step()`, if it has one, is
    called once before each step.

    The data's randomness needs no state: a visit's seed follows from the run's seed, the epoch and the image. The
    loader draws its workers' base seed from its own generator, so that starting it again within an epoch leaves
    the model's random numbers as they were.
    """

    def __init__(self, runner: Any, dataloader: Any, accumulate: int = 1, **kwargs: Any) -> None:
        super().__init__(runner, dataloader, **kwargs)
        self.accumulate = accumulate
        self._images = len(self.dataloader.sampler)
        self._batch = self.dataloader.batch_size * accumulate  # images per step on this process
        self.steps = self._images // self._batch if self.dataloader.drop_last else -(-self._images // self._batch)
        self._max_iters = self._max_epochs * self.steps
        self.dataloader.generator = torch.Generator().manual_seed(runner.seed)
        self._skipped = 0

    def run_epoch(self) -> None:
        """Run one epoch, or what is left of it."""
        self.runner.call_hook("before_train_epoch")
        self.runner.model.train()
        done = self._iter - self._epoch * self.steps
        self.dataloader.sampler.skip, self.dataloader.sampler.stop = done * self._batch, self.steps * self._batch
        batches = iter(self.dataloader)
        for index in range(done, self.steps):
            self.run_step(index, batches)
        self._report_skipped()
        self.runner.call_hook("after_train_epoch")
        self._epoch += 1

    def run_step(self, index: int, batches: Iterator[Any]) -> None:
        """Take step `index` of the epoch from the next `accumulate` batches."""
        images = min(self._batch, self._images - index * self._batch)
        starts = range(0, images, self.dataloader.batch_size)
        shares = [min(self.dataloader.batch_size, images - start) / images for start in starts]
        take_step(self.runner, index, map(self._count_skipped, batches), shares)
        self._iter += 1

    def _count_skipped(self, batch: dict[str, Any]) -> dict[str, Any]:
        if "skipped" in batch:
            self._skipped += int(batch.pop("skipped").sum())
        return batch

    def _report_skipped(self) -> None:
        """Log how many corrupt images all processes skipped since the epoch began or was resumed."""
        count = torch.tensor(self._skipped)
        all_reduce(count)
        if count:
            self.runner.message_hub.update_scalar("val/skipped", int(count))
            if self.runner.rank == 0:
                print(f"epoch {self._epoch + 1}: {int(count)} corrupt images skipped", flush=True)
        self._skipped = 0
