"""UPerNet on a ResNet as the paper's source has it (ssl-transfer's selfsupconfig, CSAIL's code and defaults).

What mmseg's options express, where its own upernet_r50.py differs (in brackets), and what needs code of ours:

    backbone     ResNet with torchvision's 7x7 stem [ResNetV1c: three 3x3 convolutions, as CSAIL's own networks have;
                 no checkpoint of torchvision's layout fits those], not dilated [the same]
    pyramid      pool_scales 1, 2, 3, 6 [the same]; pool, enlarge, convolve [pool, convolve, enlarge]: UPerNetHead
    widths       channels 512 in pyramid, laterals and fusion [the same]
    auxiliary    none: "deepsup" is not in the decoder's name [FCN on the third stage, weight 0.4]
    dropout      none [0.1]
    BN           momentum 0.001, CSAIL's default [0.1]; over all GPUs [the same]
    loss         at a quarter of the size, labels reduced [at the image's size, logits enlarged]: UPerNetHead
    initial      Kaiming normal by fan-in, BN bias 1e-4, classifier's bias PyTorch's [fan-out; 0; N(0, 0.01), 0]
    weight decay on weights of convolutions [on everything]; no clipping [the same]
    lr           0.02, decay in steps of 500 to 0 [0.01; every iteration, to 1e-4]: StaircasePolyLR
    image sizes  shorter side of 300 ... 600, longest 1000, one size a batch, no crop [scaled by 0.5 to 2 of 2048 x 512,
                 crop 512 x 512]; no photometric distortion [distorted]: ScaledBatches, ResizeToScale
    test         five sizes, no flip, each side a multiple of 32, enlarged once [one size; enlarged twice]: UPerNet
"""

_base_ = "../../../common/configs/dense.py"

default_scope = "mmseg"
norm_cfg = dict(type="BN", momentum=0.001, requires_grad=True)
sync_bn = "torch"  # with several GPUs the statistics are of all of them
model = dict(
    type="UPerNet",
    data_preprocessor=dict(
        type="SegPreprocessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        size_divisor=32,
        pad_val=0,  # after normalising
        seg_pad_val=0,  # padding is trained as class 0, "wall": what CSAIL's code does; 255 would ignore it
    ),
    backbone=dict(
        type="ResNet",
        depth=50,
        num_stages=4,
        out_indices=(0, 1, 2, 3),
        dilations=(1, 1, 1, 1),
        strides=(1, 2, 2, 2),
        frozen_stages=-1,
        norm_cfg=norm_cfg,
        norm_eval=False,
        style="pytorch",  # stride 2 in the 3x3 convolution
        contract_dilation=True,
    ),
    decode_head=dict(
        type="UPerNetHead",
        in_channels=[256, 512, 1024, 2048],
        in_index=[0, 1, 2, 3],
        pool_scales=(1, 2, 3, 6),
        channels=512,
        dropout_ratio=0.0,
        num_classes=150,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type="LabelledCrossEntropy"),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode="whole"),
)
optim_wrapper = dict(
    optimizer=dict(type="SGD", lr=0.02, momentum=0.9, weight_decay=1e-4),
    # Weight decay is for the weights of convolutions alone.
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
)
