"""Guided Stop-gradient: the paper's Algorithm 1, as one function of tensors.

The guide picks one of the four pairs (view of the image, view of the reference). The two views of that pair
predict, each the other view of its own image; those other two views are the targets.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Pair = tuple[Tensor, Tensor]  # one tensor for the first view of each image, one for the second
GUIDES = ("none", "nearest", "farthest", "random")


class Views(NamedTuple):
    """Projections z and predictions p of the two views of a batch of images, each (N, d) float."""

    z1: Tensor
    z2: Tensor
    p1: Tensor
    p2: Tensor

    def at(self, index: Tensor) -> "Views":
        """Return the views of the images `index` (M,) int64: each field (M, d)."""
        return Views(*(field[index] for field in self))


def negative_cosine(p: Tensor, z: Tensor) -> Tensor:
    """Return D(p, sg(z)) of each row: p, z (N, d) to (N,) in [-1, 1]. No gradient flows into z."""
    return -F.cosine_similarity(p, z.detach(), dim=-1)


def gsg_loss(image: Views, reference: Views | None = None, guide: str = "nearest") -> Tensor:
    """Return the mean loss of Algorithm 1 (paper, appendix A) over N pairs of images: a scalar in [-1, 1].

    `image` and `reference` hold (N, d) tensors; row n of one is paired with row n of the other. The guide
    picks a pair of views by the Euclidean distance of their unnormalised projections: `nearest` (the
    paper's; the first of 11-21, 11-22, 12-21, 12-22 on ties), `farthest`, or `random`. `none` is the plain
    symmetric loss of `image` (SimSiam, equation 4 of Chen and He), and needs no reference. For BYOL, z are
    the target network's projections. Gradients flow through p alone. Raises ValueError for another guide
    or a missing reference.

    >>> one = torch.eye(2)
    >>> gsg_loss(Views(one, one, one, one), guide="none")
    tensor(-1.)
    """
    if guide == "none":
        return 0.5 * (negative_cosine(image.p1, image.z2) + negative_cosine(image.p2, image.z1)).mean()
    if reference is None:
        raise ValueError(f"the guide '{guide}' compares with a reference image: pass `reference`")
    v, w = choose_views(image[:2], reference[:2], guide)
    return 0.5 * (_predict_partner(image, v) + _predict_partner(reference, w)).mean()


@torch.no_grad()
def choose_views(image: Pair, reference: Pair, guide: str) -> tuple[Tensor, Tensor]:
    """Return (v, w), each (N,) int64 of 0 and 1: the views of image and reference that learn.

    `image` and `reference` are the projections (N, d) of their two views.
    """
    z, r = torch.stack(image, dim=1), torch.stack(reference, dim=1)  # (N, 2, d) each
    distance = (z[:, :, None] - r[:, None, :]).norm(dim=-1).flatten(1)  # (N, 4): 11-21, 11-22, 12-21, 12-22
    if guide == "nearest":
        pair = distance.argmin(dim=1)  # the first of equal minima
    elif guide == "farthest":
        pair = distance.argmax(dim=1)
    elif guide == "random":
        pair = sent(torch.randint(4, (len(distance),)), distance.device)
    else:
        raise ValueError(f"unknown guide '{guide}'; known: {', '.join(GUIDES)}")
    return pair // 2, pair % 2


def sent(draw: Tensor, device: torch.device) -> Tensor:
    """Return `draw` on `device`. Drawing on the CPU makes a seed give the same numbers for every device.

    The host does not wait for a GPU: the copy, from pinned memory, joins the GPU's queue.
    """
    return draw.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else draw.to(device)


def pick(view: Tensor, pair: Pair) -> Tensor:
    """Return row n of pair[view[n]] for every n: view (N,) of 0 and 1, pair two tensors (N, ...)."""
    first, second = pair
    return torch.where(view.bool().view(-1, *[1] * (first.ndim - 1)), second, first)


def _predict_partner(views: Views, chosen: Tensor) -> Tensor:
    """Return (N,): each row's loss of the chosen view's prediction against the other view's projection."""
    return negative_cosine(pick(chosen, (views.p1, views.p2)), pick(1 - chosen, (views.z1, views.z2)))
