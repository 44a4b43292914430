"""The paper's numbers (D.2), typed from its text, against the configs."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import PARAM_SCHEDULERS

from common.config import load_config

CONFIGS = Path("detection/configs")


def imagenet(dataset: str) -> Config:
    return load_config(CONFIGS / "imagenet" / f"{dataset}.py", data=Path("data"))


def test_voc_is_the_papers() -> None:
    config = imagenet("voc")
    assert config.train_dataloader.batch_size == 2
    assert config.optim_wrapper.optimizer == {"type": "SGD", "lr": 0.0025, "momentum": 0.9, "weight_decay": 1e-4}
    assert config.train_cfg.max_iters == 144_000
    scales = [(1333, s) for s in (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)]
    for part in config.train_dataloader.dataset.datasets:
        assert part.pipeline[2].scales == scales
        assert part.filter_cfg == {"filter_empty_gt": True}
    assert [p.ann_file for p in config.train_dataloader.dataset.datasets] == [
        "VOC2007/ImageSets/Main/trainval.txt",
        "VOC2012/ImageSets/Main/trainval.txt",
    ]
    assert config.test_dataloader.dataset.ann_file == "VOC2007/ImageSets/Main/test.txt"
    assert config.test_dataloader.dataset.pipeline[1].scale == (1333, 800)
    assert config.model.roi_head.bbox_head.num_classes == 20
    assert [int(100 * threshold) for threshold in config.test_evaluator.iou_thrs] == list(range(50, 100, 5))


def test_coco_is_the_papers() -> None:
    config = imagenet("coco")
    assert config.train_dataloader.batch_size * 8 == 16
    assert config.optim_wrapper.optimizer.lr == 0.02
    assert config.train_cfg.max_iters == 270_000
    scales = [(1333, s) for s in (640, 672, 704, 736, 768, 800)]
    assert config.train_dataloader.dataset.pipeline[2].scales == scales
    assert config.test_dataloader.dataset.pipeline[1].scale == (1333, 800)
    assert config.model.roi_head.bbox_head.num_classes == 80


@pytest.mark.parametrize("dataset", ["voc", "coco"])
def test_normalisation_and_what_trains(dataset: str) -> None:
    model = imagenet(dataset).model
    assert model.data_preprocessor.mean == [123.675, 116.280, 103.530]
    assert model.data_preprocessor.std == [58.395, 57.120, 57.375]
    assert model.data_preprocessor.bgr_to_rgb
    backbone = model.backbone
    assert (backbone.frozen_stages, backbone.norm_eval, backbone.init_cfg) == (-1, True, None)
    assert backbone.norm_cfg == {"type": "BN", "requires_grad": False}
    assert 0 < model.train_cfg.rpn.assigner.min_pos_iou < 0.01


@pytest.mark.parametrize(
    ("dataset", "rates"),
    [
        # (iteration, lr): linear warm-up from a thousandth, then divided by ten twice.
        ("voc", {0: 0.0025e-3, 99: 0.0025, 95_999: 0.0025, 96_000: 0.00025, 127_999: 0.00025, 128_000: 0.000025}),
        ("coco", {0: 0.02e-3, 999: 0.02, 209_999: 0.02, 210_000: 0.002, 249_999: 0.002, 250_000: 0.0002}),
    ],
)
def test_learning_rate(dataset: str, rates: dict[int, float]) -> None:
    config = imagenet(dataset)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=config.optim_wrapper.optimizer.lr)
    schedulers = [
        PARAM_SCHEDULERS.build(settings, default_args={"optimizer": optimizer}) for settings in config.param_scheduler
    ]
    for iteration in range(max(rates) + 1):
        if iteration in rates:
            assert optimizer.param_groups[0]["lr"] == pytest.approx(rates[iteration]), iteration
        optimizer._global_step += 1  # what a step of the optimizer would count
        for scheduler in schedulers:
            scheduler.step()
