"""Digits on photographs, in ADE20K's layout and through its reader, a minute on a CPU.  make segmentation-ade20k

The demo shows that the chain works; its numbers are never comparable with the paper's.
"""

_base_ = "../imagenet/ade20k.py"

data_root = "demo/ADEChallengeData2016"
evaluation = "single-scale"
metainfo = dict(
    classes=("background", "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    palette=[
        [0, 0, 0], [230, 25, 75], [60, 180, 75], [255, 225, 25], [0, 130, 200], [245, 130, 48],
        [145, 30, 180], [70, 240, 240], [240, 50, 230], [210, 245, 60], [250, 190, 212],
    ],
)  # fmt: skip
# A few hundred iterations: running statistics must follow faster than with 150,000.
norm_cfg = dict(momentum=0.1)
model = dict(
    backbone=dict(norm_cfg=norm_cfg),
    decode_head=dict(
        channels=64,
        num_classes=11,
        norm_cfg=norm_cfg,
        # 93 % of the pixels are background: unweighted, so short a training answers nothing else.
        loss_decode=dict(class_weight=[0.1] + [1.0] * 10),
    ),
)
# 64 pixels: the digits then have about the size at which pretraining saw them, and more scenes fit into a
# minute. No flip: a digit has a right way round.
scales = [(64, 64)]
train_pipeline = [
    dict(type="LoadImage"),
    dict(type="LoadClassMap"),
    dict(type="ResizeToScale"),
    dict(type="PackSegInputs"),
]
test_pipeline = [
    dict(type="LoadImage"),
    dict(type="LoadClassMap"),
    dict(type="PackScales", scales=scales, size_divisor=32),
]
train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    persistent_workers=False,
    batch_sampler=dict(scales=scales),
    dataset=dict(data_root=data_root, metainfo=metainfo, pipeline=train_pipeline),
)
test_dataloader = dict(
    batch_size=10,
    num_workers=0,
    dataset=dict(data_root=data_root, metainfo=metainfo, pipeline=test_pipeline),
)
# High, as the training is short: 0.02 had hardly begun to tell the digits apart when it ended.
optim_wrapper = dict(optimizer=dict(lr=0.07))
param_scheduler = [dict(type="StaircasePolyLR", power=0.9, every=10, total=200, by_epoch=False)]
train_cfg = dict(max_iters=200)
default_hooks = dict(checkpoint=dict(interval=50), logger=dict(interval=10))
