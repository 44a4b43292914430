"""Projector and predictor of appendix C, as plain Sequentials."""

from itertools import pairwise

from torch import nn


def projector(
    in_dim: int, *, layers: int, dim: int = 2048, last_affine: bool = False, last_bias: bool = True
) -> nn.Sequential:
    """Return the projector (N, in_dim) to (N, dim): `layers` FC layers, BN after each, ReLU between them.

    Appendix C.1 (ImageNet): 3 layers, `last_affine=False`, and a bias in the last FC that never learns, since
    the BN after it cancels it (the authors keep torchvision's `fc` there). Appendix C.2 (CIFAR-10): 2 layers,
    `last_affine=True`, `last_bias=False` (lightly's head).
    """
    widths = [in_dim] + [dim] * layers
    modules: list[nn.Module] = []
    for before, after in pairwise(widths[:-1]):
        modules += [nn.Linear(before, after, bias=False), nn.BatchNorm1d(after), nn.ReLU(inplace=True)]
    last = nn.Linear(widths[-2], dim, bias=last_bias)
    if last_bias:
        last.bias.requires_grad_(False)
    return nn.Sequential(*modules, last, nn.BatchNorm1d(dim, affine=last_affine))


def predictor(dim: int = 2048, *, hidden_dim: int = 512) -> nn.Sequential:
    """Return the predictor (N, dim) to (N, dim): FC, BN, ReLU, FC with bias (bottleneck; C.1 and C.2)."""
    return nn.Sequential(
        nn.Linear(dim, hidden_dim, bias=False),
        nn.BatchNorm1d(hidden_dim),
        nn.ReLU(inplace=True),
        nn.Linear(hidden_dim, dim),
    )
