"""Mean intersection over union and pixel accuracy by CSAIL's rules, and the IoU of each class."""

from collections.abc import Sequence
from typing import Any

import torch
from mmseg.evaluation import IoUMetric
from mmseg.registry import METRICS

from common.engine.processes import GatheredMetric


@METRICS.register_module()
class ClasswiseIoU(GatheredMetric, IoUMetric):
    """mmseg's IoUMetric, with exact sums, CSAIL's means and each class's value.

    mmseg sums in float32, rounds to two decimals and drops the classes' values.
    """

    def compute_metrics(self, results: Sequence[tuple[torch.Tensor, ...]]) -> dict[str, Any]:
        """Return mIoU and aAcc in percent, and `IoU_per_class` by name, None for a class without a pixel.

        IoU is intersection / union, summed over the images. The mean is over **all** classes: one that neither
        truth nor prediction has counts as 0 (mmseg leaves it out). aAcc is the share of labelled pixels that are right.
        """
        # Each (classes,): the pixels of both truth and prediction, of either, and of the truth.
        common, union, _, truth = (torch.stack(part).double().sum(0) for part in zip(*results, strict=True))
        each = (100 * common / union).tolist()  # 0 / 0 is NaN
        per_class = {
            name: round(value, 4) if size else None
            for name, value, size in zip(self.dataset_meta["classes"], each, union.tolist(), strict=True)
        }
        return {
            "mIoU": sum(value for value, size in zip(each, union.tolist(), strict=True) if size) / len(each),
            "aAcc": float(100 * common.sum() / truth.sum().clamp(min=1)),
            "IoU_per_class": per_class,
        }
