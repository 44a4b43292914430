"""The random views of images: the data sets that draw them, and the order of the draws."""

import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_dist_info
from mmengine.registry import DATA_SAMPLERS, DATASETS
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from common.cli import UserError
from common.data import LabelledImages, evaluation_transform
from common.draws import Draw, mix, seeded
from pretrain.augmentation import build_augmentation
from pretrain.data import open_images


@DATASETS.register_module()
class MultiView(Dataset[dict[str, Any]]):
    """Images without labels, each as `num_views` independent random views.

    `images`: arguments of `pretrain.data.open_images`; `augmentation`: see `build_augmentation`. What a
    visit draws depends on its seed alone, so a run gives the same views with any number of workers, and no
    two workers draw the same ones.

    With `skip_corrupt`, a file that cannot be read is named on stderr and the next place takes its turn, with
    the visit's own seed; "skipped" then counts the files that this visit passed over.
    """

    def __init__(
        self,
        images: dict[str, Any],
        augmentation: Sequence[dict[str, Any]],
        num_views: int = 2,
        skip_corrupt: bool = False,
    ) -> None:
        self.images: LabelledImages = open_images(**images)
        self.transform, self.num_views = build_augmentation(augmentation), num_views
        self.skip_corrupt = skip_corrupt

    def __len__(self) -> int:
        return len(self.images.labels)

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        if self.skip_corrupt:
            image, skipped = self._next_readable(draw.place)
            return {"inputs": self._views(image, draw.seed), "skipped": skipped}
        return {"inputs": self._views(self.images.image(draw.place), draw.seed)}

    def _views(self, image: Image.Image, seed: int) -> list[Tensor]:
        pixels = np.asarray(image)  # once for all views
        with seeded(seed):
            return [self.transform(pixels) for _ in range(self.num_views)]

    def _next_readable(self, place: int) -> tuple[Image.Image, int]:
        """Return the first image from `place` on that can be read, and how many could not."""
        for skipped in range(len(self)):
            try:
                return self.images.image((place + skipped) % len(self)), skipped
            except UserError as error:
                print(f"skipping: {error}", file=sys.stderr, flush=True)
        raise UserError(f"none of the {len(self)} images of {self.images.name} can be read; restore the data set")


@DATASETS.register_module()
class LabelledView(Dataset[dict[str, Any]]):
    """Images with labels, each through one transform, for the linear classifier.

    With `augmentation` (see `build_augmentation`), a random view, as `MultiView` draws it; without, the test
    transform of `size` and `resize` (`common.data.evaluation_transform`).
    """

    def __init__(
        self,
        images: dict[str, Any],
        augmentation: Sequence[dict[str, Any]] | None = None,
        size: int = 224,
        resize: Any = None,
    ) -> None:
        self.images: LabelledImages = open_images(**images)
        test_view = evaluation_transform(size, resize=resize, interpolation="bilinear")  # PROTOCOLS 3.2
        self.transform = build_augmentation(augmentation) if augmentation else test_view

    def __len__(self) -> int:
        return len(self.images.labels)

    def __getitem__(self, draw: Draw | int) -> dict[str, Any]:
        index, seed = (draw.place, draw.seed) if isinstance(draw, Draw) else (draw, None)
        image, label = self.images.image(index), int(self.images.labels[index])
        if seed is None:
            return {"inputs": self.transform(image), "labels": label}
        with seeded(seed):
            return {"inputs": self.transform(image), "labels": label}


@DATA_SAMPLERS.register_module()
class EpochSampler(Sampler[Draw]):
    """Every image once an epoch, in an order that the seed and the epoch fix, shared out over the ranks.

    The last images that do not give every rank the same number are left out, as the paper's
    `drop_last=True` does with a batch. An iteration yields the images from `skip` to `stop` of the epoch;
    `skip` counts once: those that a run saw before it was interrupted.
    """

    def __init__(self, dataset: Dataset, seed: int | None = None, shuffle: bool = True) -> None:
        self.size, self.seed, self.shuffle, self.epoch = len(dataset), seed or 0, shuffle, 0  # type: ignore[arg-type]
        self.rank, self.world_size = get_dist_info()
        self.skip, self.stop = 0, len(self)

    def __len__(self) -> int:
        return self.size // self.world_size

    def set_epoch(self, epoch: int) -> None:
        """Make the next iteration that of `epoch` (mmengine's DistSamplerSeedHook calls it)."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[Draw]:
        generator = torch.Generator().manual_seed(mix(self.seed, self.epoch))
        order = torch.randperm(self.size, generator=generator) if self.shuffle else torch.arange(self.size)
        mine = order[self.rank : len(self) * self.world_size : self.world_size]
        skip, self.skip = self.skip, 0
        for index in mine[skip : self.stop].tolist():
            yield Draw(index, mix(self.seed, self.epoch, index))
