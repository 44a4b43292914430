"""UPerNet's parts against plain statements of CSAIL's code."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.registry import DefaultScope
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from segmentation.train import register

register()

from segmentation.upernet import LabelledCrossEntropy, UPerNet, UPerNetHead, most_likely, quarter  # noqa: E402

sides = st.integers(1, 40)


@given(sides, sides, st.integers(0, 3), st.integers(0, 3), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_labels_are_reduced_as_csails_loader_reduces_them(height, width, more_rows, more_columns, seed) -> None:
    """Fill up to a multiple of 4 with unlabelled, reduce with Pillow, subtract 1, put into a batch of zeros."""
    raw = np.random.default_rng(seed).integers(0, 151, (height, width), dtype=np.uint8)
    filled = Image.new("L", (-(-width // 4) * 4, -(-height // 4) * 4), 0)
    filled.paste(Image.fromarray(raw), (0, 0))
    reduced = np.asarray(filled.resize((filled.width // 4, filled.height // 4), Image.Resampling.NEAREST)).astype(int)
    expected = np.zeros((reduced.shape[0] + more_rows, reduced.shape[1] + more_columns), int)
    expected[: reduced.shape[0], : reduced.shape[1]] = np.where(reduced == 0, 255, reduced - 1)

    ours = torch.zeros((1, 4 * expected.shape[0], 4 * expected.shape[1]), dtype=torch.int64)  # padded with class 0
    ours[0, :height, :width] = torch.from_numpy(raw - np.uint8(1))
    before = ours.clone()
    assert quarter(ours, (height, width), 255).tolist() == [expected.tolist()]
    assert torch.equal(ours, before)


def head(**others) -> UPerNetHead:
    settings = {
        "in_channels": [4, 6, 8, 10],
        "in_index": [0, 1, 2, 3],
        "pool_scales": (1, 2, 3, 6),
        "channels": 5,
        "dropout_ratio": 0.0,
        "num_classes": 7,
        "norm_cfg": {"type": "BN"},
        "loss_decode": {"type": "LabelledCrossEntropy"},
    }
    torch.manual_seed(0)
    result = UPerNetHead(**settings | others)
    result.init_weights()
    return result


def features(height: int, width: int) -> list[torch.Tensor]:
    """Of an image of 32 height x 32 width pixels."""
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randn((2, channels, height * 8 // 2**k, width * 8 // 2**k), generator=generator)
        for k, channels in enumerate((4, 6, 8, 10))
    ]


def test_the_head_is_csails_upernet() -> None:
    """The whole forward pass in training, layer by layer, with the head's own weights."""
    ours = head().train()
    inputs = features(3, 4)
    *lower, top = inputs

    def block(module, x):
        x = F.conv2d(x, module.conv.weight, padding=module.conv.padding)
        return F.relu(F.batch_norm(x, None, None, module.bn.weight, module.bn.bias, training=True))

    def enlarge(x, like):
        return F.interpolate(x, like.shape[2:], mode="bilinear", align_corners=False)

    pyramid = [top]
    for scale, (_, module) in zip((1, 2, 3, 6), ours.psp_modules, strict=True):
        pyramid.append(block(module, enlarge(F.adaptive_avg_pool2d(top, scale), top)))
    f = block(ours.bottleneck, torch.cat(pyramid, 1))
    outputs = [f]
    for level in (2, 1, 0):
        f = block(ours.lateral_convs[level], lower[level]) + enlarge(f, lower[level])
        outputs.insert(0, block(ours.fpn_convs[level], f))
    fused = block(ours.fpn_bottleneck, torch.cat([enlarge(o, outputs[0]) for o in outputs], 1))
    expected = F.conv2d(fused, ours.conv_seg.weight, ours.conv_seg.bias)
    torch.testing.assert_close(ours(inputs), expected)


def test_the_loss_is_the_mean_over_labelled_quarter_pixels() -> None:
    ours = head().train()
    inputs = features(2, 2)  # of a batch padded to 64 x 64
    generator = torch.Generator().manual_seed(2)
    samples, rows = [], []
    for height, width in ((64, 50), (37, 64)):
        labels = torch.zeros((1, 64, 64), dtype=torch.int64)
        labels[0, :height, :width] = torch.randint(0, 7, (height, width), generator=generator)
        labels[0, :9, :9] = 255
        samples.append(
            SegDataSample(gt_sem_seg=PixelData(data=labels), metainfo={"img_shape": torch.Size((height, width))})
        )
        rows.append(quarter(labels, (height, width), 255)[0])
    losses = ours.loss(inputs, samples, {})
    logits = ours.train()(inputs)
    labels = torch.stack(rows)
    labelled = labels != 255
    picked = F.log_softmax(logits, 1).permute(0, 2, 3, 1)[labelled].gather(1, labels[labelled][:, None])
    torch.testing.assert_close(losses["loss_ce"], -picked.mean())
    right = (logits.argmax(1) == labels)[labelled].float().mean()
    torch.testing.assert_close(losses["acc_seg"], 100 * right)


