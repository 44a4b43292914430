"""Mean intersection over union and pixel accuracy as CSAIL counts them, and the IoU of each class."""

from collections.abc import Sequence
from typing import Any

import torch
from mmseg.evaluation import IoUMetric
from mmseg.registry import METRICS


@METRICS.register_module()
class ClasswiseIoU(IoUMetric):
    """mmseg's IoUMetric, which counts the labelled pixels of each image; the sums are exact, the rule is CSAIL's.

    mmseg sums in float32, rounds to two decimals and keeps no class's value.
    """

    def __init__(self, collect_device: str = "gpu", **kwargs: Any) -> None:
        # mmengine's name for the process group, on CPUs, too; "cpu" is a folder, which the nodes would have to share
        super().__init__(collect_device=collect_device, **kwargs)

    def compute_metrics(self, results: Sequence[tuple[torch.Tensor, ...]]) -> dict[str, Any]:
        """Return mIoU and aAcc in percent, and `IoU_per_class`, that of each class by name, None where it has no pixel.

        IoU is intersection / union, summed over the images. The mean is over **all** classes: one that neither
        truth nor prediction has counts as 0 (mmseg leaves it out). aAcc is the share of labelled pixels that are right.
        """
        # Each (classes,): pixels that truth and prediction have in common, either's, and the truth's.
        common, union, _, truth = (torch.stack(part).double().sum(0) for part in zip(*results, strict=True))
        each = (100 * common / union).tolist()  # 0 / 0 is NaN
        found = {
            name: round(value, 4) if size else None
            for name, value, size in zip(self.dataset_meta["classes"], each, union.tolist(), strict=True)
        }
        return {
            "mIoU": sum(value for value, size in zip(each, union.tolist(), strict=True) if size) / len(each),
            "aAcc": float(100 * common.sum() / truth.sum().clamp(min=1)),
            "IoU_per_class": found,
        }
