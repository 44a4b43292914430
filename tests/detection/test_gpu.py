"""Detection on the device: steps through the trainer's own path, coordinates, and how often a step waits."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.device import get_device
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData

from common.config import load_config
from common.engine.steps import StepOptimWrapper
from common.mmlab.finetune import fit_to_arch
from detection.train import main, register
from tests.dense import Place
from tests.waits import waits

register()

from mmcv.ops.nms import batched_nms as mmcvs_batched_nms  # noqa: E402
from mmdet.models import SingleRoIExtractor  # noqa: E402
from mmdet.models.dense_heads import rpn_head  # noqa: E402
from mmdet.registry import MODELS  # noqa: E402
from mmdet.structures import DetDataSample  # noqa: E402

from tests.detection.test_model import extractor, pyramid, rois  # noqa: E402

pytestmark = pytest.mark.gpu
OPTIONS = (
    "train_cfg.max_iters=10",  # of all four scenes, so that losses compare
    "train_dataloader.dataset.pipeline.2.scale=(64,64)",
    "test_dataloader.dataset.pipeline.1.scale=(64,64)",
    "param_scheduler.0.end=3",
    "default_hooks.progress.interval=1",
)


@pytest.mark.parametrize("precision", [(), ("--amp=bf16",)], ids=["float32", "bf16"])
def test_the_loss_of_ten_steps_falls(place: Place, device: torch.device, precision: tuple[str, ...]) -> None:
    if get_device() != device.type:
        pytest.skip(f"mmengine trains on {get_device()} here")
    place.run(main, *precision, options=OPTIONS)
    lines = (place.root / "runs/demo/detection-voc/tiny-seed0/log.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    assert len(losses) == 10
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rois_at_1333_pixels_are_pooled_as_on_the_cpu(device: torch.device, dtype: torch.dtype) -> None:
    """Forward and backward; the features, which are in half precision in both, are the same."""
    half, full = pyramid(dtype, device), [level.detach().float().requires_grad_() for level in pyramid(dtype)]
    with torch.autocast(device.type, dtype):
        pooled = extractor()(half, rois(device))
    want = extractor(SingleRoIExtractor)(full, rois())
    torch.testing.assert_close(pooled.cpu(), want, rtol=1e-4, atol=1e-4)
    weight = torch.rand(want.shape)
    (pooled * weight.to(device)).sum().backward()
    (want * weight).sum().backward()
    for ours, theirs in zip(half, full, strict=True):
        torch.testing.assert_close(ours.grad.cpu().float(), theirs.grad, rtol=0.01, atol=0.01)


def batch(device: torch.device) -> dict[str, Any]:
    """Two images of 96 x 128 pixels with two objects each, as the loader gives them."""
    generator = torch.Generator().manual_seed(0)
    samples = []
    for shift in (0.0, 9.0):
        shape = {"img_shape": (96, 128), "ori_shape": (96, 128), "scale_factor": (1.0, 1.0)}
        sample = DetDataSample(metainfo=shape)
        boxes = torch.tensor([[10.3, 12.1, 40.7, 50.2], [50.9, 20.4, 90.1, 80.6]]) + shift
        sample.gt_instances = InstanceData(bboxes=boxes, labels=torch.tensor([1, 2]))
        samples.append(sample)
    images = list(torch.randint(0, 256, (2, 3, 96, 128), generator=generator, dtype=torch.uint8))
    if device.type == "cuda":
        images = [image.pin_memory() for image in images]
    return {"inputs": images, "data_samples": samples}


def test_a_step_waits_no_more_than_mmdets_own(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sampling and losses of mmdet wait for the device by themselves; what is ours adds nothing."""
    ours = load_config(Path("detection/configs/demo/voc.py"))
    fit_to_arch(ours, "resnet18")
    mmdets = copy.deepcopy(ours.model)
    mmdets.data_preprocessor.type = "DetDataPreprocessor"
    mmdets.rpn_head.type = "RPNHead"
    mmdets.roi_head.bbox_roi_extractor.type = "SingleRoIExtractor"
    counts = {}
    for kind, model_config in (("ours", ours.model), ("mmdet's", mmdets)):
        if kind == "mmdet's":
            monkeypatch.setattr(rpn_head, "batched_nms", mmcvs_batched_nms)
        model, wrapper = build(model_config, device)

        def step(model: Any = model, wrapper: Any = wrapper) -> None:
            torch.manual_seed(1)  # the same anchors and RoIs
            model.train_step(batch(device), wrapper)

        step()
        counts[kind] = waits(device, step)
    assert (counts["mmdet's"] > 0) == (device.type == "cuda")
    assert counts["ours"] <= counts["mmdet's"], counts


def build(config: ConfigDict, device: torch.device) -> tuple[Any, StepOptimWrapper]:
    """A detector in training on the device, and a wrapper whose steps change nothing."""
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope("mmdet"):
        model = MODELS.build(config)
        model.init_weights()
    model.to(device).train()
    return model, StepOptimWrapper(optimizer=torch.optim.SGD(model.parameters(), lr=0.0))
