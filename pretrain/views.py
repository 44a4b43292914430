"""The random views of images: the data sets that draw them, and the order of the draws."""

import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import torch
from mmengine.dist import get_dist_info
from mmengine.registry import DATA_SAMPLERS, DATASETS, FUNCTIONS
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Sampler, default_collate
from tqdm import tqdm

from common.engine.draws import Draw, mix, seeded
from common.errors import UserError
from common.features import evaluation_transform, pick_workers
from common.images import ImageFiles, LabelledImages
from pretrain.augmentation import RandomResizedCrop, build_augmentation, build_steps
from pretrain.data import open_images

T = TypeVar("T")
# A crop decoded at a reduced scale is larger than the view by at least this factor. Then crops of photographs are
# within 2 levels of PIL's on average; at 1 they are 2.7 off (DCT scaling keeps frequencies that PIL's filter removes).
MARGIN = 1.5
HELD_SIDE, HELD_BYTES = 128, 4 * 2**30  # a data set is held whole up to this side of its images and these bytes


@DATASETS.register_module()
class MultiView(Dataset[dict[str, Any]]):
    """Images without labels, each as `num_views` independent random views.

    `images`: arguments of `pretrain.data.open_images`; `augmentation`: see `build_augmentation`. A visit's
    views depend on its seed alone, so a run gives the same views with any number of workers, and no two
    workers draw the same ones.

    With `skip_corrupt`, a file that cannot be read is named on stderr and replaced by the next one, with the
    visit's own seed; "skipped" then counts the files that the visit skipped.
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
            inputs, skipped = self._next_readable(draw.place, lambda place: self._views(place, draw.seed))
            return {"inputs": inputs, "skipped": skipped}
        return {"inputs": self._views(draw.place, draw.seed)}

    def _views(self, place: int, seed: int) -> list[Tensor]:
        pixels = np.asarray(self.images.image(place))  # once for all views
        with seeded(seed):
            return [self.transform(pixels) for _ in range(self.num_views)]

    def _next_readable(self, place: int, read: Callable[[int], T]) -> tuple[T, int]:
        """Return what `read` returns for the first image from `place` on that is readable, and how many were not."""
        for skipped in range(len(self)):
            try:
                return read((place + skipped) % len(self)), skipped
            except UserError as error:
                print(f"skipping: {error}", file=sys.stderr, flush=True)
        raise UserError(f"none of the {len(self)} images of {self.images.name} can be read; restore the data set")


@DATASETS.register_module()
class PixelBatches(MultiView):
    """Images for `pretrain.device_views.DeviceViews`, which makes the views: uint8 pixels instead of finished views.

    A data set of one small size is held whole: `pixels` (M, 3, H, W) uint8 has all of its images, and a batch gives
    places in it. For any other, `pixels` is None, and a visit decodes an image and crops it `num_views` times by the
    list's first step, RandomResizedCrop; a JPEG is decoded at 1/2, 1/4 or 1/8 of its scale if all of the visit's
    crops stay larger than the view by MARGIN. A batch holds "inputs" (places (N,) int64, or crops (N, 3, H, W) uint8,
    one tensor per view) and "seed" (N,) int64, the visits' seeds.
    """

    def __init__(
        self,
        images: dict[str, Any],
        augmentation: Sequence[dict[str, Any]],
        num_views: int = 2,
        skip_corrupt: bool = False,
    ) -> None:
        super().__init__(images, augmentation, num_views, skip_corrupt)
        self.pixels = self._read_all()
        self.augmentation = augmentation  # what is left to the device
        if self.pixels is not None:
            return
        first = [step for step, p in build_steps(augmentation[:1]) if p == 1]
        if not (first and isinstance(first[0], RandomResizedCrop)):
            raise UserError(
                f"config: device views of {self.images.name}, whose images are large or of several sizes, need "
                "RandomResizedCrop as the first augmentation; put it there, or leave --device-views out"
            )
        self.augmentation, self.crop = augmentation[1:], first[0]

    def __getitems__(self, draws: Sequence[Draw]) -> Any:
        if self.pixels is None:
            return [self[draw] for draw in draws]
        places, seeds = ([draw[k] for draw in draws] for k in (0, 1))
        return {"inputs": torch.tensor(places), "seed": torch.tensor(seeds)}

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        return {**super().__getitem__(draw), "seed": draw.seed}

    def _views(self, place: int, seed: int) -> list[Tensor]:
        boxes: list[tuple[int, int, int, int]] = []
        stored = [0, 0]

        def reduction(size: tuple[int, int]) -> float:
            stored[:] = size
            frame = torch.empty(1).expand(3, size[1], size[0])  # get_params reads nothing but its shape
            with seeded(seed):
                boxes[:] = [
                    self.crop.get_params(frame, self.crop.scale, self.crop.ratio) for _ in range(self.num_views)
                ]
            height, width = self.crop.size
            return min(min(box[2] / height, box[3] / width) for box in boxes) / MARGIN

        if isinstance(self.images, ImageFiles):
            image = self.images.image(place, reduction)
        else:
            image = self.images.image(place)
            reduction(image.size)
        if image.size == tuple(stored):
            pixels = np.asarray(image)
            crops = [self.crop.crop(pixels, box) for box in boxes]
        else:
            crops = [self._reduced(image, box, stored[0] / image.width) for box in boxes]
        return [torch.from_numpy(crop).permute(2, 0, 1).contiguous() for crop in crops]

    def _reduced(self, image: Image.Image, box: tuple[int, int, int, int], factor: float) -> np.ndarray:
        """Return the crop of an image that was decoded at 1 / `factor` of its scale; `box` is in stored pixels."""
        top, left, height, width = (length / factor for length in box)
        right, bottom = min(left + width, image.width), min(top + height, image.height)
        size = self.crop.size[::-1]
        return np.array(image.resize(size, Image.Resampling.BILINEAR, (left, top, right, bottom)))

    def _read_all(self) -> Tensor | None:
        """Return all images if they are small and of one size, else None."""
        count, image = len(self), self._image(0)
        size = image.size
        if max(size) > HELD_SIDE or 3 * count * size[0] * size[1] > HELD_BYTES:
            return None
        pixels = np.empty((count, size[1], size[0], 3), dtype=np.uint8)
        with ThreadPoolExecutor(pick_workers(count) or 1) as pool:
            read = pool.map(self._image, range(count))
            for place, image in enumerate(tqdm(read, f"reading {self.images.name}", count, unit="img", leave=False)):
                if image.size != size:
                    pool.shutdown(cancel_futures=True)
                    return None
                pixels[place] = np.asarray(image)
        return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()

    def _image(self, place: int) -> Image.Image:
        return self._next_readable(place, self.images.image)[0] if self.skip_corrupt else self.images.image(place)


@FUNCTIONS.register_module()
def collate_visits(batch: Any) -> Any:
    """Return a batch of `PixelBatches`: as it is if the data set made it whole, else its visits stacked."""
    return batch if isinstance(batch, dict) else default_collate(batch)


@DATASETS.register_module()
class LabelledView(Dataset[dict[str, Any]]):
    """Images with labels, each through one transform, for the linear classifier.

    With `augmentation` (see `build_augmentation`) that is a random view, drawn as in `MultiView`; without, it is the
    test transform of `size` and `resize` (`common.features.evaluation_transform`).
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
    """Every image once per epoch, in an order fixed by the seed and the epoch, divided among the ranks.

    Images at the end that do not divide evenly are left out, as the paper's `drop_last=True` leaves out a partial
    batch. An iteration yields the rank's images from `skip` to `stop`; `skip`, the number that an interrupted run
    has seen, applies to one iteration.
    """

    def __init__(self, dataset: Dataset, seed: int | None = None, shuffle: bool = True) -> None:
        self.size, self.seed, self.shuffle, self.epoch = len(dataset), seed or 0, shuffle, 0  # type: ignore[arg-type]
        self.rank, self.world_size = get_dist_info()
        self.skip, self.stop = 0, len(self)

    def __len__(self) -> int:
        return self.size // self.world_size

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration. mmengine's DistSamplerSeedHook calls it."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[Draw]:
        generator = torch.Generator().manual_seed(mix(self.seed, self.epoch))
        order = torch.randperm(self.size, generator=generator) if self.shuffle else torch.arange(self.size)
        # Drawn for all images at once: a hash per image would take a GPU's host longer than it takes for a step.
        seeds = torch.randint(2**63 - 1, (self.size,), generator=generator)
        mine = order[self.rank : len(self) * self.world_size : self.world_size]
        skip, self.skip = self.skip, 0
        mine = mine[skip : self.stop]
        for index, seed in zip(mine.tolist(), seeds[mine].tolist(), strict=True):
            yield Draw(index, seed)
