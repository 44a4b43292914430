"""PASCAL VOC, ResNet-50-FPN: trainval 2007 + 2012, test 2007 (paper, D.2).  make detection-voc PROFILE=imagenet

Numbers that the paper leaves open are ssl-transfer's detectron2 configs, which have the same schedule.
"""

_base_ = "../_base_/faster_rcnn.py"

data_root = "VOCdevkit"
evaluation = "VOC2007 11 points, IoU 0.50:0.95"

model = dict(roi_head=dict(bbox_head=dict(num_classes=20)))
train_pipeline = [
    dict(type="LoadImage", upright=True),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(
        type="RandomChoiceResize",  # INPUT.MIN_SIZE_TRAIN_SAMPLING "choice", MAX_SIZE_TRAIN 1333; Pillow's bilinear
        scales=[(1333, side) for side in (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)],
        keep_ratio=True,
        backend="pillow",
    ),
    dict(type="RandomFlip", prob=0.5),  # INPUT.RANDOM_FLIP "horizontal"
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImage", upright=True),
    dict(type="Resize", scale=(1333, 800), keep_ratio=True, backend="pillow"),
    dict(type="LoadAnnotations", with_bbox=True),  # after Resize: the truth stays in the image's own pixels
    dict(
        type="PackDetInputs",
        # VOCAP restores the order of the objects from the last, which mmdet would sort by difficulty.
        meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor", "gt_ignore_flags"),
    ),
]
train_dataloader = dict(
    batch_size=2,  # in all: one GPU
    num_workers=4,  # DATALOADER.NUM_WORKERS; of each process, as detectron2 has it
    persistent_workers=True,  # the trainer ends them
    pin_memory=True,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    batch_sampler=dict(type="EndlessBatches", by_shape=True),  # DATALOADER.ASPECT_RATIO_GROUPING True
    dataset=dict(
        type="ConcatDataset",
        datasets=[
            dict(
                type="VOC",
                data_root=data_root,
                ann_file=f"VOC{year}/ImageSets/Main/trainval.txt",
                data_prefix=dict(sub_data_root=f"VOC{year}/"),
                # DATALOADER.FILTER_EMPTY_ANNOTATIONS True; no least size of box or image
                filter_cfg=dict(filter_empty_gt=True),
                pipeline=train_pipeline,
            )
            for year in (2007, 2012)
        ],
    ),
)
test_dataloader = dict(
    batch_size=1,
    num_workers=4,
    pin_memory=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="VOC",
        data_root=data_root,
        ann_file="VOC2007/ImageSets/Main/test.txt",
        data_prefix=dict(sub_data_root="VOC2007/"),
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_evaluator = dict(type="VOCAP")

optim_wrapper = dict(optimizer=dict(lr=0.0025))
# Another batch: the learning rate in proportion, iterations in inverse (detectron2's auto_scale_workers).
auto_scale_lr = dict(enable=True, base_batch_size=2)
# SOLVER.WARMUP_METHOD "linear", WARMUP_FACTOR 1/1000, GAMMA 0.1
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, begin=0, end=100, by_epoch=False),
    dict(type="MultiStepLR", milestones=[96_000, 128_000], gamma=0.1, by_epoch=False),
]
train_cfg = dict(max_iters=144_000)
