"""The networks that a checkpoint can hold, by name, under torchvision's parameter names.

They are not in `pretrain/` because every room reads checkpoints and must build what they hold.
"""

from functools import cache
from typing import Any

import timm
import torch
from torch import nn

# The paper's ResNet-18 for CIFAR-10 (C.2) as lightly builds it, without the ReLU after the stem's BN (PROTOCOLS 2),
# the same network with that ReLU, and the first one at a quarter of its width.
CIFAR = ("resnet18_cifar", "resnet18_cifar_stemrelu", "resnet18_cifar_quarter")
# torchvision's ResNets, which have the same names in timm, and ours for 32 pixels.
RESNETS = (
    *("resnet18", "resnet50", "resnet18_cifar", "resnet34", "resnet101", "resnet152"),
    "resnet18_cifar_quarter",
    *("wide_resnet50_2", "wide_resnet101_2", "resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"),
)


def build_backbone(name: str, *, zero_init_residual: bool = False) -> nn.Module:
    """Return a network mapping images (N, 3, H, W) float32 to pooled features (N, D) float32.

    `name` is a convolutional network of timm (`resnet18`, `resnet50`, ...), `resnet18_cifar` (3x3 stem of stride 1
    without ReLU, no max-pool, PyTorch's default initialisation), `resnet18_cifar_stemrelu` (the same with the ReLU) or
    `resnet18_cifar_quarter` (the first with 16 to 128 channels instead of 64 to 512).
    `zero_init_residual` starts the last BN weight of every residual block at 0, the authors' ImageNet setting. Raises
    ValueError for an unknown name.
    """
    base = "resnet18" if name in CIFAR else name
    if base not in _known():
        raise ValueError(f"unknown backbone '{name}'; known: timm's convolutional networks and {', '.join(CIFAR)}")
    options: dict[str, Any] = {"zero_init_last": zero_init_residual} if base.startswith("resnet") else {}
    if name.endswith("_quarter"):
        # timm widens the stem by its deep form alone, whose convolutions `_to_cifar` replaces.
        options |= {"channels": (16, 32, 64, 128), "stem_type": "deep", "stem_width": 8}
    network = timm.create_model(base, pretrained=False, num_classes=0, **options)
    if name in CIFAR:
        _to_cifar(network, stem_relu=name.endswith("_stemrelu"))
        if zero_init_residual:
            for block in network.modules():
                if hasattr(block, "zero_init_last"):
                    block.zero_init_last()
    return network


def feature_dim(network: nn.Module) -> int:
    """Return D, the width of the pooled features of a network from `build_backbone`."""
    # Some networks of timm widen the features between the last stage (num_features) and the classifier.
    return int(getattr(network, "head_hidden_size", network.num_features))  # type: ignore[arg-type]


def architecture_of(state_dict: dict[str, torch.Tensor]) -> str | None:
    """Return the architecture whose parameters have exactly these names and shapes, or None."""
    shapes = {key: tuple(value.shape) for key, value in state_dict.items()}
    for arch in RESNETS:
        if shapes == shapes_of(arch):
            return arch
    return None


@cache
def shapes_of(arch: str) -> dict[str, tuple[int, ...]]:
    """Return name -> shape of every parameter and buffer of `arch`, without allocating them."""
    with torch.device("meta"):
        network = build_backbone(arch)
    return {key: tuple(value.shape) for key, value in network.state_dict().items()}


@cache
def _known() -> frozenset[str]:
    return frozenset(timm.list_models())


def _to_cifar(network: nn.Module, *, stem_relu: bool) -> None:
    width: int = network.bn1.num_features  # type: ignore[union-attr, assignment]
    network.conv1 = nn.Conv2d(3, width, kernel_size=3, stride=1, padding=1, bias=False)
    network.maxpool = nn.Identity()
    if not stem_relu:
        network.act1 = nn.Identity()
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
            module.reset_parameters()
