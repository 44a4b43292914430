"""Digits on photographs, in MS-COCO's layout and through its reader.  make detection-coco

The scenes and all settings are those of the demo's VOC run.
"""

_base_ = "./voc.py"

data_root = "demo/coco"
evaluation = "bbox, IoU 0.50:0.95, 100 detections an image"

train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type="COCO",
        data_root=data_root,
        metainfo=_base_.metainfo,
        ann_file="annotations/instances_train2017.json",
        data_prefix=dict(img="train2017/"),
        filter_cfg=dict(filter_empty_gt=True),
        pipeline=_base_.train_pipeline,
    )
)
test_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type="COCO",
        data_root=data_root,
        metainfo=_base_.metainfo,
        ann_file="annotations/instances_val2017.json",
        data_prefix=dict(img="val2017/"),
        test_mode=True,
        pipeline=_base_.test_pipeline,
    )
)
test_evaluator = dict(_delete_=True, type="COCOAP", ann_file=f"{data_root}/annotations/instances_val2017.json")
