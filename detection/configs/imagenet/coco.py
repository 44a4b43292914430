"""MS-COCO, ResNet-50-FPN: train2017, val2017 (paper, D.2).  make detection-coco PROFILE=imagenet GPUS=8

The paper's numbers are detectron2's 3x schedule. The batch of 16 is 8 GPUs x 2; on fewer, ARGS='--accumulate 8'
forwards it in parts.
"""

_base_ = "./voc.py"

data_root = "coco"
evaluation = "bbox, IoU 0.50:0.95, 100 detections an image"

model = dict(roi_head=dict(bbox_head=dict(num_classes=80)))
train_pipeline = [
    dict(type="LoadImage", upright=True),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(
        type="RandomChoiceResize",
        scales=[(1333, side) for side in (640, 672, 704, 736, 768, 800)],
        keep_ratio=True,
        backend="pillow",
    ),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackDetInputs"),
]
train_dataloader = dict(
    batch_size=16,  # in all
    dataset=dict(
        _delete_=True,
        type="COCO",
        data_root=data_root,
        ann_file="annotations/instances_train2017.json",
        data_prefix=dict(img="train2017/"),
        filter_cfg=dict(filter_empty_gt=True),
        pipeline=train_pipeline,
    ),
)
test_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type="COCO",
        data_root=data_root,
        ann_file="annotations/instances_val2017.json",
        data_prefix=dict(img="val2017/"),
        test_mode=True,
        pipeline=_base_.test_pipeline,
    ),
)
test_evaluator = dict(_delete_=True, type="COCOAP", ann_file=f"{data_root}/annotations/instances_val2017.json")

optim_wrapper = dict(optimizer=dict(lr=0.02))
auto_scale_lr = dict(base_batch_size=16)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, begin=0, end=1000, by_epoch=False),
    dict(type="MultiStepLR", milestones=[210_000, 250_000], gamma=0.1, by_epoch=False),
]
train_cfg = dict(max_iters=270_000)
