"""ADE20K's layout, with ADE20K's classes or others, and a reader of class maps that names broken files."""

from typing import Any

import numpy as np
from mmseg.datasets import ADE20KDataset
from mmseg.datasets.transforms import LoadAnnotations
from mmseg.registry import DATASETS, TRANSFORMS

from common.cli import UserError


@DATASETS.register_module()
class ADE20K(ADE20KDataset):
    """mmseg's ADE20KDataset: label 0 is ignored, label k is class k - 1 of `metainfo["classes"]`.

    mmseg takes other classes for a selection of ADE20K's 150; here they are what the maps' labels mean.
    """

    @classmethod
    def get_label_map(cls, new_classes: Any = None) -> None:
        """Return None: labels stay as they are in the files."""

    def load_data_list(self) -> list[dict[str, Any]]:
        """Return one entry an image in the order of their names, with the number of classes."""
        entries = super().load_data_list()
        if not entries:
            raise UserError(f"data set folder {self.data_prefix['img_path']} holds no {self.img_suffix} images")
        return [{**entry, "num_classes": len(self._metainfo["classes"])} for entry in entries]


@TRANSFORMS.register_module()
class LoadClassMap(LoadAnnotations):
    """mmseg's LoadAnnotations; raises UserError naming a map that is missing, broken or beyond the classes."""

    def _load_seg_map(self, results: dict[str, Any]) -> None:
        path = results["seg_map_path"]
        try:
            super()._load_seg_map(results)
        except FileNotFoundError:
            raise UserError(f"annotation {path} is missing; restore the data set") from None
        except (OSError, SyntaxError, ValueError) as error:
            raise UserError(f"annotation {path} is truncated or corrupt ({error}); restore it") from None
        labels = results["gt_seg_map"]
        if labels.shape != results["ori_shape"]:
            raise UserError(f"annotation {path} is {labels.shape}, but its image is {results['ori_shape']} pixels")
        highest = int(np.where(labels == 255, 0, labels).max())
        if highest >= results["num_classes"]:
            raise UserError(f"annotation {path} has label {highest + 1}; there are {results['num_classes']} classes")
