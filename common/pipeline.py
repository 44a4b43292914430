"""Steps of mmdet's and mmseg's data pipelines that both rooms use."""

from pathlib import Path
from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform
from mmengine.registry import TRANSFORMS

from common.data import read_image


@TRANSFORMS.register_module()
class LoadImage(BaseTransform):
    """Decode `img_path` with Pillow, as detectron2 and CSAIL do, into (H, W, 3) uint8 BGR, OpenMMLab's order.

    mmcv's own loader lets a truncated JPEG through (OpenCV) or does not say which file it was (Pillow);
    this one raises UserError naming it.
    """

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Add `img`, `img_shape` and `ori_shape` (H, W)."""
        rgb = np.asarray(read_image(Path(results["img_path"])))
        results["img"] = np.ascontiguousarray(rgb[..., ::-1])
        results["img_shape"] = results["ori_shape"] = rgb.shape[:2]
        return results
