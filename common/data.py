"""The former name of `common.images`, for scripts that were written for it."""

from common.images import ImageFiles, image_folder, read_class_map, read_image

__all__ = ["ImageFiles", "image_folder", "read_class_map", "read_image"]
