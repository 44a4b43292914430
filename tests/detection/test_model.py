"""Coordinates at 1333 pixels in networks of any precision."""

from typing import Any

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData

from detection.train import register
from tests.detection.test_configs import built

register()

from mmdet.models import SingleRoIExtractor  # noqa: E402
from mmdet.structures.bbox import bbox_overlaps  # noqa: E402

from detection.model import Float32RoIExtractor, Float32RPNHead  # noqa: E402

WIDTH, HEIGHT = 1333, 800
HALF = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])


def extractor(kind: Any = Float32RoIExtractor) -> Any:
    layer = {"type": "RoIAlign", "output_size": 7, "sampling_ratio": 0, "aligned": True}
    return kind(roi_layer=layer, out_channels=3, featmap_strides=[4, 8, 16, 32])


def pyramid(dtype: torch.dtype, device: str | torch.device = "cpu") -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, 3, -(-HEIGHT // stride), -(-WIDTH // stride)) for stride in (4, 8, 16, 32)]
    return [torch.randn(shape, generator=generator).to(device, dtype).requires_grad_() for shape in shapes]


def rois(device: str | torch.device = "cpu") -> torch.Tensor:
    """Fifty of 20 to 500 pixels a side, in the right half of the image, where half precision is coarse."""
    generator = torch.Generator().manual_seed(1)
    corners = torch.rand(50, 2, generator=generator) * torch.tensor([300.0, 250]) + torch.tensor([520.0, 20])
    sides = 20 + torch.rand(50, 2, generator=generator) * 480
    return torch.cat([torch.zeros(50, 1), corners, corners + sides], 1).to(device)


@HALF
def test_rois_are_pooled_at_their_own_corners_and_so_are_gradients(dtype) -> None:
    half, full = pyramid(dtype), [level.detach().float().requires_grad_() for level in pyramid(dtype)]
    pooled, want = extractor()(half, rois()), extractor(SingleRoIExtractor)(full, rois())
    assert pooled.dtype == torch.float32
    assert torch.equal(pooled, want)
    weight = torch.rand(want.shape)
    (pooled * weight).sum().backward()
    (want * weight).sum().backward()
    for ours, theirs in zip(half, full, strict=True):
        assert theirs.grad.any()
        assert torch.equal(ours.grad, theirs.grad.to(dtype))


def test_proposals_are_anchors_where_the_network_moves_none() -> None:
    """In bfloat16 mmdet's anchors at 1333 pixels lie up to four pixels off."""
    head = Float32RPNHead(
        in_channels=4,
        feat_channels=4,
        anchor_generator={"type": "AnchorGenerator", "scales": [8], "ratios": [0.5, 1, 2], "strides": [32]},
        bbox_coder={"type": "DeltaXYWHBBoxCoder", "target_means": [0.0] * 4, "target_stds": [1.0] * 4},
        loss_bbox={"type": "L1Loss", "loss_weight": 1.0},
        test_cfg=ConfigDict(nms_pre=1000, max_per_img=300, nms={"type": "nms", "iou_threshold": 0.9}, min_bbox_size=0),
    )
    torch.nn.init.zeros_(head.rpn_reg.weight)
    torch.nn.init.zeros_(head.rpn_reg.bias)
    features = torch.randn(1, 4, 25, 42, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        outputs = head([features])
        [found] = head.predict_by_feat(*outputs, batch_img_metas=[{"img_shape": (HEIGHT, WIDTH)}])
    assert found.bboxes.dtype == torch.float32
    assert len(found) > 100
    [anchors] = head.prior_generator.grid_priors([(25, 42)], device="cpu")
    anchors[:, 0::2].clamp_(0, WIDTH)
    anchors[:, 1::2].clamp_(0, HEIGHT)
    nearest = torch.cdist(found.bboxes, anchors, p=1).amin(1)
    assert nearest.max() < 0.01


def test_anchors_in_the_padding_are_negatives() -> None:
    """As in detectron2, whose anchors are those of the batch: an image of 64 x 96 pixels in a batch of 128 x 192."""
    head = built("voc").rpn_head
    head.sampler.num = 10**6  # all that may be sampled
    sizes = [(-(-128 // stride), -(-192 // stride)) for stride in (4, 8, 16, 32, 64)]
    box = torch.tensor([[8.0, 8.0, 40.0, 40.0]])
    objects = [InstanceData(bboxes=box, labels=torch.zeros(1, dtype=torch.int64)) for _ in range(2)]
    metas = [{"img_shape": size, "pad_shape": size, "batch_input_shape": (128, 192)} for size in ((64, 96), (128, 192))]
    anchors, valid = head.get_anchors(sizes, metas, device="cpu")
    targets = head.get_targets(anchors, valid, objects, metas)
    every = torch.cat(anchors[0])
    overlap = bbox_overlaps(every, box)[:, 0]
    counted = torch.cat([level[0] for level in targets[1]]) > 0
    assert counted[overlap < 0.3].all()
    beyond = every[:, 0] > 96
    assert counted[beyond].all()
    assert beyond.sum() > 1000
    assert not torch.cat([level[0] for level in targets[0]])[beyond].eq(0).any()  # 0 is an object

    # So the small image has the loss that it has where the batch's size is its own.
    generator = torch.Generator().manual_seed(0)
    outputs = [
        [torch.randn(1, count * kinds, *size, generator=generator).expand(2, -1, -1, -1) for size in sizes]
        for count, kinds in ((3, 1), (3, 4))
    ]
    losses = []
    for number in (0, 1):
        one = [[level[:1] for level in kind] for kind in outputs]
        found = head.loss_by_feat(*one, [objects[number]], [metas[number]])
        losses.append([sum(found[name]) for name in ("loss_rpn_cls", "loss_rpn_bbox")])
    assert losses[0] == losses[1]


def test_the_configs_build_these() -> None:
    model = built("voc")
    assert isinstance(model.rpn_head, Float32RPNHead)
    assert isinstance(model.roi_head.bbox_roi_extractor, Float32RoIExtractor)
