"""Damaged images and class maps: they are read or refused in one line."""

from pathlib import Path

import pytest

from segmentation.labels import Labels
from segmentation.preflight import check_pair
from tests.fuzzing import fuzz


@pytest.mark.parametrize("damaged", [0, 1])
def test_class_maps_and_their_images(small_ade20k: Path, damaged: int) -> None:
    root = small_ade20k / "ADEChallengeData2016"
    pair = (root / "images/training/ADE_train_00000001.jpg", root / "annotations/training/ADE_train_00000001.png")
    fuzz(pair[damaged], lambda: check_pair(pair, Labels(range(1, 151), 0)), 60, named=Path("ADE_train_00000001"))
