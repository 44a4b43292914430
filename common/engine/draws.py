"""Random draws of images that a resumed run repeats bit for bit, with any number of workers."""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.dist import get_dist_info
from mmengine.registry import DATA_SAMPLERS, DATASETS
from torch.utils.data import Dataset, Sampler

from common.preflight import image_size


class Draw(NamedTuple):
    """One visit to an image: its place in the data set, and the seed of every random choice of that visit."""

    place: Any  # the index, unless the data set takes more
    seed: int


def mix(*numbers: int) -> int:
    """Return a seed of 63 bits from the BLAKE2b hash of the numbers: the same in every version of Python."""
    digest = hashlib.blake2b(repr(tuple(map(int, numbers))).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") & (2**63 - 1)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw the random numbers of torch (CPU), NumPy and Python from `seed` inside; leave the streams outside alone."""
    states = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(states[0])
            random.setstate(states[1])


@DATASETS.register_module()
class Drawn(Dataset[Any]):
    """A data set of mmdet's or mmseg's whose random transforms draw from the seed of each visit alone."""

    def __init__(self, dataset: dict[str, Any]) -> None:
        self.dataset = DATASETS.build(dataset)

    def full_init(self) -> None:
        """Read the annotations."""
        self.dataset.full_init()

    @property
    def metainfo(self) -> dict[str, Any]:
        """Classes and palette."""
        return self.dataset.metainfo

    def get_data_info(self, place: int) -> dict[str, Any]:
        """Return what the annotations say of an image."""
        return self.dataset.get_data_info(place)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, draw: Draw) -> Any:
        with seeded(draw.seed):
            return self.dataset[draw.place]


@DATA_SAMPLERS.register_module()
class EndlessBatches(Sampler[list[Draw]]):
    """Batches without end from mmengine's InfiniteSampler.

    With `by_shape`, tall images (height > width) and the others never share a batch, which saves padding:
    detectron2's and CSAIL's loaders do so. An iteration leaves out the first `skip` batches, those that a run
    saw before it was interrupted, without reading an image. `sizes`, (width, height) by path, are those of images
    whose annotations do not say it; of an image that neither knows, the file is opened.
    """

    def __init__(self, sampler: Any, batch_size: int, drop_last: bool = False, by_shape: bool = False) -> None:
        self.sampler, self.batch_size, self.drop_last, self.by_shape = sampler, batch_size, drop_last, by_shape
        self.skip = 0
        self.sizes: dict[str, tuple[int, int]] = {}
        self._tall: dict[int, bool] = {}

    def __len__(self) -> int:
        return max(1, len(self.sampler) // self.batch_size)  # of one pass over the data

    def __iter__(self) -> Iterator[list[Draw]]:
        rank, _ = get_dist_info()
        groups: tuple[list[Draw], list[Draw]] = ([], [])
        for visit, place in enumerate(self.sampler):
            group = groups[self.by_shape and self._is_tall(place)]
            group.append(Draw(place, mix(self.sampler.seed, rank, visit)))
            if len(group) < self.batch_size:
                continue
            if self.skip:
                self.skip -= 1
            else:
                yield list(group)
            group.clear()

    def _is_tall(self, place: int) -> bool:
        if place not in self._tall:
            width, height = self._size(self.sampler.dataset.get_data_info(place))
            self._tall[place] = height > width
        return self._tall[place]

    def _size(self, info: dict[str, Any]) -> tuple[int, int]:
        if "width" in info:
            return info["width"], info["height"]
        path = Path(info["img_path"])
        return self.sizes.get(str(path)) or image_size(path)
