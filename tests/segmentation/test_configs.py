"""The paper's numbers (D.3) and those of its source (PROTOCOLS 6), typed, against what the config builds."""

from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.optim import build_optim_wrapper
from torch import nn

from common.config import load_config
from common.errors import UserError
from segmentation.schedule import StaircasePolyLR
from segmentation.train import register

CONFIG = Path("segmentation/configs/imagenet/ade20k.py")
SCALES = [(1000, 300), (1000, 375), (1000, 450), (1000, 525), (1000, 600)]  # longest, shorter side


@pytest.fixture(scope="module")
def config():
    register()
    import common.engine.steps  # noqa: F401

    return load_config(CONFIG)


@pytest.fixture(scope="module")
def model(config):
    from mmengine.registry import DefaultScope
    from mmseg.registry import MODELS

    with DefaultScope.overwrite_default_scope("mmseg"):
        built = MODELS.build(config.model)
    torch.manual_seed(0)
    built.init_weights()
    return built


def test_data(config) -> None:
    train, test = config.train_dataloader, config.test_dataloader
    assert train.batch_size == 2
    assert train.sampler == {"type": "InfiniteSampler", "shuffle": True}
    assert train.batch_sampler == {"type": "ScaledBatches", "scales": SCALES, "by_shape": True}
    assert train.dataset.data_prefix == {"img_path": "images/training", "seg_map_path": "annotations/training"}
    assert test.dataset.data_prefix == {"img_path": "images/validation", "seg_map_path": "annotations/validation"}
    assert train.dataset.data_root == test.dataset.data_root == "ADEChallengeData2016"
    # No crop, no photometric distortion.
    assert [dict(step) for step in train.dataset.pipeline] == [
        {"type": "LoadImage"},
        {"type": "LoadClassMap"},
        {"type": "RandomFlip", "prob": 0.5},
        {"type": "ResizeToScale"},
        {"type": "PackSegInputs"},
    ]
    # No flip; the same five scales.
    assert [dict(step) for step in test.dataset.pipeline] == [
        {"type": "LoadImage"},
        {"type": "LoadClassMap"},
        {"type": "PackScales", "scales": SCALES, "size_divisor": 32},
    ]
    assert config.evaluation == "multi-scale"
    assert config.val_cfg is None  # the last iterate is tested


def test_model(config, model) -> None:
    before = model.data_preprocessor
    assert before.mean.flatten().tolist() == pytest.approx([123.675, 116.28, 103.53])
    assert before.std.flatten().tolist() == pytest.approx([58.395, 57.12, 57.375])
    assert (before.size_divisor, before.pad_val, before.seg_pad_val) == (32, 0, 0)
    blue_green_red = torch.tensor([10, 100, 200], dtype=torch.uint8).view(3, 1, 1).expand(3, 32, 32)
    expected = [(200 - 123.675) / 58.395, (100 - 116.28) / 57.12, (10 - 103.53) / 57.375]
    assert before({"inputs": [blue_green_red]})["inputs"][0, :, 0, 0].tolist() == pytest.approx(expected)
    backbone = model.backbone
    assert (backbone.depth, backbone.deep_stem, backbone.frozen_stages, backbone.norm_eval) == (50, False, -1, False)
    assert (backbone.strides, backbone.dilations, backbone.style) == ((1, 2, 2, 2), (1, 1, 1, 1), "pytorch")
    assert sum(p.numel() for p in backbone.parameters()) == 23_508_032
    assert not model.with_auxiliary_head
    head = model.decode_head
    assert [(pool.output_size, conv.conv.in_channels, conv.conv.out_channels) for pool, conv in head.psp_modules] == [
        (scale, 2048, 512) for scale in (1, 2, 3, 6)
    ]
    assert [(conv.conv.in_channels, conv.conv.kernel_size) for conv in head.lateral_convs] == [
        (256, (1, 1)),
        (512, (1, 1)),
        (1024, (1, 1)),
    ]
    assert [(conv.conv.in_channels, conv.conv.kernel_size) for conv in head.fpn_convs] == [(512, (3, 3))] * 3
    assert (head.bottleneck.conv.in_channels, head.bottleneck.conv.kernel_size) == (2048 + 4 * 512, (3, 3))
    assert (head.fpn_bottleneck.conv.in_channels, head.fpn_bottleneck.conv.kernel_size) == (4 * 512, (3, 3))
    assert (head.conv_seg.in_channels, head.conv_seg.out_channels, head.conv_seg.kernel_size) == (512, 150, (1, 1))
    assert head.dropout is None
    assert head.align_corners is False
    assert (head.ignore_index, type(head.loss_decode).__name__) == (255, "LabelledCrossEntropy")
    assert head.loss_decode.class_weight is None
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 53 + 4 + 1 + 3 + 3 + 1
    assert {(norm.momentum, norm.eps, norm.weight.requires_grad) for norm in norms} == {(0.001, 1e-5, True)}
    assert config.sync_bn == "torch"


