"""mmcv's operators from torchvision against slow second statements of them, and quiet OpenMMLab imports."""

import importlib
import importlib.metadata
import importlib.util
import math
import subprocess
import sys
import warnings
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from common.mmlab.ops import TorchvisionOps, prepare, register_detection, register_segmentation

ROOT = Path(__file__).resolve().parents[3]

prepare()

# A compiled extension is a legitimate setup, in which the tests of the stand-in alone have no subject.
STAND_IN = pytest.mark.skipif(
    importlib.util.find_spec("mmcv._ext").origin != "torchvision.ops", reason="mmcv's ops are compiled here"
)


# ---- NMS


def slow_nms(boxes: np.ndarray, scores: np.ndarray, threshold: float, offset: int = 0) -> list[int]:
    """Keep a box unless it overlaps a better kept one by more than the threshold."""
    kept: list[int] = []
    for i in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        if all(iou(boxes[i], boxes[j], offset) <= threshold for j in kept):
            kept.append(i)
    return kept


def iou(a: np.ndarray, b: np.ndarray, offset: int) -> float:
    overlap = 1.0
    for low, high in ((0, 2), (1, 3)):
        overlap *= max(0.0, min(a[high], b[high]) + offset - max(a[low], b[low]))
    areas = [(box[2] - box[0] + offset) * (box[3] - box[1] + offset) for box in (a, b)]
    union = sum(areas) - overlap
    return overlap / union if union else 0.0


