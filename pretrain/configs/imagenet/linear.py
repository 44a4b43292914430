"""Linear classifier on ImageNet as the authors' main_lincls.py has it (PROTOCOLS 3.2).  make linear PROFILE=imagenet

Where 4,096 images do not fit the GPUs, add ARGS='--accumulate 8': BN is frozen, so the gradient is the same.
"""

_base_ = "../_base_/runtime.py"

model = dict(type="LinearProbe", backbone=dict(name="resnet50"), num_classes=1000)
train_dataloader = dict(
    batch_size=4096,
    num_workers=32,
    persistent_workers=True,
    pin_memory=True,
    drop_last=False,
    sampler=dict(type="EpochSampler"),
    collate_fn=dict(type="default_collate"),
    dataset=dict(
        type="LabelledView",
        images=dict(name="imagenet", root=".", split="train"),
        augmentation=[
            dict(type="RandomResizedCrop", size=224, scale=(0.08, 1.0)),
            dict(type="RandomHorizontalFlip", p=0.5),
        ],
    ),
)
val_dataloader = dict(
    batch_size=256,
    num_workers=8,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    collate_fn=dict(type="default_collate"),
    dataset=dict(
        type="LabelledView",
        images=dict(name="imagenet", root=".", split="test"),
        size=224,
        resize=256,  # the shorter side
    ),
)
# LARS as apex's LARC around SGD; without always_adapt, timm adapts nothing at weight decay 0.
optim_wrapper = dict(
    optimizer=dict(
        type="LARS",
        lr=0.1,
        momentum=0.9,
        weight_decay=0.0,
        trust_coeff=0.001,
        trust_clip=False,
        always_adapt=True,
    )
)
auto_scale_lr = dict(base_batch_size=256, enable=True)  # 1.6 at 4,096
param_scheduler = [dict(type="CosineAnnealingLR", eta_min=0.0, by_epoch=True)]
train_cfg = dict(type="ResumableEpochLoop", max_epochs=90, val_interval=1)
val_cfg = dict()
val_evaluator = dict(type="TopK")
custom_hooks = [dict(type="KeepFrozen"), dict(type="AccuracyHistory", priority="HIGH")]
