"""PASCAL VOC and MS-COCO as the paper's source, detectron2, reads them."""

from pathlib import Path
from typing import Any

from mmdet.datasets import CocoDataset, VOCDataset
from mmdet.registry import DATASETS
from typing_extensions import override

from common.preflight import read_list
from detection.annotations import CocoFile, read_voc

EMPTY = 1e-5  # pixels; the default of filter_empty_instances in detectron2/data/detection_utils.py


@DATASETS.register_module()
class VOC(VOCDataset):
    """mmdet's VOCDataset with detectron2's boxes, and training on `difficult` objects.

    Boxes: VOC counts pixels from 1, and both ends belong to a box; `detectron2/data/datasets/pascal_voc.py`
    subtracts 1 from xmin and ymin alone, which gives the box's borders; mmdet subtracts 1 from all four.
    Difficult objects: mmdet marks them as ignored, which its assigner's `ignore_iof_thr=-1` turns into background;
    detectron2 trains on them. In test mode the mark stays, and they count neither as right nor as wrong.
    Raises UserError naming a broken annotation or an unknown class.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # mmdet stores the year here, which would forbid concatenating 2007 and 2012.
        self._metainfo["dataset_type"] = None

    @override
    def load_data_list(self) -> list[dict[str, Any]]:
        self.cat2label = {word: label for label, word in enumerate(self._metainfo["classes"])}
        return [
            self.parse_data_info(
                {
                    "img_id": name,
                    "file_name": f"{self.img_subdir}/{name}.jpg",
                    "xml_path": f"{self.sub_data_root}/{self.ann_subdir}/{name}.xml",
                }
            )
            for name in read_list(Path(self.ann_file))
        ]

    @override
    def parse_data_info(self, img_info: dict[str, Any]) -> dict[str, Any]:
        path = Path(img_info["xml_path"])
        classes = self._metainfo["classes"]
        annotation = read_voc(path, classes)
        instances = [
            {
                "bbox": [x0 - 1, y0 - 1, x1, y1],
                "bbox_label": classes.index(thing.name),
                "ignore_flag": int(thing.difficult and self.test_mode),
            }
            for thing in annotation.objects
            for x0, y0, x1, y1 in (thing.box,)
        ]
        return {
            "img_path": str(Path(self.sub_data_root) / img_info["file_name"]),
            "img_id": img_info["img_id"],
            "xml_path": str(path),
            "width": annotation.width,
            "height": annotation.height,
            "instances": instances,
        }


@DATASETS.register_module()
class COCO(CocoDataset):
    """mmdet's CocoDataset with detectron2's choice of objects.

    Training leaves out crowds, which become background as in detectron2, and empty boxes. It keeps boxes below a pixel,
    which mmdet leaves out. Classes are matched by name, whatever their order in the file.
    """

    COCOAPI = CocoFile

    @override
    def parse_data_info(self, raw_data_info: dict[str, Any]) -> dict[str, Any]:
        image = raw_data_info["raw_img_info"]
        width, height = image["width"], image["height"]
        names = {number: category["name"] for number, category in self.coco.cats.items()}
        instances = []
        for annotation in raw_data_info["raw_ann_info"]:
            x, y, w, h = annotation["bbox"]
            # detectron2 clips boxes to the image, then leaves out what is empty.
            box = [max(x, 0.0), max(y, 0.0), min(x + w, width), min(y + h, height)]
            if box[2] - box[0] > EMPTY and box[3] - box[1] > EMPTY:
                label = self.metainfo["classes"].index(names[annotation["category_id"]])
                instances.append({"bbox": box, "bbox_label": label, "ignore_flag": annotation["iscrowd"]})
        return {
            "img_path": str(Path(self.data_prefix["img"]) / image["file_name"]),
            "img_id": image["img_id"],
            "width": width,
            "height": height,
            "instances": instances,
        }