@st.composite
def scored_boxes(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Boxes on a coarse grid, so that equal, nested, touching and empty ones occur; scores without ties."""
    corners = st.tuples(*[st.integers(0, 12)] * 2, *[st.integers(0, 8)] * 2)
    boxes = np.array(draw(st.lists(corners, max_size=14)), dtype=np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    order = draw(st.permutations(range(len(boxes))))
    return boxes, (np.array(order, dtype=np.float32) + 1) / 20


# The thresholds are no ratio of small integers: rounding cannot decide a comparison.
@settings(max_examples=60, deadline=None, derandomize=True)
@given(scored_boxes(), st.sampled_from([0.1234, 0.3217, 0.7071]), st.sampled_from([0, 1]))
@example((np.zeros((0, 4), np.float32), np.zeros(0, np.float32)), 0.7071, 0)
def test_nms_keeps_what_the_definition_keeps(case, threshold, offset):
    from mmcv.ops import nms

    boxes, scores = case
    dets, kept = nms(torch.from_numpy(boxes), torch.from_numpy(scores), threshold, offset=offset)
    want = slow_nms(boxes, scores, threshold, offset)
    assert kept.tolist() == want
    assert kept.dtype == torch.int64
    np.testing.assert_array_equal(dets.numpy(), np.column_stack([boxes, scores])[want])


def test_nms_offset_decides_by_hand():
    """Boxes of 2 x 2, shifted by 1: IoU is 2 / (4 + 4 - 2) = 0.33, with offset 6 / (9 + 9 - 6) = 0.5."""
    from mmcv.ops import nms

    boxes, scores = torch.tensor([[0.0, 0, 2, 2], [1.0, 0, 3, 2]]), torch.tensor([0.9, 0.8])
    kept = {offset: nms(boxes, scores, 0.4, offset=offset)[1].tolist() for offset in (0, 1)}
    assert kept == {0: [0, 1], 1: [0]}


def test_nms_takes_score_threshold_max_num_and_float64():
    from mmcv.ops import nms

    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(50, 2, generator=generator, dtype=torch.double) * 20
    boxes = torch.cat([corner, corner + torch.rand(50, 2, generator=generator, dtype=torch.double) * 20], 1)
    scores = torch.rand(50, generator=generator, dtype=torch.double)
    _, kept = nms(boxes, scores, 0.3217, score_threshold=0.4, max_num=5)
    want = [i for i in slow_nms(boxes.numpy(), scores.numpy(), 0.3217) if scores[i] > 0.4][:5]
    assert kept.tolist() == want


@STAND_IN
def test_nms_takes_the_mixed_types_of_autocast():
    from mmcv.ops import nms

    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 10, 10], [20, 20, 30, 30]])
    assert nms(boxes, torch.tensor([0.25, 0.75, 0.5]).half(), 0.5)[1].tolist() == [1, 2]


def of_many_classes(count: int, classes: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes of 4 to 16 pixels in clusters, in an image of 1333 pixels; scores without ties; classes up to the last."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.rand(count // 4, 2, generator=generator).repeat(4, 1) * 1300
    corners = centres + torch.rand(len(centres), 2, generator=generator) * 4
    boxes = torch.cat([corners, corners + 4 + torch.rand(len(centres), 2, generator=generator) * 12], 1)
    idxs = classes - 1 - torch.randint(0, 5, (count // 4,), generator=generator).repeat(4)
    scores = (torch.randperm(len(boxes), generator=generator) + 1) / (len(boxes) + 1)
    return boxes, scores, idxs


def class_by_class(boxes: Tensor, scores: Tensor, idxs: Tensor, threshold: float) -> list[int]:
    """NMS among the boxes of each class alone; the kept indices by falling score."""
    kept: list[int] = []
    for number in idxs.unique():
        places = (idxs == number).nonzero()[:, 0]
        kept += places[torchvision.ops.nms(boxes[places].double(), scores[places].double(), threshold)].tolist()
    return sorted(kept, key=lambda place: -scores[place].item())


@STAND_IN
@pytest.mark.parametrize(("count", "classes"), [(2000, 80), (2000, 13204), (10400, 1203)])
def test_class_aware_nms_is_nms_of_each_class_however_many_classes(count, classes):
    """The last has more boxes than mmcv moves apart at once."""
    register_detection()
    from mmdet.models.dense_heads.rpn_head import batched_nms

    boxes, scores, idxs = of_many_classes(count, classes)
    want = class_by_class(boxes, scores, idxs, 0.5)
    assert 0.3 * count < len(want) < 0.9 * count
    dets, kept = batched_nms(boxes, scores, idxs, {"type": "nms", "iou_threshold": 0.5})
    assert kept.tolist() == want
    assert torch.equal(dets, torch.cat([boxes, scores[:, None]], 1)[want])


@STAND_IN
def test_class_aware_nms_of_boxes_left_of_the_image_keeps_classes_apart():
    from common.mmlab.ops import batched_nms

    boxes = torch.tensor([[0.0, 0, 4, 4], [-5, -5, -1, -1]])  # moved by 5 pixels, the second would lie upon the first
    _, kept = batched_nms(boxes, torch.tensor([0.9, 0.8]), torch.tensor([0, 1]), {"type": "nms", "iou_threshold": 0.5})
    assert kept.tolist() == [0, 1]


@STAND_IN
def test_nms_that_ignores_classes_or_is_left_out_is_mmcvs():
    from common.mmlab.ops import batched_nms

    boxes, scores = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 4]]), torch.tensor([0.8, 0.9])
    idxs, config = torch.tensor([0, 1]), {"type": "nms", "iou_threshold": 0.5}
    assert batched_nms(boxes, scores, idxs, config, class_agnostic=True)[1].tolist() == [1]
    assert batched_nms(boxes, scores, idxs, {**config, "class_agnostic": True})[1].tolist() == [1]
    assert batched_nms(boxes, scores, idxs, None)[1].tolist() == [1, 0]


# ---- RoIAlign


def slow_roi_align(
    images: Tensor, rois: Tensor, size: tuple[int, int], scale: float, sampling: int, aligned: bool
) -> Tensor:
    """Average bilinear samples in every bin, one at a time, by differentiable indexing alone."""
    pooled = []
    for index, *corners in rois.tolist():
        shift = 0.5 if aligned else 0.0
        x1, y1, x2, y2 = (corner * scale - shift for corner in corners)
        width, height = x2 - x1, y2 - y1
        if not aligned:
            width, height = max(width, 1.0), max(height, 1.0)
        bin_h, bin_w = height / size[0], width / size[1]
        count_y, count_x = sampling or math.ceil(bin_h), sampling or math.ceil(bin_w)
        for row in range(size[0]):
            for column in range(size[1]):
                total = images.new_zeros(images.shape[1])
                for i in range(count_y):
                    for j in range(count_x):
                        y = y1 + (row + (i + 0.5) / count_y) * bin_h
                        x = x1 + (column + (j + 0.5) / count_x) * bin_w
                        total = total + bilinear(images[int(index)], y, x)
                pooled.append(total / max(count_y * count_x, 1))
    return torch.stack(pooled).unflatten(0, (len(rois), *size)).permute(0, 3, 1, 2)


def bilinear(image: Tensor, y: float, x: float) -> Tensor:
    """Sample (C, H, W) at a point: zero a pixel or more outside, the border's value up to there."""
    height, width = image.shape[1:]
    if not (-1 <= y <= height and -1 <= x <= width):
        return image.new_zeros(len(image))
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    top, left = math.floor(y), math.floor(x)
    value = image.new_zeros(len(image))
    for row, weight_y in ((top, top + 1 - y), (top + 1, y - top)):
        for column, weight_x in ((left, left + 1 - x), (left + 1, x - left)):
            if weight_y and weight_x:
                value = value + weight_y * weight_x * image[:, row, column]
    return value


ROIS = [
    [0, 3.3, 2.1, 17.9, 20.4],
    [1, 0.0, 0.0, 31.0, 23.0],  # about the whole image
    [1, -9.5, -6.2, 8.7, 11.3],  # over the upper left corner
    [0, 20.2, 12.6, 47.0, 39.5],  # over the lower right corner
    [0, 60.0, 60.0, 70.0, 70.0],  # outside
    [1, 5.2, 7.7, 5.9, 8.1],  # smaller than a pixel
]


@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize("sampling", [0, 2])
@pytest.mark.parametrize("aligned", [True, False])
def test_roi_align_and_its_gradient(aligned, sampling, scale):
    from mmcv.ops import RoIAlign, roi_align

    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, 12, 16, generator=generator, dtype=torch.double, requires_grad=True)
    rois = torch.tensor(ROIS, dtype=torch.double)
    want = slow_roi_align(images, rois, (2, 3), scale, sampling, aligned)
    weight = torch.randn(want.shape, generator=generator, dtype=torch.double)
    (want_grad,) = torch.autograd.grad((want * weight).sum(), images)

    layer = RoIAlign((2, 3), scale, sampling, aligned=aligned)
    for got in (layer(images, rois), roi_align(images, rois, (2, 3), scale, sampling, "avg", aligned)):
        torch.testing.assert_close(got, want)
        (got_grad,) = torch.autograd.grad((got * weight).sum(), images)
        torch.testing.assert_close(got_grad, want_grad)


