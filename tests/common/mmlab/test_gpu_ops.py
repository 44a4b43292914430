"""mmcv's operators from torchvision: on the device as on the CPU."""

import importlib.util
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from common.mmlab import ops as openmmlab

openmmlab.prepare()

from tests.common.mmlab.test_ops import (  # noqa: E402
    DENSE,
    ROIS,
    class_by_class,
    deformable,
    dense_detector,
    of_many_classes,
)
from tests.waits import waits  # noqa: E402

# mmcv's compiled extension, where it is installed, is not ours to test, and takes no float64.
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        importlib.util.find_spec("mmcv._ext").origin != "torchvision.ops", reason="mmcv's ops are compiled here"
    ),
]


def gradients(operator: Callable[..., Tensor], tensors: list[Tensor]) -> list[Tensor]:
    """The operator's result, and the gradients of its sum weighted by a fixed pattern; on the CPU."""
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    result = operator(*leaves)
    pattern = torch.linspace(-1, 1, result.numel(), dtype=torch.double).reshape(result.shape).to(result)
    (result * pattern).sum().backward()
    return [result.detach().cpu(), *(leaf.grad.cpu() for leaf in leaves)]


@pytest.mark.parametrize("offset", [0, 1])
def test_nms_on_the_device(device, offset):
    from mmcv.ops import nms

    boxes, scores, _ = of_many_classes(4000, 1)
    expected = nms(boxes, scores, 0.5, offset=offset)[1]
    assert 500 < len(expected) < 3500
    dets, kept = nms(boxes.to(device), scores.to(device), 0.5, offset=offset)
    assert kept.device.type == device.type
    assert kept.tolist() == expected.tolist()
    assert torch.equal(dets.cpu(), torch.cat([boxes, scores[:, None]], 1)[expected])


@pytest.mark.parametrize("offset", [0, 1])
def test_nms_waits_no_more_than_torchvisions(device, offset):
    from torchvision.ops import nms

    boxes, scores, _ = (tensor.to(device) for tensor in of_many_classes(400, 1))
    openmmlab.nms(boxes, scores, 0.5, offset)  # what is loaded at the first call does not count
    theirs = waits(device, lambda: nms(boxes, scores, 0.5))
    assert waits(device, lambda: openmmlab.nms(boxes, scores, 0.5, offset)) == theirs


@pytest.mark.parametrize(("count", "classes"), [(4000, 80), (4000, 13204), (10400, 1203)])
def test_class_aware_nms_on_the_device(device, count, classes):
    boxes, scores, idxs = of_many_classes(count, classes)
    config = {"type": "nms", "iou_threshold": 0.5}
    dets, kept = openmmlab.batched_nms(boxes.to(device), scores.to(device), idxs.to(device), config)
    want = class_by_class(boxes, scores, idxs, 0.5)
    assert kept.tolist() == want
    assert torch.equal(dets.cpu(), torch.cat([boxes, scores[:, None]], 1)[want])


@pytest.mark.parametrize("sampling", [0, 2])
def test_roi_align_on_the_device(device, sampling):
    from mmcv.ops import roi_align

    images = torch.randn(2, 3, 12, 16, generator=torch.Generator().manual_seed(0))
    rois = torch.tensor(ROIS)
    found, want = (
        gradients(lambda x, place=place: roi_align(x, rois.to(place), (2, 3), 0.5, sampling, "avg", True), [x])
        for place, x in ((device, images.to(device)), ("cpu", images))
    )
    torch.testing.assert_close(found, want)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gradients_of_many_rois_add_up_in_float32(device, dtype):
    """4,000 times the same RoI: in half precision the sum would stop growing at 2,048 times its summands, or 256."""
    from mmcv.ops import roi_align

    image = torch.ones(1, 1, 8, 8, dtype=dtype, device=device, requires_grad=True)
    rois = torch.tensor([[0.0, 0, 0, 8, 8]], device=device).expand(4000, 5).contiguous()
    with torch.autocast(device.type, dtype):
        pooled = roi_align(image, rois.to(dtype), (1, 1), 1.0, 0, "avg", True)
    pooled.float().sum().backward()
    assert image.grad.float().sum().item() == pytest.approx(4000, rel=0.01)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_loss_on_the_device(device, gamma):
    from mmcv.ops import sigmoid_focal_loss

    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1000, 80, generator=generator) * 5
    labels = torch.randint(0, 81, (1000,), generator=generator)
    found, want = (
        gradients(lambda x, place=place: sigmoid_focal_loss(x, labels.to(place), gamma, 0.25, None, "none"), [x])
        for place, x in ((device, logits.to(device)), ("cpu", logits))
    )
    torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("modulated", [False, True])
def test_deformable_convolutions_on_the_device(device, modulated):
    from mmcv.ops import deform_conv2d, modulated_deform_conv2d

    def operator(images, offsets, weight, mask=None, bias=None):
        if modulated:
            return modulated_deform_conv2d(images, offsets, mask, weight, bias, 2, 1, 1, 2, 2)
        return deform_conv2d(images, offsets, weight, 2, 1, 1, 2, 2)

    tensors = list(deformable(side=9).values())
    tensors = tensors if modulated else tensors[:3]
    found, want = (gradients(operator, [tensor.to(place) for tensor in tensors]) for place in (device, "cpu"))
    torch.testing.assert_close(found, want)


@pytest.mark.parametrize("name", DENSE)
def test_one_stage_detectors_on_the_device(device, name):
    """Loss and gradient as on the CPU, where mmdet has its own focal loss; and detections."""
    losses, first = [], []
    for place in (device, torch.device("cpu")):
        model, batch = dense_detector(name, place)
        loss, parts = model.parse_losses(model(**batch, mode="loss"))
        loss.backward()
        losses.append({key: value.item() for key, value in parts.items()})
        first.append(model.bbox_head.cls_convs[0].conv.weight.grad.cpu())
        if place == device:
            model.eval()
            model.bbox_head.test_cfg.score_thr = 0.0
            with torch.no_grad():
                found = model(**batch, mode="predict")
            assert all(len(sample.pred_instances) for sample in found)
            assert all(sample.pred_instances.bboxes.isfinite().all() for sample in found)
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    torch.testing.assert_close(first[0], first[1], rtol=1e-2, atol=1e-3 * first[1].abs().max().item())
