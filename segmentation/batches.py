"""Batches of images at one scale."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from mmengine.registry import DATA_SAMPLERS

from common.engine.draws import Draw, EndlessBatches


class Scaled(NamedTuple):
    """A place in the data set, and the (longest, shorter) side in pixels to resize the image to."""

    place: int
    scale: tuple[int, int]


@DATA_SAMPLERS.register_module()
class ScaledBatches(EndlessBatches):
    """EndlessBatches with one of `scales` per batch, as in CSAIL's loader; mmseg draws one per image.

    The data set must take `Scaled` places. The scale follows from the seed of the batch's first visit.
    """

    def __init__(self, *args: Any, scales: Sequence[tuple[int, int]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.scales = scales

    def __iter__(self) -> Iterator[list[Any]]:
        for batch in super().__iter__():
            scale = self.scales[int(np.random.default_rng(batch[0].seed).integers(len(self.scales)))]
            yield [Draw(Scaled(visit.place, scale), visit.seed) for visit in batch]