def test_roi_align_of_a_ramp_by_hand():
    """On the image f(y, x) = x a bin's average is its centre; pixel i covers [i, i + 1] if aligned."""
    from mmcv.ops import roi_align

    ramp = torch.arange(8.0).expand(1, 1, 8, 8)
    roi = torch.tensor([[0.0, 2.0, 2.0, 6.0, 6.0]])
    assert roi_align(ramp, roi, (1, 2), 1.0, 2, "avg", True).flatten().tolist() == [2.5, 4.5]
    assert roi_align(ramp, roi, (1, 2), 1.0, 2, "avg", False).flatten().tolist() == [3.0, 5.0]


def test_roi_align_without_rois():
    from mmcv.ops import roi_align

    images = torch.randn(2, 3, 8, 8, requires_grad=True)
    out = roi_align(images, torch.zeros(0, 5), 7)
    assert out.shape == (0, 3, 7, 7)
    out.sum().backward()
    assert images.grad is not None
    assert images.grad.shape == images.shape
    assert not images.grad.any()


@STAND_IN
def test_roi_align_refuses_max_pooling():
    from mmcv.ops import roi_align

    with pytest.raises(NotImplementedError, match="pool_mode='avg'"):
        roi_align(torch.zeros(1, 1, 4, 4), torch.tensor([[0.0, 0, 0, 2, 2]]), 2, 1.0, 0, "max")


# ---- the import system


@STAND_IN
def test_the_extension_has_a_proper_spec():
    from mmengine.utils.dl_utils import mmcv_full_available

    spec = importlib.util.find_spec("mmcv._ext")
    assert spec is not None
    assert isinstance(spec.loader, TorchvisionOps)
    assert mmcv_full_available()
    assert importlib.import_module("mmcv._ext").__spec__.name == "mmcv._ext"


@STAND_IN
def test_an_unsupported_op_raises_when_called_and_not_before():
    from mmcv.ops import soft_nms, softmax_focal_loss

    extension = importlib.import_module("mmcv._ext")
    op = extension.no_such_op
    with pytest.raises(NotImplementedError, match=r"mmcv op 'no_such_op' .*; choose a model without this op"):
        op(1, two=2)
    with pytest.raises(NotImplementedError, match="'softmax_focal_loss_forward'"):
        softmax_focal_loss(torch.zeros(1, 2), torch.tensor([0]))
    with pytest.raises(NotImplementedError, match="'softnms'"):
        soft_nms(torch.zeros(1, 4), torch.zeros(1))
    assert not hasattr(extension, "__wrapped__")
    assert not hasattr(extension, "_private")


