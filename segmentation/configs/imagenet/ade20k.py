"""ADE20K, UPerNet on ResNet-50: 20,210 training, 2,000 validation images (paper, D.3).

make segmentation-ade20k PROFILE=imagenet. Numbers that the paper leaves open are ssl-transfer's configs and
the defaults of CSAIL's code, on which they run.
"""

_base_ = "../_base_/upernet.py"

data_root = "ADEChallengeData2016"
scales = [(1000, side) for side in (300, 375, 450, 525, 600)]  # longest, shorter side in pixels
evaluation = "multi-scale"  # CSAIL's eval_multipro.py: mean of the five scales' class probabilities, no flip

train_pipeline = [
    dict(type="LoadImage"),
    dict(type="LoadClassMap"),
    dict(type="RandomFlip", prob=0.5),
    dict(type="ResizeToScale"),  # the batch's; no crop, no distortion
    dict(type="PackSegInputs"),
]
test_pipeline = [
    dict(type="LoadImage"),
    dict(type="LoadClassMap"),
    dict(type="PackScales", scales=scales, size_divisor=32),  # resized, never cut into windows
]
train_dataloader = dict(
    batch_size=2,  # in all, on one GPU; CSAIL's code fits neither rate nor length to another batch, nor do we
    num_workers=4,  # of each process
    persistent_workers=True,  # the trainer ends them
    pin_memory=True,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    batch_sampler=dict(type="ScaledBatches", scales=scales, by_shape=True),  # one scale, tall or wide images
    dataset=dict(
        type="ADE20K",
        data_root=data_root,
        data_prefix=dict(img_path="images/training", seg_map_path="annotations/training"),
        pipeline=train_pipeline,
    ),
)
test_dataloader = dict(
    batch_size=1,  # images differ in size
    num_workers=4,
    pin_memory=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="ADE20K",
        data_root=data_root,
        data_prefix=dict(img_path="images/validation", seg_map_path="annotations/validation"),
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_evaluator = dict(type="ClasswiseIoU")

param_scheduler = [dict(type="StaircasePolyLR", power=0.9, every=500, total=150_000, by_epoch=False)]
train_cfg = dict(max_iters=150_000)  # 30 x 5,000
