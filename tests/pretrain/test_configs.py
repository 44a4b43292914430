"""The eight configurations of the paper, against numbers typed from the appendix and PROTOCOLS 1 and 2."""

import math
from types import SimpleNamespace

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, PARAM_SCHEDULERS
from PIL import Image
from timm.optim import Lars
from torch import nn

import pretrain.methods
import pretrain.optim
import pretrain.probe  # noqa: F401  (these register what the configs name)
from common.config import load_config
from common.engine.batch import plan_batch
from pretrain.augmentation import build_augmentation
from pretrain.train import CONFIGS
from pretrain.views import LabelledView

METHODS = ("simsiam", "simsiam_gsg", "byol", "byol_gsg")
PAPER = [(profile, method) for profile in ("imagenet", "cifar10") for method in METHODS]


def config_of(profile: str, method: str):
    return load_config(CONFIGS / profile / f"{method}.py")


def model_of(config) -> nn.Module:
    with torch.device("meta"):
        return MODELS.build(config.model)


@pytest.mark.parametrize(("profile", "method"), PAPER)
def test_networks(profile, method):
    model = model_of(config_of(profile, method))
    backbone = sum(p.numel() for p in model.backbone.parameters())
    assert backbone == {"imagenet": 23_508_032, "cifar10": 11_168_832}[profile]  # about 23M and 11M
    widths = [(m.in_features, m.out_features) for m in model.projector if isinstance(m, nn.Linear)]
    assert widths == {"imagenet": [(2048, 2048)] * 3, "cifar10": [(512, 2048), (2048, 2048)]}[profile]
    assert model.projector[-1].affine == (profile == "cifar10")
    assert [
        (m.in_features, m.out_features, m.bias is not None) for m in model.predictor if isinstance(m, nn.Linear)
    ] == [
        (2048, 512, False),
        (512, 2048, True),
    ]
    assert type(model).__name__ == ("BYOL" if "byol" in method else "SimSiam")
    assert model.guide == ("nearest" if "gsg" in method else "none")
    assert model.views == "fresh"
    assert model.num_views == config_of(profile, method).train_dataloader.dataset.num_views
    if "byol" in method:
        assert model.momentum == 0.99


def test_imagenet_backbone_starts_its_residual_blocks_at_zero_and_cifars_does_not():
    for profile, expected in (("imagenet", 0.0), ("cifar10", 1.0)):
        backbone = MODELS.build(config_of(profile, "simsiam").model).backbone
        last = backbone.layer1[0].bn3 if profile == "imagenet" else backbone.layer1[0].bn2
        assert last.weight.unique().tolist() == [expected]


def test_cifar_backbone_is_the_variant_of_lightly():
    backbone = MODELS.build(config_of("cifar10", "simsiam").model).backbone
    assert (backbone.conv1.kernel_size, backbone.conv1.stride, backbone.conv1.padding) == ((3, 3), (1, 1), (1, 1))
    assert isinstance(backbone.maxpool, nn.Identity)
    assert isinstance(backbone.act1, nn.Identity)  # the ReLU that lightly loses
    assert backbone.forward_features(torch.zeros(2, 3, 32, 32)).shape == (2, 512, 4, 4)


def optimizer_of(config, batch: int):
    """Build the optimiser as a run with `batch` images in all does."""
    config.train_dataloader.batch_size = batch
    plan_batch(config, 1, 1).apply(config)
    model = nn.Module()
    model.backbone, model.predictor = nn.Conv2d(3, 4, 1), nn.Linear(4, 4)
    return build_optim_wrapper(model, config.optim_wrapper)


@pytest.mark.parametrize(
    ("profile", "method", "batch", "lr"),
    [
        *(("imagenet", method, 512, 0.1) for method in METHODS),
        ("imagenet", "simsiam_gsg", 64, 0.0125),
        ("imagenet", "simsiam_gsg", 1024, 0.2),
        *(("cifar10", method, 128, 0.06) for method in METHODS),
        ("cifar10", "simsiam", 512, 0.06),
        ("cifar10", "byol", 512, 0.24),
        ("cifar10", "byol_gsg", 512, 0.24),
    ],
)
def test_learning_rate_and_its_scaling(profile, method, batch, lr):
    optimizer = optimizer_of(config_of(profile, method), batch).optimizer
    decay = {"imagenet": 1e-4, "cifar10": 5e-4}[profile]
    assert isinstance(optimizer, torch.optim.SGD)
    for group in optimizer.param_groups:
        assert group["lr"] == pytest.approx(lr)
        assert (group["momentum"], group["weight_decay"], group["nesterov"]) == (0.9, decay, False)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 4  # weights and biases alike decay