def test_preparing_twice_adds_one_finder_and_one_filter():
    with warnings.catch_warnings():
        prepare()
        finders, filters = list(sys.meta_path), list(warnings.filters)
        prepare()
        assert sys.meta_path == finders
        assert warnings.filters == filters
    assert sum(isinstance(finder, TorchvisionOps) for finder in finders) == 1
    [ours] = [place for place, finder in enumerate(finders) if isinstance(finder, TorchvisionOps)]
    assert ours > finders.index(PathFinder)  # which finds a compiled extension first


def test_a_compiled_extension_wins(tmp_path):
    """As Python would find it: a file named _ext in a folder of the package mmcv."""
    (tmp_path / "_ext.py").write_text("nms = 'compiled'\n")
    run_python(f"""
        import mmcv
        from common.mmlab.ops import prepare
        mmcv.__path__.append({str(tmp_path)!r})
        prepare()
        import importlib
        assert importlib.import_module("mmcv._ext").nms == "compiled"
    """)


# ---- mmdet and mmseg


def shipped(package: str, config: str) -> Any:
    """Read the model of one of the configs that mmdet and mmseg install beside their code."""
    from mmengine.config import Config

    (folder,) = importlib.util.find_spec(package).submodule_search_locations
    model = Config.fromfile(Path(folder) / ".mim" / "configs" / config).model
    model._scope_ = package  # else the parts' names are looked up in mmengine's own registry
    return model


def two_objects(model: Any) -> dict[str, Any]:
    """A batch of two images, each with one object, as the model takes it."""
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    samples = []
    for box in ([8.3, 9.1, 40.9, 41.7], [20.6, 10.2, 60.1, 50.9]):  # no anchors at equal distances
        sample = DetDataSample(metainfo=dict(img_shape=(64, 64), ori_shape=(64, 64), scale_factor=(1.0, 1.0)))
        sample.gt_instances = InstanceData(bboxes=torch.tensor([box]), labels=torch.tensor([1]))
        samples.append(sample)
    images = list(torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8))
    return model.data_preprocessor(dict(inputs=images, data_samples=samples), training=True)


def test_faster_rcnn_trains_and_predicts():
    register_detection()
    from mmdet.registry import MODELS
    from mmengine.structures import InstanceData

    torch.manual_seed(0)
    config = shipped("mmdet", "_base_/models/faster-rcnn_r50_fpn.py")
    config.backbone.update(depth=18, init_cfg=None, frozen_stages=-1)
    config.neck.in_channels = [64, 128, 256, 512]
    config.roi_head.bbox_head.update(fc_out_channels=32, num_classes=3)
    config.train_cfg.rcnn.sampler.num = 16
    config.test_cfg.rcnn.score_thr = 0.0
    model = MODELS.build(config)
    model.init_weights()
    batch = two_objects(model)

    losses = model(**batch, mode="loss")
    assert set(losses) == {"loss_rpn_cls", "loss_rpn_bbox", "loss_cls", "loss_bbox", "acc"}
    total, _ = model.parse_losses(losses)
    total.backward()
    assert model.roi_head.bbox_head.shared_fcs[0].weight.grad.any()
    # The box head's gradient reaches the pyramid through RoIAlign's backward.
    model.zero_grad()
    features = [level.detach().requires_grad_() for level in model.extract_feat(batch["inputs"])]
    proposals = [InstanceData(bboxes=sample.gt_instances.bboxes) for sample in batch["data_samples"]]
    model.roi_head.loss(features, proposals, batch["data_samples"])["loss_cls"].backward()
    assert features[0].grad.any()

    model.eval()
    with torch.no_grad():
        predictions = model(**batch, mode="predict")
    assert len(predictions) == 2
    for prediction in predictions:
        found = prediction.pred_instances
        assert 0 < len(found) <= 100
        assert found.bboxes.shape == (len(found), 4)
        assert found.bboxes.isfinite().all()


