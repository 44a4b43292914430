"""The way of detection's and segmentation's data to the network: read, pinned, copied."""

from pathlib import Path
from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform
from mmengine.model import BaseDataPreprocessor
from mmengine.registry import TRANSFORMS
from mmengine.structures import BaseDataElement

from common.images import read_image


@TRANSFORMS.register_module()
class LoadImage(BaseTransform):
    """Decode `img_path` with Pillow, as detectron2 and CSAIL do, into (H, W, 3) uint8 BGR, OpenMMLab's order.

    `upright` obeys EXIF's orientation, as detectron2 does and CSAIL does not.

    mmcv's own loader accepts a truncated JPEG (OpenCV) or does not name the file (Pillow); this one raises
    UserError naming it.
    """

    def __init__(self, *, upright: bool = False) -> None:
        self.upright = upright

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Add `img`, `img_shape` and `ori_shape` (H, W)."""
        rgb = np.asarray(read_image(Path(results["img_path"]), upright=self.upright))
        results["img"] = np.ascontiguousarray(rgb[..., ::-1])
        results["img_shape"] = results["ori_shape"] = rgb.shape[:2]
        return results


def pin_memory(element: BaseDataElement) -> BaseDataElement:
    """Return the element with its tensors in pinned memory, from which copies to a GPU do not block the host."""
    pinned = element.new()
    for key, value in element.items():
        if hasattr(value, "pin_memory"):
            pinned.set_data({key: value.pin_memory()})
    return pinned


# torch's loader pins what has this method, and mmengine's elements, which hold the labels, lack it.
BaseDataElement.pin_memory = pin_memory


class Unblocking(BaseDataPreprocessor):
    """To be mixed in before mmdet's or mmseg's preprocessor, so that nothing there waits for the GPU."""

    def __init__(self, bgr_to_rgb: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._non_blocking = True  # mmseg's has no such option
        self.bgr_to_rgb = bgr_to_rgb

    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        """Return the batch on the device, as the other base prepares it; `inputs` are (3, H, W) uint8 BGR."""
        data = self.cast_data(data)
        if self.bgr_to_rgb:  # mmengine indexes by a list of channels, a copy to the GPU that blocks
            data["inputs"] = [image.flip(0) for image in data["inputs"]]
        return super().forward(data, training)
