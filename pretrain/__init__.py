"""Pretraining by SimSiam or BYOL, with or without GSG, and its evaluation by kNN and a linear probe."""

from collections.abc import Mapping
from typing import Any


def register() -> Mapping[str, Any]:
    """Make what the room's configs name known to mmengine's registries. Return the augmentations, which are in none."""
    from pretrain import augmentation, hooks, loop, methods, optim, probe, views  # noqa: F401

    return augmentation.AUGMENTATIONS
