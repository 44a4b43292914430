"""Object detection (paper, D.2): Faster R-CNN on PASCAL VOC and MS-COCO, on mmdet."""
