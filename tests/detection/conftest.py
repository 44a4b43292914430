from pathlib import Path

import pytest

from detection import register
from tests.dense import broken, place, tiny_data
from tests.detection.layouts import write_coco, write_voc

__all__ = ["broken", "official", "place", "tiny_data"]


@pytest.fixture
def official(tmp_path: Path) -> Path:
    """A data root with small copies of VOC and COCO in their official layouts."""
    register()
    from mmdet.datasets import CocoDataset, VOCDataset

    write_voc(tmp_path / "data" / "VOCdevkit", VOCDataset.METAINFO["classes"])
    write_coco(tmp_path / "data" / "coco", CocoDataset.METAINFO["classes"])
    return tmp_path / "data"
