"""Data sets in ADE20K's layout, with its classes or others, and a reader of class maps that names broken files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import mmcv
import numpy as np
from mmcv.transforms import BaseTransform, to_tensor
from mmseg.datasets import ADE20KDataset
from mmseg.datasets.transforms import PackSegInputs
from mmseg.registry import DATASETS, TRANSFORMS

from common.errors import UserError
from segmentation.batches import Scaled
from segmentation.labels import Labels, read_indices


@DATASETS.register_module()
class ADE20K(ADE20KDataset):
    """mmseg's ADE20KDataset: label 0 is ignored, label k is class k - 1 of `metainfo["classes"]`.

    mmseg treats other classes as a selection of ADE20K's 150; here they are the meanings of the maps' labels.
    """

    # Stripped because mmseg has a blank after "bed".
    METAINFO: ClassVar = {**ADE20KDataset.METAINFO, "classes": tuple(map(str.strip, ADE20KDataset.METAINFO["classes"]))}

    @classmethod
    def get_label_map(cls, new_classes: Any = None) -> None:
        """Return None: labels stay as they are in the files."""

    def load_data_list(self) -> list[dict[str, Any]]:
        """Return one entry per image, sorted by name, with the classes' labels. Raises UserError if there is none."""
        entries = super().load_data_list()
        if not entries:
            folder = self.data_prefix["img_path"]
            raise UserError(f"data set folder {folder} holds no {self.img_suffix} images; restore the data set")
        return [{**entry, "labels": self.labels} for entry in entries]

    @property
    def labels(self) -> Labels:
        """The labels in the files: those of the classes in their order, and the ignored one."""
        return Labels(range(1, len(self._metainfo["classes"]) + 1), 0)

    def prepare_data(self, idx: int | Scaled) -> Any:
        """Return the pipeline's result for an image; the scale of a `Scaled` place is in the pipeline's `scale`."""
        if isinstance(idx, Scaled):
            return self.pipeline({**self.get_data_info(idx.place), "scale": idx.scale})
        return super().prepare_data(idx)


@DATASETS.register_module()
class ClassMaps(ADE20K):
    """A data set of any labels: `values` are those of `metainfo["classes"]`, in their order; `ignored` is no class."""

    def __init__(self, values: Sequence[int], ignored: int, **kwargs: Any) -> None:
        self._labels = Labels(values, ignored)
        super().__init__(**kwargs)

    @property
    def labels(self) -> Labels:
        """The labels in the files."""
        return self._labels


@TRANSFORMS.register_module()
class LoadClassMap(BaseTransform):
    """Read an image's class map; raises UserError for one that is missing, broken or beyond the classes."""

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Add `gt_seg_map` (H, W) uint8: class indices, 255 where unlabelled."""
        results["gt_seg_map"] = read_indices(Path(results["seg_map_path"]), results["ori_shape"], results["labels"])
        results["seg_fields"].append("gt_seg_map")
        return results


@TRANSFORMS.register_module()
class ResizeToScale(BaseTransform):
    """Resize image (bilinear) and class map (nearest) with Pillow to the batch's `scale`, keeping the aspect ratio."""

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Replace `img` and `gt_seg_map`; set `img_shape` (H, W)."""
        height, width = size = resized(results["img"].shape[:2], results["scale"])
        for key, interpolation in (("img", "bilinear"), ("gt_seg_map", "nearest")):
            results[key] = mmcv.imresize(results[key], (width, height), interpolation=interpolation, backend="pillow")
        results["img_shape"] = size
        return results


@TRANSFORMS.register_module()
class PackScales(PackSegInputs):
    """mmseg's PackSegInputs, but `inputs` are the image at each of the `scales`; the class map stays as it is.

    The image is resized, not padded, to sides that are multiples of `size_divisor`, rounded up.
    """

    def __init__(self, scales: Sequence[tuple[int, int]], size_divisor: int) -> None:
        super().__init__()
        self.scales, self.size_divisor = scales, size_divisor

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Return `inputs`, a list of uint8 tensors (3, h, w), and `data_samples`."""
        packed = super().transform(results)
        packed["inputs"] = []
        for scale in self.scales:
            sides = resized(results["img"].shape[:2], scale)
            height, width = (-(-side // self.size_divisor) * self.size_divisor for side in sides)
            image = mmcv.imresize(results["img"], (width, height), interpolation="bilinear", backend="pillow")
            packed["inputs"].append(to_tensor(np.ascontiguousarray(image.transpose(2, 0, 1))))
        return packed


def resized(size: tuple[int, int], scale: tuple[int, int]) -> tuple[int, int]:
    """Return (height, width) in pixels after resizing the shorter side to `scale`, as far as the longest side allows.

    `scale` is (longest, shorter). Fractions are truncated, as in CSAIL's code; mmcv would round.
    """
    longest, shorter = scale
    factor = min(shorter / min(size), longest / max(size))
    height, width = size
    return int(height * factor), int(width * factor)