@pytest.mark.parametrize("class_weight", [None, [0.1, 1.0, 2.0]])
def test_the_loss_and_its_gradient_are_mmsegs(class_weight) -> None:
    from mmseg.models.losses import CrossEntropyLoss

    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (2, 4, 5), generator=generator)
    labels[0, :2] = 255
    found = []
    for loss in (
        LabelledCrossEntropy(class_weight),
        CrossEntropyLoss(class_weight=class_weight, avg_non_ignore=class_weight is None),
    ):
        logits = torch.randn((2, 3, 4, 5), generator=torch.Generator().manual_seed(1), requires_grad=True)
        value = loss(logits, labels, ignore_index=255)
        value.backward()
        found.append((value.detach(), logits.grad))
    torch.testing.assert_close(found[0], found[1])
    assert not LabelledCrossEntropy(class_weight).state_dict()


def test_a_batch_without_a_labelled_pixel_has_no_loss() -> None:
    logits = torch.ones((1, 3, 2, 2), requires_grad=True)
    loss = LabelledCrossEntropy([1.0, 2.0, 3.0])(logits, torch.full((1, 2, 2), 255), 255)
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=3),
    st.integers(1, 150),
    st.integers(1, 40),
    st.integers(1, 5),
)
@settings(max_examples=40, deadline=None)
def test_scores_by_strips_are_those_of_the_whole(shapes, height, width, classes) -> None:
    generator = torch.Generator().manual_seed(height)
    logits = [torch.randn((classes, *shape), generator=generator, dtype=torch.float64) for shape in shapes]
    whole = [F.interpolate(one[None], (height, width), mode="bilinear", align_corners=False)[0] for one in logits]
    mean = torch.stack([one.softmax(0) for one in whole]).mean(0)
    best = most_likely(logits, (height, width))
    assert best.shape == (height, width)
    # Where two classes are as likely, either will do.
    torch.testing.assert_close(mean.gather(0, best[None])[0], mean.amax(0), atol=1e-5, rtol=0)


def network() -> UPerNet:
    backbone = {"type": "ResNet", "depth": 18, "base_channels": 8, "norm_cfg": {"type": "BN"}}
    decode = {
        "type": "UPerNetHead",
        "in_channels": [8, 16, 32, 64],
        "in_index": [0, 1, 2, 3],
        "channels": 8,
        "dropout_ratio": 0.0,
        "num_classes": 7,
        "norm_cfg": {"type": "BN"},
        "align_corners": False,
        "loss_decode": {"type": "LabelledCrossEntropy"},
    }
    before = {"type": "SegPreprocessor", "mean": [1, 2, 3], "std": [10, 20, 30], "bgr_to_rgb": True}
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope("mmseg"):
        return UPerNet(backbone, decode, data_preprocessor=before | {"size_divisor": 32}).eval()


def test_the_answer_is_the_mean_over_sizes_at_the_images_own_size() -> None:
    ours = network()
    generator = torch.Generator().manual_seed(3)
    sizes = [
        [torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8) for _ in range(2)]
        for size in ((32, 64), (64, 96))
    ]
    samples = [SegDataSample(metainfo={"ori_shape": (50, 70)}) for _ in range(2)]
    with torch.no_grad():
        answers = ours.test_step({"inputs": sizes, "data_samples": samples})
        for number, answer in enumerate(answers):
            scores = torch.zeros((7, 50, 70))
            for images in sizes:
                x = images[number].flip(0).float()  # RGB
                x = (x - torch.tensor([1, 2, 3])[:, None, None]) / torch.tensor([10, 20, 30])[:, None, None]
                logits = ours.decode_head(ours.backbone(x[None]))
                scores += F.interpolate(logits, (50, 70), mode="bilinear", align_corners=False)[0].softmax(0) / 2
            best = answer.pred_sem_seg.data
            assert best.shape == (1, 50, 70)
            torch.testing.assert_close(scores.gather(0, best)[0], scores.amax(0), atol=1e-5, rtol=0)


class Largest(TorchDispatchMode):
    """Notes the most numbers that a tensor of any operation's result has."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **kwargs or {})
        if isinstance(result, torch.Tensor):
            self.numbers = max(self.numbers, result.numel())
        return result


@pytest.mark.parametrize("height", [100, 300])
def test_memory_is_that_of_64_rows_and_the_answer(height: int) -> None:
    logits = [torch.randn(20, side, 2 * side) for side in (25, 40)]
    with Largest() as largest:
        most_likely(logits, (height, 2000))
    assert largest.numbers <= max(64 * 2000 * 20, height * 2000)
