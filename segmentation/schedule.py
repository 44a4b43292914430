"""The learning rate of the paper's segmentation: polynomial decay, in steps."""

from typing import Any, Literal

from mmengine.optim import _ParamScheduler
from mmengine.registry import PARAM_SCHEDULERS

from common.errors import UserError


@PARAM_SCHEDULERS.register_module()
class StaircasePolyLR(_ParamScheduler):
    """lr(t) = lr(0) * (1 - every * floor(t / every) / total) ** power, with t in iterations.

    A config must give `by_epoch=False`: without it mmengine's Runner takes the scheduler to count epochs, and ends it
    after the first.

    The paper (D.3) decays the rate every 500 of 150,000 iterations; CSAIL's code decays it at every one (`every=1`).
    Raises UserError for a training longer than `total`, after which the formula has no value; the Runner passes the
    training's length as `end`.
    """

    def __init__(
        self, optimizer: Any, *, power: float, every: int, total: int, by_epoch: Literal[False], **kwargs: Any
    ) -> None:
        if (length := kwargs.get("end", 0)) > total:
            raise UserError(
                f"config: {length} iterations, but the learning rate ends at param_scheduler.0.total={total}"
            )
        self.power, self.every, self.total = power, every, total
        super().__init__(optimizer, "lr", by_epoch=by_epoch, **kwargs)

    def _get_value(self) -> list[float]:
        step = self.last_step - self.last_step % self.every
        factor = (1 - step / self.total) ** self.power
        return [value * factor for value in self.base_values]
