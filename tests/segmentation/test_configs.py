"""The paper's numbers (D.3), typed from its text, against the config."""

from pathlib import Path

import pytest
import torch

from common.config import load_config
from segmentation.schedule import StaircasePolyLR

CONFIG = Path("segmentation/configs/imagenet/ade20k.py")


def test_ade20k_is_the_papers() -> None:
    config = load_config(CONFIG, data=Path("data"))
    assert config.train_dataloader.batch_size == 2
    assert config.optim_wrapper.optimizer == {"type": "SGD", "lr": 0.02, "momentum": 0.9, "weight_decay": 1e-4}
    assert config.optim_wrapper.paramwise_cfg == {"norm_decay_mult": 0.0, "bias_decay_mult": 0.0}
    assert config.train_cfg.max_iters == 30 * 5_000
    scales = [(1000, s) for s in (300, 375, 450, 525, 600)]
    assert config.train_dataloader.dataset.pipeline[2].scales == scales
    assert [t.scale for t in config.test_dataloader.dataset.pipeline[1].transforms[0]] == scales
    assert [step.type for step in config.train_dataloader.dataset.pipeline] == [
        "LoadImage",
        "LoadClassMap",
        "RandomChoiceResize",
        "RandomFlip",
        "PackSegInputs",
    ]


def test_the_model_is_csails_upernet_on_a_plain_resnet() -> None:
    model = load_config(CONFIG, data=Path("data")).model
    assert (model.backbone.type, model.backbone.frozen_stages, model.backbone.norm_eval) == ("ResNet", -1, False)
    assert model.backbone.norm_cfg == {"type": "BN", "momentum": 0.001, "requires_grad": True}
    assert "auxiliary_head" not in model
    head = model.decode_head
    assert (head.channels, head.dropout_ratio, head.num_classes, head.pool_scales) == (512, 0.0, 150, (1, 2, 3, 6))


def test_learning_rate_falls_in_steps_of_500() -> None:
    [settings] = load_config(CONFIG, data=Path("data")).param_scheduler
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.02)
    schedule = StaircasePolyLR(optimizer, **{key: value for key, value in settings.items() if key != "type"})
    rates = []
    for _ in range(150_000):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer._global_step += 1
        schedule.step()
    assert rates[0] == rates[499] == 0.02
    assert rates[500] == pytest.approx(0.019940, abs=5e-7)
    assert rates[75_000] == pytest.approx(0.010718, abs=5e-7)
    assert rates[149_500] == rates[-1] == pytest.approx(0.000118, abs=5e-7)
    assert len(set(rates)) == 300
