"""Faster R-CNN with FPN as the paper's source has it (detectron2's Base-RCNN-FPN.yaml with ssl-transfer's overrides).

mmdet's base file states the same model; what differs is below.
"""

_base_ = ["mmdet::_base_/models/faster-rcnn_r50_fpn.py", "../../../common/configs/dense.py"]

default_scope = "mmdet"
model = dict(
    backbone=dict(
        # Finetuned from the stem on (FREEZE_AT: 0), but for BN: detectron2's FrozenBN fixes statistics and affine.
        frozen_stages=-1,
        norm_cfg=dict(type="BN", requires_grad=False),
        norm_eval=True,
        init_cfg=None,  # the Runner loads the checkpoint under evaluation
    ),
    train_cfg=dict(
        # The best anchor of each object learns it whatever their IoU. Not 0: an object that no anchor
        # overlaps would then claim them all.
        rpn=dict(assigner=dict(min_pos_iou=1e-4))
    ),
)
optim_wrapper = dict(optimizer=dict(type="SGD", lr=0.0025, momentum=0.9, weight_decay=1e-4))