@pytest.mark.filterwarnings("ignore:Default ``avg_non_ignore`` is False")
def test_upernet_trains_and_predicts():
    register_segmentation()
    from mmengine.structures import PixelData
    from mmseg.registry import MODELS
    from mmseg.structures import SegDataSample

    torch.manual_seed(0)
    config = shipped("mmseg", "_base_/models/upernet_r50.py")
    batch_norm = dict(type="BN", requires_grad=True)  # SyncBN asks for GPUs
    config.update(pretrained=None)
    config.data_preprocessor.size = (64, 64)
    config.backbone.update(type="ResNet", depth=18, norm_cfg=batch_norm)
    head = dict(channels=16, num_classes=5, norm_cfg=batch_norm)
    config.decode_head.update(in_channels=[64, 128, 256, 512], **head)
    config.auxiliary_head.update(in_channels=256, **head)
    model = MODELS.build(config)

    samples = []
    for _ in range(2):
        sample = SegDataSample(metainfo=dict(img_shape=(64, 64), ori_shape=(64, 64)))
        sample.gt_sem_seg = PixelData(data=torch.randint(0, 5, (1, 64, 64)))
        samples.append(sample)
    images = list(torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8))
    batch = model.data_preprocessor(dict(inputs=images, data_samples=samples), training=True)

    losses = model(**batch, mode="loss")
    assert set(losses) == {"decode.loss_ce", "decode.acc_seg", "aux.loss_ce", "aux.acc_seg"}
    model.parse_losses(losses)[0].backward()
    assert model.backbone.conv1.weight.grad.any()

    model.eval()
    with torch.no_grad():
        predictions = model(**batch, mode="predict")
    for prediction in predictions:
        assert prediction.pred_sem_seg.data.shape == (1, 64, 64)
        assert prediction.seg_logits.data.shape == (5, 64, 64)


# ---- the focal loss, and the detectors whose loss it is


@STAND_IN
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_focal_loss_and_its_gradient_are_the_formulas(reduction, gamma, weighted):
    """-a (1 - p)^gamma log(p) of the truth's probability p; label 4 is the background, no class."""
    from mmcv.ops import sigmoid_focal_loss

    logits = torch.tensor([[0.3, -2.0, 5.0, 0.0], [-9.0, 1.0, 0.7, -0.2], [2.0, 3.0, -4.0, 9.0]]).double()
    labels, alpha = torch.tensor([2, 4, 0]), 0.3
    weight = torch.tensor([0.5, 2.0, 3.0, 4.0]).double() if weighted else None
    ours, formulas = (logits.clone().requires_grad_() for _ in range(2))
    terms = []
    for row, label in enumerate(labels.tolist()):
        for column in range(4):
            p = 1 / (1 + torch.exp(-formulas[row, column]))
            term = (
                -alpha * (1 - p) ** gamma * torch.log(p)
                if column == label
                else -(1 - alpha) * p**gamma * torch.log(1 - p)
            )
            terms.append(term * (weight[label] if weighted and label < 4 else 1))
    want = torch.stack(terms).reshape(3, 4)
    want = {"none": want, "mean": want.sum() / 3, "sum": want.sum()}[reduction]  # mmcv's mean is over the rows
    got = sigmoid_focal_loss(ours, labels, gamma, alpha, weight, reduction)
    torch.testing.assert_close(got, want)
    scale = torch.arange(1.0, 13).reshape(3, 4) if reduction == "none" else 1
    (got * scale).sum().backward()
    (want * scale).sum().backward()
    torch.testing.assert_close(ours.grad, formulas.grad)


@STAND_IN
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_loss_of_sure_predictions_is_finite(gamma, dtype):
    from mmcv.ops import sigmoid_focal_loss

    logits = torch.tensor([[200.0, -200], [-200, 200]], dtype=dtype, requires_grad=True)
    loss = sigmoid_focal_loss(logits, torch.tensor([0, 0]), gamma, 0.25)
    assert loss.dtype == dtype
    assert loss.item() == 100  # 0.25 * 200 and 0.75 * 200 of two wrong answers in two rows
    loss.backward()
    assert logits.grad.tolist() == [[0, 0], [-0.125, 0.375]]


DENSE = ("_base_/models/retinanet_r50_fpn", "fcos/fcos_r50-caffe_fpn_gn-head_1x_coco", "atss/atss_r50_fpn_1x_coco")


