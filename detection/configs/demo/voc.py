"""Digits on photographs, in VOC's layout and through its reader, minutes on a CPU.  make detection-voc

The demo shows that the chain works; its numbers are never comparable with the paper's.
"""

_base_ = "../imagenet/voc.py"

data_root = "demo/VOCdevkit"
metainfo = dict(classes=("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"))

model = dict(
    # Pretraining saw single digits for a few epochs: here BN goes on learning, and training starts from more
    # than the published protocol's fixed statistics.
    backbone=dict(norm_cfg=dict(requires_grad=True), norm_eval=False),
    # On a CPU the heads cost the most: narrow ones, and few RoIs.
    neck=dict(out_channels=64),
    rpn_head=dict(in_channels=64, feat_channels=64, anchor_generator=dict(scales=[4])),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64),
        bbox_head=dict(in_channels=64, fc_out_channels=256, num_classes=10),
    ),
    train_cfg=dict(rpn_proposal=dict(nms_pre=200, max_per_img=100), rcnn=dict(sampler=dict(num=64))),
    test_cfg=dict(rpn=dict(nms_pre=200, max_per_img=100)),
)
train_pipeline = [
    dict(type="LoadImage", upright=True),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="Resize", scale=(96, 96), keep_ratio=True, backend="pillow"),
    dict(type="PackDetInputs"),  # no flip: a digit has a right way round
]
test_pipeline = [
    dict(type="LoadImage", upright=True),
    dict(type="Resize", scale=(96, 96), keep_ratio=True, backend="pillow"),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(
        type="PackDetInputs",
        # VOCAP restores the order of the objects from the last, which mmdet would sort by difficulty.
        meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor", "gt_ignore_flags"),
    ),
]
train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        _delete_=True,
        type="VOC",
        data_root=data_root,
        metainfo=metainfo,
        ann_file="VOC2007/ImageSets/Main/trainval.txt",
        data_prefix=dict(sub_data_root="VOC2007/"),
        filter_cfg=dict(filter_empty_gt=True),
        pipeline=train_pipeline,
    ),
)
test_dataloader = dict(
    batch_size=10,
    num_workers=0,
    dataset=dict(data_root=data_root, metainfo=metainfo, pipeline=test_pipeline),
)

auto_scale_lr = dict(base_batch_size=4)
optim_wrapper = dict(optimizer=dict(lr=0.02), clip_grad=dict(max_norm=10))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.1, begin=0, end=30, by_epoch=False),
    dict(type="CosineAnnealingLR", T_max=130, by_epoch=False),
]
train_cfg = dict(max_iters=130)
default_hooks = dict(checkpoint=dict(interval=50), logger=dict(interval=10))
