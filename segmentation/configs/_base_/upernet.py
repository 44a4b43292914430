"""UPerNet on a ResNet as the paper's source has it (ssl-transfer's selfsupconfig, CSAIL's code and defaults).

mmseg's base file differs in so many places (deep stem, auxiliary head, dropout, BN momentum) that this one
states the model whole.
"""

_base_ = "../../../common/configs/dense.py"

default_scope = "mmseg"
# CSAIL's default momentum, not PyTorch's 0.1; statistics over all GPUs, which are one GPU here.
norm_cfg = dict(type="BN", momentum=0.001, requires_grad=True)
model = dict(
    type="EncoderDecoder",
    data_preprocessor=dict(
        type="SegDataPreProcessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        size_divisor=32,
        pad_val=0,
        seg_pad_val=0,  # padding is trained as class 0, "wall": what CSAIL's code does
    ),
    backbone=dict(
        type="ResNet",  # torchvision's 7x7 stem: CSAIL's deep stem could not take these checkpoints
        depth=50,
        num_stages=4,
        out_indices=(0, 1, 2, 3),
        dilations=(1, 1, 1, 1),
        strides=(1, 2, 2, 2),
        frozen_stages=-1,
        norm_cfg=norm_cfg,
        norm_eval=False,
        style="pytorch",
        contract_dilation=True,
    ),
    decode_head=dict(
        type="UPerHead",
        in_channels=[256, 512, 1024, 2048],
        in_index=[0, 1, 2, 3],
        pool_scales=(1, 2, 3, 6),
        channels=512,
        dropout_ratio=0.0,
        num_classes=150,
        norm_cfg=norm_cfg,
        align_corners=False,
        # The mean is over labelled pixels.
        loss_decode=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0, avg_non_ignore=True),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode="whole"),
)
optim_wrapper = dict(
    optimizer=dict(type="SGD", lr=0.02, momentum=0.9, weight_decay=1e-4),
    # Weight decay is for the weights of convolutions alone.
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
)
