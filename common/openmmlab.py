"""The former name of `common.mmlab.ops`, for scripts that were written for it."""

from common.mmlab.ops import prepare, register_detection, register_segmentation

__all__ = ["prepare", "register_detection", "register_segmentation"]
