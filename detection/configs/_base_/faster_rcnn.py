"""Faster R-CNN with ResNet-50-FPN as the paper's source has it: detectron2's defaults and Base-RCNN-FPN.yaml, with
ssl-transfer's overrides (PROTOCOLS 5.1). Each group names the keys of detectron2/config/defaults.py that it states.
"""

_base_ = "../../../common/configs/dense.py"

default_scope = "mmdet"
model = dict(
    type="FasterRCNN",
    # INPUT.FORMAT "RGB", PIXEL_MEAN and PIXEL_STD (ssl-transfer; the paper states the numbers); ImageList pads the
    # normalised images with 0 to FPN's size_divisibility.
    data_preprocessor=dict(
        type="DetPreprocessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=32,
        pad_value=0,
    ),
    backbone=dict(
        type="ResNet",
        depth=50,
        num_stages=4,
        out_indices=(0, 1, 2, 3),  # RESNETS.OUT_FEATURES res2 ... res5
        strides=(1, 2, 2, 2),
        dilations=(1, 1, 1, 1),  # RESNETS.RES5_DILATION 1
        style="pytorch",  # RESNETS.STRIDE_IN_1X1 False (ssl-transfer): the stride is in the 3x3, as in torchvision
        # BACKBONE.FREEZE_AT 0 (ssl-transfer's finetune): from the stem on, all layers train ...
        frozen_stages=-1,
        # ... but for BN, RESNETS.NORM "FrozenBN": statistics and affine are fixed.
        norm_cfg=dict(type="BN", requires_grad=False),
        norm_eval=True,
        init_cfg=None,  # the Runner loads the checkpoint under evaluation
    ),
    neck=dict(
        type="FPN",
        in_channels=[256, 512, 1024, 2048],
        out_channels=256,  # FPN.OUT_CHANNELS; FPN.NORM "", FPN.FUSE_TYPE "sum"
        num_outs=5,
        add_extra_convs=False,  # P6 is P5 at every second pixel: LastLevelMaxPool
        upsample_cfg=dict(mode="nearest"),
        init_cfg=dict(type="Caffe2Xavier", layer="Conv2d"),  # fpn.py: c2_xavier_fill
    ),
    rpn_head=dict(
        type="Float32RPNHead",
        in_channels=256,
        feat_channels=256,
        # ANCHOR_GENERATOR.SIZES 32 ... 512, one a level; ASPECT_RATIOS; OFFSET 0.
        anchor_generator=dict(
            type="AnchorGenerator",
            scales=[8],
            ratios=[0.5, 1.0, 2.0],
            strides=[4, 8, 16, 32, 64],
            center_offset=0.0,
        ),
        # RPN.BBOX_REG_WEIGHTS 1, 1, 1, 1
        bbox_coder=dict(type="DeltaXYWHBBoxCoder", target_means=[0.0, 0.0, 0.0, 0.0], target_stds=[1.0, 1.0, 1.0, 1.0]),
        # RPN.LOSS_WEIGHT 1, RPN.SMOOTH_L1_BETA 0: L1. Both by the number of anchors sampled.
        loss_cls=dict(type="CrossEntropyLoss", use_sigmoid=True, loss_weight=1.0),
        loss_bbox=dict(type="L1Loss", loss_weight=1.0),
        init_cfg=dict(type="Normal", layer="Conv2d", std=0.01),  # rpn.py: StandardRPNHead
    ),
    roi_head=dict(
        type="StandardRoIHead",
        # ROI_BOX_HEAD.POOLER_TYPE "ROIAlignV2" (aligned), POOLER_RESOLUTION 7, POOLER_SAMPLING_RATIO 0; a RoI of side
        # 224 reads P4 (poolers.py), so P2 serves those below 2 x 56.
        bbox_roi_extractor=dict(
            type="Float32RoIExtractor",
            roi_layer=dict(type="RoIAlign", output_size=7, sampling_ratio=0, aligned=True),
            out_channels=256,
            featmap_strides=[4, 8, 16, 32],
            finest_scale=56,
        ),
        bbox_head=dict(
            type="Shared2FCBBoxHead",  # ROI_BOX_HEAD.NUM_FC 2
            in_channels=256,
            fc_out_channels=1024,  # ROI_BOX_HEAD.FC_DIM
            roi_feat_size=7,
            num_classes=80,
            # ROI_BOX_HEAD.BBOX_REG_WEIGHTS 10, 10, 5, 5; CLS_AGNOSTIC_BBOX_REG False
            bbox_coder=dict(
                type="DeltaXYWHBBoxCoder", target_means=[0.0, 0.0, 0.0, 0.0], target_stds=[0.1, 0.1, 0.2, 0.2]
            ),
            reg_class_agnostic=False,
            # ROI_BOX_HEAD.SMOOTH_L1_BETA 0: L1. Both by the number of RoIs sampled.
            loss_cls=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0),
            loss_bbox=dict(type="L1Loss", loss_weight=1.0),
            init_cfg=[
                dict(type="Caffe2Xavier", override=dict(name="shared_fcs")),  # box_head.py: c2_xavier_fill
                dict(type="Normal", std=0.01, override=dict(name="fc_cls")),  # fast_rcnn.py: FastRCNNOutputLayers
                dict(type="Normal", std=0.001, override=dict(name="fc_reg")),
            ],
        ),
    ),
    train_cfg=dict(
        rpn=dict(
            # RPN.IOU_THRESHOLDS 0.3, 0.7. The best anchor of each object learns it whatever their IoU. Not 0: an
            # object that no anchor overlaps would then claim them all.
            assigner=dict(
                type="MaxIoUAssigner",
                pos_iou_thr=0.7,
                neg_iou_thr=0.3,
                min_pos_iou=1e-4,
                match_low_quality=True,
                ignore_iof_thr=-1,
            ),
            # RPN.BATCH_SIZE_PER_IMAGE 256, RPN.POSITIVE_FRACTION 0.5
            sampler=dict(type="RandomSampler", num=256, pos_fraction=0.5, neg_pos_ub=-1, add_gt_as_proposals=False),
            # RPN.BOUNDARY_THRESH -1: anchors across the border and in the padding count (Float32RPNHead.get_anchors).
            allowed_border=-1,
            pos_weight=-1,
            debug=False,
        ),
        # RPN.PRE_NMS_TOPK_TRAIN 2000 a level, POST_NMS_TOPK_TRAIN 1000 an image, NMS_THRESH 0.7;
        # PROPOSAL_GENERATOR.MIN_SIZE 0
        rpn_proposal=dict(nms_pre=2000, max_per_img=1000, nms=dict(type="nms", iou_threshold=0.7), min_bbox_size=0),
        rcnn=dict(
            # ROI_HEADS.IOU_THRESHOLDS 0.5
            assigner=dict(
                type="MaxIoUAssigner",
                pos_iou_thr=0.5,
                neg_iou_thr=0.5,
                min_pos_iou=0.5,
                match_low_quality=False,
                ignore_iof_thr=-1,
            ),
            # ROI_HEADS.BATCH_SIZE_PER_IMAGE 512, POSITIVE_FRACTION 0.25, PROPOSAL_APPEND_GT True
            sampler=dict(type="RandomSampler", num=512, pos_fraction=0.25, neg_pos_ub=-1, add_gt_as_proposals=True),
            pos_weight=-1,
            debug=False,
        ),
    ),
    test_cfg=dict(
        # RPN.PRE_NMS_TOPK_TEST 1000 a level, POST_NMS_TOPK_TEST 1000
        rpn=dict(nms_pre=1000, max_per_img=1000, nms=dict(type="nms", iou_threshold=0.7), min_bbox_size=0),
        # ROI_HEADS.SCORE_THRESH_TEST 0.05, NMS_THRESH_TEST 0.5; TEST.DETECTIONS_PER_IMAGE 100
        rcnn=dict(score_thr=0.05, nms=dict(type="nms", iou_threshold=0.5), max_per_img=100),
    ),
)
# SOLVER.MOMENTUM 0.9, NESTEROV False, WEIGHT_DECAY 1e-4, CLIP_GRADIENTS off
optim_wrapper = dict(optimizer=dict(type="SGD", lr=0.0025, momentum=0.9, weight_decay=1e-4))
