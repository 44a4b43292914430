"""The parts of mmdet's Faster R-CNN that differ here: coordinates in float32, anchors in padding, copies to a GPU."""

from collections.abc import Sequence
from typing import Any

import torch
from mmdet.models import DetDataPreprocessor, RPNHead, SingleRoIExtractor
from mmdet.registry import MODELS
from torch import Tensor

from common.mmlab.pipeline import Unblocking


@MODELS.register_module()
class DetPreprocessor(Unblocking, DetDataPreprocessor):
    """mmdet's DetDataPreprocessor, which does not wait for its copies to the GPU."""


@MODELS.register_module()
class Float32RPNHead(RPNHead):
    """mmdet's RPNHead with float32 proposals, whatever the network's precision, and anchors in the padding.

    mmdet gives the anchors the type of the scores: in bfloat16 a corner at 1,333 pixels moves by up to 4.

    Anchors in an image's padding, up to the size of the batch, are negatives, as in detectron2; mmdet leaves out
    those beyond the image's own multiple of 32.
    """

    def get_anchors(self, *args: Any, **kwargs: Any) -> tuple[list[list[Tensor]], list[list[Tensor]]]:
        """Return the anchors (A, 4) of every image and level, and flags (A,) that all of them are valid."""
        anchors, valid = super().get_anchors(*args, **kwargs)
        return anchors, [[torch.ones_like(level) for level in image] for image in valid]

    def forward_single(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the scores (N, A, H, W) and box deltas (N, 4 A, H, W) of a level in float32."""
        return tuple(output.float() for output in super().forward_single(x))


@MODELS.register_module()
class Float32RoIExtractor(SingleRoIExtractor):
    """mmdet's SingleRoIExtractor, pooling in float32 whatever the network's precision.

    mmdet casts the RoIs to the type of the features, which moves them as it does the anchors above; and the gradients
    of hundreds of RoIs would be summed in half precision.
    """

    def forward(self, feats: Sequence[Tensor], rois: Tensor, roi_scale_factor: float | None = None) -> Tensor:
        """Return the pooled features (K, C, h, w) float32 of the RoIs (K, 5: image, x1, y1, x2, y2)."""
        return super().forward(tuple(level.float() for level in feats), rois.float(), roi_scale_factor)
