"""Alignment and uniformity of a backbone's features on the unit sphere (Wang and Isola, 2020)."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from PIL.Image import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import transforms as t
from tqdm import tqdm

from common.features import check_lengths, pick_device, pick_workers
from common.images import LabelledImages
from common.run import Subject

SEED = 0
BATCH = 64


def measure(
    subject: Subject, images: LabelledImages, views: Callable[[Image], Image], transform: Callable[[Image], Tensor]
) -> dict[str, float]:
    """Return the checkpoint's alignment and uniformity over two views of each image; the same views each time."""
    device = pick_device()
    backbone = subject.load().backbone().to(device)
    pairs: Any = TwoViews(images, views, transform)
    loader: DataLoader[Tensor] = DataLoader(pairs, BATCH, num_workers=pick_workers(len(images.labels)))
    parts = []
    with torch.inference_mode(), tqdm(total=len(images.labels), desc=subject.name, unit="img", leave=False) as bar:
        for batch in loader:  # (B, 2, 3, H, W)
            z = backbone(batch.flatten(0, 1).to(device)).float().cpu()
            check_lengths(z.numpy(), f"{subject.path} ({images.name})")
            parts.append(F.normalize(z, dim=1).unflatten(0, (-1, 2)))
            bar.update(len(batch))
    x, y = torch.cat(parts).unbind(1)
    return {"alignment": alignment(x, y), "uniformity": (uniformity(x) + uniformity(y)) / 2}


def alignment(x: Tensor, y: Tensor) -> float:
    """Return the mean squared distance of positive pairs x, y (N, D), both L2-normalised: in [0, 4].

    >>> alignment(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    1.0
    """
    return float((x - y).square().sum(1).mean())


def uniformity(x: Tensor) -> float:
    """Return log E exp(-2 d^2) over the distances d of all pairs of x (N, D), L2-normalised: in [-8, 0].

    >>> round(uniformity(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])), 4)
    -8.0
    """
    return float(torch.pdist(x).square().mul(-2).exp().mean().log())


class TwoViews:
    """Two random views (2, 3, H, W) of each image, the same each time and with any number of workers."""

    def __init__(
        self, images: LabelledImages, views: Callable[[Image], Image], transform: Callable[[Image], Tensor]
    ) -> None:
        self.images, self.views, self.transform = images, views, transform

    def __len__(self) -> int:
        return len(self.images.labels)

    def __getitem__(self, index: int) -> Tensor:
        image = self.images.image(index)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED + index)
            return torch.stack([self.transform(self.views(image)) for _ in range(2)])


def pretraining_views(dataset: str, size: int) -> Callable[[Image], Image]:
    """Return the pretraining's augmentation of PIL images: the paper's (B.1, B.2), and for digits the demo's."""
    if dataset == "digits":
        shift = t.RandomAffine(10, translate=(0.08, 0.08), scale=(0.9, 1.1))
        return t.Compose([shift, t.RandomApply([t.ColorJitter(0.4, 0.4)], 0.8)])
    colour = [t.RandomApply([t.ColorJitter(0.4, 0.4, 0.4, 0.1)], 0.8), t.RandomGrayscale(0.2)]
    if dataset in ("cifar10", "cifar100"):
        return t.Compose([t.RandomResizedCrop(32, (0.08, 1.0)), t.RandomHorizontalFlip(), *colour])
    blur = t.RandomApply([t.GaussianBlur(23, (0.1, 2.0))], 0.5)
    return t.Compose([t.RandomResizedCrop(size, (0.2, 1.0)), *colour, blur, t.RandomHorizontalFlip()])