def dense_detector(name: str, device: torch.device, seed: int = 0) -> tuple[Any, dict[str, Any]]:
    """A shipped one-stage detector, small, with three classes; and a batch of two images with an object each."""
    register_detection()
    from mmdet.registry import MODELS

    config = shipped("mmdet", f"{name}.py")
    config.backbone.update(depth=18, init_cfg=None, frozen_stages=-1, style="pytorch")
    config.neck.update(in_channels=[64, 128, 256, 512], out_channels=32)
    config.bbox_head.update(in_channels=32, feat_channels=32, stacked_convs=1, num_classes=3)
    torch.manual_seed(seed)
    model = MODELS.build(config)
    model.init_weights()
    model.to(device)
    return model, two_objects(model)


@STAND_IN
@pytest.mark.parametrize("name", DENSE)
def test_one_stage_detectors_have_the_same_loss_through_mmcvs_op(name, monkeypatch):
    """On a GPU mmdet calls the op; its own formula, for the CPU, says what the op must give."""
    from mmdet.models.losses import FocalLoss, focal_loss

    model, batch = dense_detector(name, torch.device("cpu"))
    total, parts = {}, {}
    for kind in ("formula", "op"):
        if kind == "op":

            def through_op(self, pred, target, weight=None, avg_factor=None, reduction_override=None):
                return self.loss_weight * focal_loss.sigmoid_focal_loss(
                    pred, target, weight, self.gamma, self.alpha, reduction_override or self.reduction, avg_factor
                )

            monkeypatch.setattr(FocalLoss, "forward", through_op)
        model.zero_grad()
        loss, parts[kind] = model.parse_losses(model(**batch, mode="loss"))
        loss.backward()
        total[kind] = {key: value.grad.clone() for key, value in model.named_parameters() if value.grad is not None}
    torch.testing.assert_close(parts["op"], parts["formula"])
    torch.testing.assert_close(total["op"], total["formula"], rtol=1e-4, atol=1e-6)
    assert parts["op"]["loss_cls"] > 0


# ---- deformable convolutions


