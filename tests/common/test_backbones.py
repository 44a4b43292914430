"""Backbones by name."""

import pytest
import torch
from torch import nn

from common.backbones import CIFAR, RESNETS, architecture_of, build_backbone, feature_dim, shapes_of


@pytest.mark.parametrize(("arch", "width"), [("resnet18", 512), ("resnet50", 2048), ("resnet18_cifar", 512)])
def test_images_become_pooled_features(arch, width):
    network = build_backbone(arch).eval()
    with torch.no_grad():
        assert network(torch.zeros(2, 3, 32, 32)).shape == (2, width)
    assert feature_dim(network) == width


@pytest.mark.parametrize(
    "arch", ["resnet19", "", "_cifar", "resnet19_cifar", "resnet18_cifar_x", "vgg16_cifar", "vgg16_w2"]
)
def test_an_unknown_name_is_refused(arch):
    with pytest.raises(ValueError, match=f"unknown backbone '{arch}'; known: "):
        build_backbone(arch)


def test_the_cifar_stem_keeps_the_resolution():
    network = build_backbone("resnet18_cifar")
    assert (network.conv1.kernel_size, network.conv1.stride, network.conv1.padding) == ((3, 3), (1, 1), (1, 1))
    seen = []
    network.layer1.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    network(torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    assert seen[0].shape == (2, 64, 32, 32)
    assert seen[0].min() < 0  # no ReLU after the stem (paper C.2)


def test_stem_relu_puts_the_relu_back():
    network = build_backbone("resnet18_cifar_stemrelu")
    seen = []
    network.layer1.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    network(torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    assert seen[0].min() == 0


@pytest.mark.parametrize("arch", ["resnet18", "resnet50", "resnet18_cifar"])
@pytest.mark.parametrize("zero", [False, True])
def test_zero_init_residual_starts_each_block_as_its_shortcut(arch, zero):
    network = build_backbone(arch, zero_init_residual=zero)
    last = "bn3" if arch == "resnet50" else "bn2"
    weights = [p for name, p in network.named_parameters() if name.endswith(f"{last}.weight")]
    assert len(weights) in (8, 16)
    assert all(torch.all(weight == (0 if zero else 1)) for weight in weights)


def test_the_cifar_network_starts_from_pytorch_s_defaults():
    torch.manual_seed(0)
    weight = build_backbone("resnet18_cifar").layer4[1].conv2.weight
    bound = (512 * 9) ** -0.5  # Conv2d draws uniformly from +-1/sqrt(fan in)
    assert 0.95 * bound < weight.abs().max() <= bound


@pytest.mark.parametrize("arch", RESNETS)
def test_an_architecture_is_known_by_its_tensors(arch):
    with torch.device("meta"):
        state = build_backbone(arch).state_dict()
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    assert architecture_of(shapes) == arch
    assert shapes_of(arch) == shapes
    del shapes["layer3.0.bn1.running_mean"]
    assert architecture_of(shapes) == arch  # the nearest
    assert architecture_of({key: shape for key, shape in shapes.items() if "layer3.1" not in key}) is None


@pytest.mark.parametrize("cifar", CIFAR)
def test_a_3x3_stem_is_one_for_32_pixels(cifar):
    assert architecture_of(shapes_of(f"resnet34{cifar}"), cifar=cifar) == f"resnet34{cifar}"


def test_a_quarter_of_the_width_has_a_quarter_of_every_layer():
    whole, quarter = shapes_of("resnet18_cifar"), shapes_of("resnet18_cifar_quarter")
    expected = {name: tuple(n if n < 64 else n // 4 for n in shape) for name, shape in whole.items()}
    assert quarter == expected
    assert architecture_of(quarter) == "resnet18_cifar_quarter"


def test_twice_the_width_has_twice_of_every_layer():
    whole, twice = shapes_of("resnet50"), shapes_of("resnet50_w2")
    assert twice == {name: tuple(n if n < 64 else n * 2 for n in shape) for name, shape in whole.items()}
    assert architecture_of(twice) == "resnet50_w2"
    assert feature_dim(build_backbone("resnet18_w2")) == 1024


def test_the_classifier_is_left_out():
    assert not any(isinstance(module, nn.Linear) for module in build_backbone("resnet18").modules())
