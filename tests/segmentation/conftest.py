from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.dense import broken, place, tiny_data

__all__ = ["broken", "place", "small_ade20k", "tiny_data"]


@pytest.fixture
def small_ade20k(tmp_path: Path) -> Path:
    """A data root with ADE20K's layout: six training and three validation images, labels 0 to 150, one image tall."""
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(0)
    photos = load_sample_images().images
    root = tmp_path / "data" / "ADEChallengeData2016"
    for split, short, sizes in (
        ("training", "train", [(96, 128), (90, 90), (128, 96), (128, 80), (100, 150), (80, 120)]),
        ("validation", "val", [(96, 128), (130, 70), (60, 200)]),
    ):
        for kind in ("images", "annotations"):
            (root / kind / split).mkdir(parents=True)
        for number, (height, width) in enumerate(sizes, start=1):
            name = f"ADE_{short}_{number:08d}"
            y, x = rng.integers(0, 427 - height), rng.integers(0, 640 - width)
            crop = photos[number % 2][y : y + height, x : x + width]
            Image.fromarray(crop).save(root / "images" / split / f"{name}.jpg")
            blocks = rng.integers(0, 151, (4, 4), dtype=np.uint8)
            labels = Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST)
            labels.save(root / "annotations" / split / f"{name}.png")
    return root.parent
