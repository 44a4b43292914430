"""PASCAL VOC as the paper's protocol reads it."""

from typing import Any
from xml.etree import ElementTree

from mmdet.datasets import VOCDataset
from mmdet.registry import DATASETS

from common.cli import UserError


@DATASETS.register_module()
class VOC(VOCDataset):
    """mmdet's VOCDataset; in training, `difficult` objects are objects like any other.

    mmdet marks them as ignored, and with its assigner's `ignore_iof_thr=-1` that makes them background;
    detectron2 trains on them (`detectron2/data/datasets/pascal_voc.py`). In test mode the mark stays: they
    count neither as right nor as wrong. Raises UserError naming a broken annotation or an unknown class.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # mmdet notes the year here, which keeps 2007 and 2012 from being concatenated and makes its
        # evaluator print VOC's class names over other people's classes.
        self._metainfo["dataset_type"] = None

    def parse_data_info(self, img_info: dict[str, Any]) -> dict[str, Any]:
        """Return mmdet's description of one image from its XML file."""
        path = img_info["xml_path"]
        try:
            info = super().parse_data_info(img_info)
        except FileNotFoundError:
            raise UserError(f"annotation {path} is missing; restore the data set") from None
        except ElementTree.ParseError as error:
            raise UserError(f"annotation {path} is truncated or corrupt ({error}); restore it") from None
        except (AttributeError, ValueError) as error:
            raise UserError(f"annotation {path} is not in VOC's format ({error})") from None
        if not self.test_mode:
            for instance in info["instances"]:
                instance["ignore_flag"] = 0
        return info

    def _parse_instance_info(self, raw_ann_info: ElementTree.ElementTree, minus_one: bool = True) -> list[dict]:
        for element in raw_ann_info.iterfind("object/name"):
            if element.text not in self._metainfo["classes"]:  # mmdet would drop the object in silence
                raise ValueError(f"unknown class '{element.text}'; known: {', '.join(self._metainfo['classes'])}")
        return super()._parse_instance_info(raw_ann_info, minus_one)