def slow_deform_conv(images, offsets, weight, mask=None, bias=None, *, stride, padding, dilation, groups, parts):
    """Sum over the kernel's places, sampled one at a time; `parts` groups of channels have offsets of their own."""
    size = [(side + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1 for side, kernel in zip(
        images.shape[2:], weight.shape[2:], strict=True
    )]  # fmt: skip
    rows = []
    for n, image in enumerate(images):
        for y in range(size[0]):
            for x in range(size[1]):
                taps = []
                for i in range(weight.shape[2]):
                    for j in range(weight.shape[3]):
                        place = i * weight.shape[3] + j
                        sampled = []
                        for part, channels in enumerate(image.chunk(parts)):
                            first = 2 * (part * weight.shape[2] * weight.shape[3] + place)
                            at = [
                                y * stride - padding + i * dilation + offsets[n, first, y, x],
                                x * stride - padding + j * dilation + offsets[n, first + 1, y, x],
                            ]
                            value = sample(channels, *at)
                            if mask is not None:
                                value = value * mask[n, first // 2, y, x]
                            sampled.append(value)
                        taps.append(torch.cat(sampled))
                columns = torch.stack(taps, 1)  # (C, kh * kw)
                outputs = [
                    (filters.flatten(1) @ part.flatten())
                    for filters, part in zip(weight.chunk(groups), columns.chunk(groups), strict=True)
                ]
                rows.append(torch.cat(outputs) + (0 if bias is None else bias))
    return torch.stack(rows).reshape(len(images), *size, len(weight)).permute(0, 3, 1, 2)


def sample(image: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Sample (C, H, W) bilinearly at a point, zeros outside; differentiable in the point, too."""
    value = image.new_zeros(len(image))
    top, left = math.floor(y.detach()), math.floor(x.detach())
    for row in (top, top + 1):
        for column in (left, left + 1):
            if 0 <= row < image.shape[1] and 0 <= column < image.shape[2]:
                value = value + (1 - (y - row).abs()) * (1 - (x - column).abs()) * image[:, row, column]
    return value


def deformable(groups: int = 2, parts: int = 2, side: int = 5, stride: int = 2) -> dict[str, Tensor]:
    """Images, offsets up to two pixels, weight, mask and bias in float64."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.double) - 0.5

    out = (side + 2 - 2 - 1) // stride + 1
    return {
        "images": draw(2, 4, side, side),
        "offsets": draw(2, parts * 18, out, out) * 4,
        "weight": draw(6, 4 // groups, 3, 3),
        "mask": draw(2, parts * 9, out, out),
        "bias": draw(6),
    }


@STAND_IN
@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize(("groups", "parts", "stride"), [(1, 1, 1), (2, 2, 2), (1, 4, 2)])
def test_deformable_convolutions_and_their_gradients(groups, parts, stride, modulated):
    from mmcv.ops import deform_conv2d, modulated_deform_conv2d

    tensors = deformable(groups, parts, stride=stride)
    if not modulated:
        del tensors["mask"], tensors["bias"]
    ours, slow = ([value.clone().requires_grad_() for value in tensors.values()] for _ in range(2))
    if modulated:
        images, offsets, weight, mask, bias = ours
        got = modulated_deform_conv2d(images, offsets, mask, weight, bias, stride, 1, 1, groups, parts)
    else:
        got = deform_conv2d(*ours, stride, 1, 1, groups, parts)
    want = slow_deform_conv(*slow, stride=stride, padding=1, dilation=1, groups=groups, parts=parts)
    torch.testing.assert_close(got, want)
    scale = torch.rand(want.shape, dtype=torch.double)
    for gradient, expected in zip(
        torch.autograd.grad((got * scale).sum(), ours), torch.autograd.grad((want * scale).sum(), slow), strict=True
    ):
        torch.testing.assert_close(gradient, expected)


@STAND_IN
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_deformable_convolution_without_offsets_is_a_convolution(dtype):
    from mmcv.ops import DeformConv2d, ModulatedDeformConv2d

    torch.manual_seed(0)
    images, offsets = torch.rand(2, 4, 9, 9, dtype=dtype), torch.zeros(2, 18, 4, 4, dtype=dtype)
    tolerance = dict(rtol=1e-5, atol=1e-5) if dtype == torch.float32 else dict(rtol=0.02, atol=0.02)
    plain = DeformConv2d(4, 6, 3, stride=2, padding=1, dilation=2).to(dtype)
    modulated = ModulatedDeformConv2d(4, 6, 3, stride=2, padding=1, dilation=2).to(dtype)
    modulated.bias.data += 1
    found = plain(images, offsets), modulated(images, offsets, torch.ones(2, 9, 4, 4, dtype=dtype))
    for layer, got in zip((plain, modulated), found, strict=True):
        bias = layer.bias if isinstance(layer, ModulatedDeformConv2d) else None
        torch.testing.assert_close(got, F.conv2d(images, layer.weight, bias, 2, 1, 2), **tolerance)


# ---- what the user sees


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    """Run the lines in a fresh interpreter from the repository's root; fail with what it printed."""
    lines = "\n".join(line.strip() for line in code.splitlines())
    run = subprocess.run([sys.executable, "-c", lines], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return run


def test_registering_both_prints_nothing_and_mutes_nothing():
    run = run_python("""
        from common.mmlab.ops import register_detection, register_segmentation
        register_detection()
        register_segmentation()
        register_detection()
        from mmengine.logging import print_log
        print_log("printed as before")
        from mmengine.registry import MODELS
        assert MODELS.get("mmdet.FasterRCNN") and MODELS.get("mmseg.EncoderDecoder")
    """)
    assert run.stdout == "printed as before\n"
    assert run.stderr == ""


def test_opencv_needs_no_display_libraries():
    """`cv2` must come from the headless wheel alone: the other one links libGL, which servers lack."""
    providers = set(importlib.metadata.packages_distributions()["cv2"])
    assert providers == {"opencv-python-headless"}
    run_python("""
        import cv2
        maps = open("/proc/self/maps").read() if __import__("os").path.exists("/proc/self/maps") else ""
        assert "libGL.so" not in maps and "libQt" not in maps
    """)


@STAND_IN
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_roi_align_differentiates_the_types_of_autocast(half):
    from mmcv.ops import roi_align

    rois = torch.tensor([[0.0, 1, 1, 6, 7]])
    gradients = []
    for dtype in (torch.float32, half):
        image = torch.arange(64.0).reshape(1, 1, 8, 8).requires_grad_()
        with torch.autocast("cpu", half, enabled=dtype == half):
            pooled = roi_align(image.to(dtype), rois, 2)
        assert pooled.dtype == dtype
        pooled.float().sum().backward()
        gradients.append(image.grad)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0.02, atol=0.02)
