"""ADE20K, UPerNet on ResNet-50: 20,210 training, 2,000 validation images (paper, D.3).

make segmentation-ade20k PROFILE=imagenet. Numbers that the paper leaves open are ssl-transfer's configs and
the defaults of CSAIL's code, on which they run.
"""

_base_ = "../_base_/upernet.py"

data_root = "{{$GSG_DATA:data}}/ADEChallengeData2016"
scales = [(1000, side) for side in (300, 375, 450, 525, 600)]
evaluation = "multi-scale"  # CSAIL's eval_multipro.py: mean of the five scales' class probabilities, no flip

train_pipeline = [
    dict(type="LoadImage"),
    dict(type="LoadClassMap"),
    dict(type="RandomChoiceResize", scales=scales, keep_ratio=True, backend="pillow"),  # no crop, no distortion
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackSegInputs"),
]
test_pipeline = [
    dict(type="LoadImage"),
    dict(
        type="TestTimeAug",
        transforms=[
            [dict(type="Resize", scale=scale, keep_ratio=True, backend="pillow") for scale in scales],
            [dict(type="ResizeToMultiple", size_divisor=32)],  # resized, not padded
            [dict(type="LoadClassMap")],  # after them: the truth stays at the image's own size
            [dict(type="PackSegInputs")],
        ],
    ),
]
train_dataloader = dict(
    batch_size=2,  # in all: one GPU
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    batch_sampler=dict(type="EndlessBatches", by_shape=True),  # as CSAIL's loader has it
    dataset=dict(
        type="ADE20K",
        data_root=data_root,
        data_prefix=dict(img_path="images/training", seg_map_path="annotations/training"),
        pipeline=train_pipeline,
    ),
)
test_dataloader = dict(
    batch_size=1,
    num_workers=4,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="ADE20K",
        data_root=data_root,
        data_prefix=dict(img_path="images/validation", seg_map_path="annotations/validation"),
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
# A class without pixels in truth and prediction counts as 0, as with CSAIL; mmseg would leave it out.
test_evaluator = dict(type="IoUMetric", iou_metrics=["mIoU"], nan_to_num=0)

param_scheduler = [dict(type="StaircasePolyLR", power=0.9, every=500, total=150_000, by_epoch=False)]
train_cfg = dict(max_iters=150_000)  # 30 x 5,000
