"""The networks that a checkpoint can hold, by name, under torchvision's parameter names.

They are not in `pretrain/` because every room reads checkpoints and must build what they hold.
"""

import re
from functools import cache
from typing import Any

import timm
import torch
from torch import nn

# torchvision's ResNets, which have the same names in timm -> the number of blocks in each stage.
RESNETS = {
    **{"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3)},
    **{"resnet101": (3, 4, 23, 3), "resnet152": (3, 8, 36, 3)},
    **{"wide_resnet50_2": (3, 4, 6, 3), "wide_resnet101_2": (3, 4, 23, 3)},
    **{"resnext50_32x4d": (3, 4, 6, 3), "resnext101_32x8d": (3, 4, 23, 3), "resnext101_64x4d": (3, 4, 23, 3)},
}
# Endings of names for 32 pixels. The paper's ResNet-18 for CIFAR-10 (C.2) is `resnet18_cifar`: as lightly builds it,
# it has no ReLU after the stem's BN (PROTOCOLS 2). Most others have it, and solo-learn also pads by 2 (PROTOCOLS 8).
# `resnet18_cifar_quarter` is the paper's at a quarter of the width.
CIFAR = ("_cifar", "_cifar_stemrelu", "_cifar_pad2", "_cifar_quarter")


def build_backbone(name: str, *, zero_init_residual: bool = False) -> nn.Module:
    """Return a network mapping images (N, 3, H, W) float32 to pooled features (N, D) float32.

    `name` is a convolutional network of timm (`resnet18`, `resnet50`, ...), or one of RESNETS with an ending of CIFAR:
    `resnet18_cifar` (3x3 stem of stride 1 without ReLU, no max-pool, PyTorch's default initialisation),
    `resnet18_cifar_stemrelu` (the same with the ReLU), `resnet18_cifar_pad2` (also with padding 2 in the stem),
    `resnet18_cifar_quarter` (the first with 16 to 128 channels instead of 64 to 512, for any ResNet); or one of RESNETS
    of several times the width in all its layers, as SwAV's and SimCLR's `resnet50_w2`.
    `zero_init_residual` starts the last BN weight of every residual block at 0, the authors' ImageNet setting. Raises
    ValueError for an unknown name.
    """
    base, cifar, ending = name.partition("_cifar")
    wider = re.fullmatch(r"(\w+)_w([2-9])", name)
    base = wider[1] if wider else base
    if base not in (RESNETS if cifar or wider else _known()) or (cifar and cifar + ending not in CIFAR):
        raise ValueError(
            f"unknown backbone '{name}'; known: timm's convolutional networks, and ResNets with {', '.join(CIFAR)}, _w2"
        )
    options: dict[str, Any] = {"zero_init_last": zero_init_residual} if base.startswith("resnet") else {}
    width = 16 if ending == "_quarter" else 64 * int(wider[2]) if wider else 64
    if width != 64:
        # timm widens the stem by its deep form alone, whose convolutions are replaced.
        channels = tuple(width * times for times in (1, 2, 4, 8))
        options |= {"channels": channels, "stem_type": "deep", "stem_width": width // 2}
    network = timm.create_model(base, pretrained=False, num_classes=0, **options)
    if wider:
        network.conv1 = nn.Conv2d(3, width, kernel_size=7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    if cifar:
        _to_cifar(network, stem_relu=ending in ("_stemrelu", "_pad2"), padding=2 if ending == "_pad2" else 1)
        if zero_init_residual:
            for block in network.modules():
                if hasattr(block, "zero_init_last"):
                    block.zero_init_last()
    return network


def feature_dim(network: nn.Module) -> int:
    """Return D, the width of the pooled features of a network from `build_backbone`."""
    # Some networks of timm widen the features between the last stage (num_features) and the classifier.
    return int(getattr(network, "head_hidden_size", network.num_features))  # type: ignore[arg-type]


def architecture_of(shapes: dict[str, tuple[int, ...]], *, cifar: str = "_cifar_stemrelu") -> str | None:
    """Return the ResNet with as many blocks that has most of these names and shapes, or None if none has that many.

    `cifar` is the ending of CIFAR for networks of full width with a 3x3 stem.
    """
    numbers = [re.findall(rf"^layer{stage}\.(\d+)\.", "\n".join(shapes), re.M) for stage in range(1, 5)]
    blocks = tuple(len(set(stage)) for stage in numbers)
    stem = shapes.get("conv1.weight", ())
    ending = ("_cifar_quarter" if stem[0] == 16 else cifar) if stem[2:] == (3, 3) else ""
    if stem[2:] == (7, 7) and stem[0] in range(128, 640, 64):
        ending = f"_w{stem[0] // 64}"
    fitting = [f"{base}{ending}" for base, count in RESNETS.items() if count == blocks]
    return max(fitting, key=lambda arch: len(shapes.items() & shapes_of(arch).items()), default=None)


@cache
def shapes_of(arch: str) -> dict[str, tuple[int, ...]]:
    """Return name -> shape of every parameter and buffer of `arch`, without allocating them."""
    with torch.device("meta"):
        network = build_backbone(arch)
    return {key: tuple(value.shape) for key, value in network.state_dict().items()}


@cache
def _known() -> frozenset[str]:
    return frozenset(timm.list_models())


def _to_cifar(network: nn.Module, *, stem_relu: bool, padding: int) -> None:
    width: int = network.bn1.num_features  # type: ignore[union-attr, assignment]
    network.conv1 = nn.Conv2d(3, width, kernel_size=3, stride=1, padding=padding, bias=False)
    network.maxpool = nn.Identity()
    if not stem_relu:
        network.act1 = nn.Identity()
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
            module.reset_parameters()