def test_new_layers_start_as_csails(model) -> None:
    head = model.decode_head
    convolutions = [module for module in head.modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) == 13
    for convolution in convolutions:
        fan_in = convolution.weight[0].numel()
        assert float(convolution.weight.detach().std()) == pytest.approx((2 / fan_in) ** 0.5, rel=0.02)
    assert [conv.bias is not None for conv in convolutions].count(True) == 1  # the classifier's, as PyTorch draws it
    assert 0 < float(head.conv_seg.bias.detach().abs().max()) <= 512**-0.5
    for module in head.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.weight.unique().tolist() == [1.0]
            assert module.bias.unique().tolist() == pytest.approx([1e-4])


def test_optimiser(config, model) -> None:
    assert config.train_cfg.max_iters == 30 * 5_000
    optimizer = build_optim_wrapper(model, config.optim_wrapper).optimizer
    assert type(optimizer) is torch.optim.SGD
    assert {(g["lr"], g["momentum"], g["nesterov"]) for g in optimizer.param_groups} == {(0.02, 0.9, False)}
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    names = dict(model.named_parameters())
    assert len(decay) == len(names)
    for name, parameter in names.items():
        assert decay[id(parameter)] == (1e-4 if parameter.ndim == 4 else 0.0), name
    assert "clip_grad" not in config.optim_wrapper


def schedule(config, **others) -> tuple[torch.optim.SGD, StaircasePolyLR]:
    [settings] = config.param_scheduler
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.02)
    arguments = {key: value for key, value in settings.items() if key != "type"}
    return optimizer, StaircasePolyLR(optimizer, **arguments, **others)


def run(optimizer: torch.optim.SGD, scheduler: StaircasePolyLR, steps: int) -> list[float]:
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer._global_step += 1
        scheduler.step()
    return rates


def test_learning_rate_falls_in_steps_of_500(config) -> None:
    rates = run(*schedule(config), 150_000)
    assert rates[0] == rates[499] == 0.02
    assert rates[500] == rates[999] == pytest.approx(0.019940, abs=5e-7)
    assert rates[75_000] == pytest.approx(0.010718, abs=5e-7)
    assert rates[149_500] == rates[-1] == pytest.approx(0.000118, abs=5e-7)
    assert len(set(rates)) == 300
    k = np.arange(150_000) // 500 * 500
    np.testing.assert_allclose(rates, 0.02 * (1 - k / 150_000) ** 0.9, rtol=1e-12)


@pytest.mark.parametrize("stop", [1, 499, 500, 777, 75_000])
def test_learning_rate_goes_on_after_an_interruption(config, stop: int) -> None:
    optimizer, scheduler = schedule(config)
    run(optimizer, scheduler, stop)
    saved = {"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
    expected = run(optimizer, scheduler, 1200)
    again, resumed = schedule(config)
    again.load_state_dict(saved["optimizer"])
    resumed.load_state_dict(saved["scheduler"])
    assert run(again, resumed, 1200) == expected


def test_a_training_beyond_the_schedule_is_refused(config) -> None:
    schedule(config, end=20)
    with pytest.raises(UserError, match=r"150001 iterations, but the learning rate ends at param_sch"):
        schedule(config, end=150_001)
