"""Views per second of one worker: the authors' recipe on PIL images, and ours. `make bench` shows their ratio.

Both read the same JPEGs of 500x375 pixels, about ImageNet's mean size, decode each once and draw two views of it.
"""

import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
from PIL import Image, ImageFilter
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from common.bench import write_photos
from common.config import load_config
from common.images import IMAGENET_MEAN, IMAGENET_STD
from pretrain.views import EpochSampler, MultiView

BATCH = 32
CONFIG = Path(__file__).parent / "configs/imagenet/simsiam.py"


def measure(images: int = 256, repeats: int = 5) -> dict[str, float]:
    """Return the median views per second of `reference` and `ours` over `repeats` epochs each, and their `ratio`.

    Each has one worker, and their epochs alternate, so that other work on the machine slows both.
    """
    with tempfile.TemporaryDirectory() as folder:
        write_photos(Path(folder) / "train" / "photos", images)
        loaders = {"reference": reference_loader(Path(folder)), "ours": our_loader(Path(folder))}
        for loader in loaders.values():  # starts the workers
            views_per_second(loader)
        rates: dict[str, list[float]] = {name: [] for name in loaders}
        for _ in range(repeats):
            for name, loader in loaders.items():
                rates[name].append(views_per_second(loader))
    medians = {name: statistics.median(rate) for name, rate in rates.items()}
    return medians | {"ratio": medians["ours"] / medians["reference"]}


def reference_loader(root: Path) -> DataLoader:
    """Return a loader of B.1 as SimSiam's and the authors' code writes it (`main_pretrain.py`, `gsg/loader.py`)."""

    def blur(image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))  # noqa: S311  (as they do)

    view = transforms.Compose(
        [
            transforms.RandomResizedCrop(224, scale=(0.2, 1.0)),
            transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            transforms.RandomGrayscale(p=0.2),
            transforms.RandomApply([blur], p=0.5),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )
    two_views: Callable[[Image.Image], list[Tensor]] = lambda image: [view(image), view(image)]  # noqa: E731
    data = ImageFolder(str(root / "train"), two_views)
    return DataLoader(data, BATCH, shuffle=True, num_workers=1, persistent_workers=True)


def our_loader(root: Path) -> DataLoader:
    """Return a loader of B.1 by the ImageNet config."""
    augmentation = load_config(CONFIG).train_dataloader.dataset.augmentation
    data = MultiView(dict(name="folder", root=str(root), split="train"), augmentation)
    cv2.setNumThreads(0)  # as in training, where mmengine's Runner does so; the worker inherits it
    return DataLoader(data, BATCH, sampler=EpochSampler(data), num_workers=1, persistent_workers=True)


def views_per_second(loader: DataLoader) -> float:
    """Return the rate of one epoch."""
    start = time.perf_counter()
    for _ in loader:
        pass
    return 2 * len(loader.dataset) / (time.perf_counter() - start)  # type: ignore[arg-type]
