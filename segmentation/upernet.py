"""UPerNet with CSAIL's pyramid, loss, initial values and test, which differ in mmseg.

Built on mmseg's EncoderDecoder and UPerHead, whose lateral, top-down and fusion layers are the same.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.structures import PixelData
from mmseg.models import EncoderDecoder, SegDataPreProcessor
from mmseg.models.decode_heads import UPerHead
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from common.mmlab.pipeline import Unblocking

STRIDE = 4  # image pixels per pixel of the head's output
STRIP = 64  # rows that the test scores at a time


@MODELS.register_module()
class UPerNetHead(UPerHead):
    """mmseg's UPerHead with CSAIL's order in the pyramid, initial values, and loss at a quarter of the size."""

    def init_weights(self) -> None:
        """Draw convolutions' weights by Kaiming's normal rule; BN weights are 1, BN biases 1e-4."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
            elif isinstance(module, _BatchNorm):
                nn.init.ones_(module.weight)
                nn.init.constant_(module.bias, 1e-4)

    def psp_forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Return the pyramid's output (N, channels, h, w): pool, **enlarge**, then 1x1 convolution, BN, ReLU.

        mmseg enlarges last, which does not change the convolution, but does change BN's statistics and the ReLU.
        """
        top = inputs[-1]
        levels = [conv(_enlarge(pool(top), top.shape[2:])) for pool, conv in self.psp_modules]
        return self.bottleneck(torch.cat([top, *levels], dim=1))

    def _stack_batch_gt(self, batch_data_samples: Sequence[SegDataSample]) -> Tensor:
        """Return the labels (N, 1, H/4, W/4) that the logits are compared with; mmseg enlarges the logits instead."""
        return torch.stack(
            [quarter(sample.gt_sem_seg.data, sample.img_shape, self.ignore_index) for sample in batch_data_samples]
        )

    def loss_by_feat(self, seg_logits: Tensor, batch_data_samples: Sequence[SegDataSample]) -> dict[str, Tensor]:
        """Return the loss, and `acc_seg`, the percentage of labelled pixels that are right.

        mmseg counts the labelled pixels on the CPU, so every step would wait for the GPU.
        """
        labels = self._stack_batch_gt(batch_data_samples).squeeze(1)
        right = (seg_logits.argmax(1) == labels).sum()  # unlabelled pixels match no class
        return {
            "loss_ce": self.loss_decode(seg_logits, labels, self.ignore_index),
            "acc_seg": 100 * right / (labels != self.ignore_index).sum().clamp(min=1),
        }


@MODELS.register_module()
class LabelledCrossEntropy(nn.Module):
    """Mean cross-entropy over labelled pixels, weighted by the `class_weight` of their classes if that is given.

    It is 0 for a batch without a labelled pixel.
    """

    class_weight: Tensor | None

    def __init__(self, class_weight: Sequence[float] | None = None) -> None:
        super().__init__()
        weight = None if class_weight is None else torch.tensor(class_weight)
        self.register_buffer("class_weight", weight, persistent=False)

    def forward(self, logits: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
        """Return the loss () of logits (N, C, H, W) and labels (N, H, W) int64."""
        losses = F.cross_entropy(logits, labels, self.class_weight, ignore_index=ignore_index, reduction="none")
        labelled = labels != ignore_index
        weights = labelled.to(losses.dtype)
        if self.class_weight is not None:
            weights = weights * self.class_weight[labels * labelled]
        return losses.sum() / weights.sum().clamp(min=torch.finfo(losses.dtype).tiny)


@MODELS.register_module()
class SegPreprocessor(Unblocking, SegDataPreProcessor):
    """mmseg's SegDataPreProcessor, which does not wait for its copies to the GPU."""


@MODELS.register_module()
class UPerNet(EncoderDecoder):
    """mmseg's EncoderDecoder, tested as by CSAIL's `eval_multipro.py`.

    A pixel's class is the one with the highest mean softmax over the image's sizes. Sizes are forwarded whole, one by
    one; mmseg's averaging would keep the scores of all classes, pixels and sizes, 12 GB at 2000 x 2000.
    """

    def test_step(self, data: dict[str, Any]) -> list[SegDataSample]:
        """Return the samples with `pred_sem_seg` (1, H, W) int64 at the annotation's size.

        For each size, `data["inputs"]` holds N uint8 tensors (3, h, w) of one shape (`PackScales`).
        """
        sizes = [self.data_preprocessor({"inputs": images})["inputs"] for images in data["inputs"]]
        logits = [self._forward(images) for images in sizes]  # each (N, classes, h / 4, w / 4)
        for number, sample in enumerate(data["data_samples"]):
            classes = most_likely([one[number].float() for one in logits], sample.ori_shape[:2])
            sample.set_data({"pred_sem_seg": PixelData(data=classes[None])})
        return data["data_samples"]


def quarter(labels: Tensor, size: tuple[int, int], ignore: int) -> Tensor:
    """Return every fourth label of (1, H, W), H and W multiples of 4, from offset 2, as Pillow's NEAREST picks them.

    The image itself is `size` (height, width); the rest is padding. CSAIL extends the image to a multiple of four with
    unlabelled pixels (here `ignore`) before reducing it, and pads afterwards.
    """
    (height, width), (filled_height, filled_width) = size, (-(-side // STRIDE) * STRIDE for side in size)
    labels = labels.clone()
    labels[..., height:filled_height, :filled_width] = ignore
    labels[..., :filled_height, width:filled_width] = ignore
    return labels[..., STRIDE // 2 :: STRIDE, STRIDE // 2 :: STRIDE]


def most_likely(logits: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """Return for each pixel (H, W) = `size` the class of the highest mean softmax of the enlarged `logits`, int64.

    Each of `logits` is (classes, h, w), of any h and w. Works in strips, so that besides logits and result it needs
    memory only for the scores of 64 rows.
    """
    result = torch.empty(size, dtype=torch.int64, device=logits[0].device)
    for top in range(0, size[0], STRIP):
        bottom = min(top + STRIP, size[0])
        scores = _rows(logits[0], top, bottom, size).softmax(0)
        for one in logits[1:]:
            scores += _rows(one, top, bottom, size).softmax(0)
        result[top:bottom] = scores.argmax(0)
    return result


def _rows(logits: Tensor, top: int, bottom: int, size: tuple[int, int]) -> Tensor:
    """Return the rows from `top` to `bottom` of `logits` (C, h, w) enlarged to `size`: (C, bottom - top, W)."""
    height = logits.shape[1]
    # The rows' centres in rows of `logits` (align_corners=False); before the first centre the first row repeats.
    centre = (torch.arange(top, bottom, device=logits.device, dtype=logits.dtype) + 0.5) * (height / size[0]) - 0.5
    centre = centre.clamp(0, height - 1)
    above = centre.long()
    below = (above + 1).clamp(max=height - 1)
    rows = torch.lerp(logits[:, above], logits[:, below], (centre - above)[:, None])
    return _enlarge(rows[None], (bottom - top, size[1]))[0]


def _enlarge(images: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(images, tuple(size), mode="bilinear", align_corners=False)
