"""Class maps: which label in a file is which class."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.errors import UserError
from common.images import read_class_map

IGNORED = 255  # where a map of class indices has no class
UNKNOWN = 254  # no class has this index


class Labels(NamedTuple):
    """The label of each class, in the order of the classes, and the label of pixels without a class."""

    values: Sequence[int]
    ignored: int


def read_indices(path: Path, size: tuple[int, int], labels: Labels) -> np.ndarray:
    """Return the class indices (H, W) uint8 of a class map, IGNORED where it has no class.

    Raises UserError as `common.images.read_class_map` does for `size` (height, width), and naming a label that belongs
    to no class.
    """
    found = read_class_map(path, size, max(*labels.values, labels.ignored))
    table = np.full(256, UNKNOWN, dtype=np.uint8)
    table[labels.ignored] = IGNORED
    table[list(labels.values)] = np.arange(len(labels.values), dtype=np.uint8)
    indices = table[found]
    if (indices == UNKNOWN).any():
        label = found[indices == UNKNOWN][0]
        raise UserError(f"class map {path} has label {label}, which belongs to no class; correct the map")
    return indices