@pytest.mark.parametrize(("profile", "method"), PAPER)
def test_cosine_schedule_at_given_epochs(profile, method):
    config = config_of(profile, method)
    epochs, batch = {"imagenet": (100, 512), "cifar10": (200, 128)}[profile]
    assert config.train_cfg.max_epochs == epochs
    assert config.train_dataloader.batch_size == batch
    assert config.train_dataloader.drop_last
    wrapper = optimizer_of(config, batch)
    (schedule,) = config.param_scheduler
    scheduler = PARAM_SCHEDULERS.build({**schedule, "end": epochs}, default_args={"optimizer": wrapper})
    first = wrapper.optimizer.param_groups[0]["lr"]
    seen, fixed = [], []
    for _ in range(epochs):
        seen.append(wrapper.optimizer.param_groups[0]["lr"])
        fixed.append(wrapper.optimizer.param_groups[-1]["lr"])
        wrapper.optimizer.step()
        scheduler.step()
    for epoch in (0, 1, epochs // 4, epochs // 2, epochs - 1):
        assert seen[epoch] == pytest.approx(first * 0.5 * (1 + math.cos(math.pi * epoch / epochs)), rel=1e-6)
    if profile == "imagenet":
        assert [round(lr, 8) for lr in (seen[0], seen[1], seen[99])] == [0.1, 0.09997533, 2.467e-05]
        assert set(fixed) == {first}  # --fix-pred-lr
    else:
        assert fixed == seen


@pytest.mark.parametrize("method", METHODS)
def test_augmentations_in_the_stated_order_with_the_stated_parameters(method):
    imagenet, cifar = (config_of(p, method).train_dataloader.dataset.augmentation for p in ("imagenet", "cifar10"))
    jitter = dict(type="ColorJitter", brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, p=0.8)
    flip, grey = dict(type="RandomHorizontalFlip", p=0.5), dict(type="RandomGrayscale", p=0.2)
    assert imagenet == [
        dict(type="RandomResizedCrop", size=224, scale=(0.2, 1.0)),
        jitter,
        grey,
        dict(type="GaussianBlur", radius=(0.1, 2.0), p=0.5),
        flip,
    ]
    assert cifar == [dict(type="RandomResizedCrop", size=32, scale=(0.08, 1.0)), flip, jitter, grey]
    crop = build_augmentation(imagenet).transforms[1]  # after the array
    assert (crop.ratio, crop.interpolation.value) == ((3 / 4, 4 / 3), "bilinear")


def test_imagenet_synchronises_bn_and_cifar_does_not():
    assert config_of("imagenet", "simsiam").sync_bn == "torch"
    assert "sync_bn" not in config_of("cifar10", "simsiam")


@pytest.mark.parametrize(("profile", "temperature"), [("imagenet", 0.2), ("cifar10", 0.1)])
def test_knn_settings(profile, temperature):
    settings = config_of(profile, "knn").evaluation
    assert (settings.k, settings.temperature) == (200, temperature)
    assert SimpleNamespace(**settings).resize == ((256, 256) if profile == "imagenet" else None)


@pytest.mark.parametrize(
    ("profile", "classes", "size", "resize"), [("imagenet", 1000, 224, 256), ("cifar10", 10, 32, None)]
)
def test_linear_evaluation_as_the_authors_have_it(profile, classes, size, resize):
    config = config_of(profile, "linear")
    assert (config.train_dataloader.batch_size, config.train_cfg.max_epochs) == (4096, 90)
    assert not config.train_dataloader.drop_last
    assert config.model.num_classes == classes
    crop, flip = config.train_dataloader.dataset.augmentation
    assert crop == dict(type="RandomResizedCrop", size=size, scale=(0.08, 1.0))
    assert flip == dict(type="RandomHorizontalFlip", p=0.5)
    test = config.val_dataloader.dataset
    assert (test.size, test.resize, config.val_dataloader.batch_size) == (size, resize, 256)
    optimizer = optimizer_of(config, 4096).optimizer
    (group,) = optimizer.param_groups
    assert isinstance(optimizer, Lars)
    assert group["lr"] == pytest.approx(1.6)  # 0.1 x 4096 / 256
    assert (group["momentum"], group["weight_decay"], group["trust_coeff"]) == (0.9, 0, 0.001)
    assert (group["trust_clip"], group["always_adapt"], group["nesterov"]) == (False, True, False)
    assert {hook["type"] for hook in config.custom_hooks} == {"KeepFrozen", "AccuracyHistory"}


def test_the_test_view_of_linear_evaluation_is_bilinear_to_a_shorter_side_of_256(tmp_path):
    (tmp_path / "val" / "a").mkdir(parents=True)
    Image.effect_noise((500, 375), 60).convert("RGB").save(tmp_path / "val" / "a" / "0.png")
    options = config_of("imagenet", "linear").val_dataloader.dataset
    data = LabelledView(dict(name="folder", root=str(tmp_path), split="test"), size=options.size, resize=options.resize)
    shrink, crop = data.transform.transforms[:2]
    assert (shrink.size, shrink.interpolation.value, crop.size) == (256, "bilinear", (224, 224))
    assert data[0]["inputs"].shape == (3, 224, 224)
