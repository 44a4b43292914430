"""Linear classifier on frozen features, embedded digits.  make linear

SGD, not LARS: LARS is there for the batch of 4,096 of the ImageNet protocol.
"""

_base_ = "../_base_/runtime.py"

model = dict(type="LinearProbe", backbone=dict(name="resnet18"), num_classes=10)
train_dataloader = dict(
    batch_size=64,
    num_workers=0,
    sampler=dict(type="EpochSampler"),
    collate_fn=dict(type="default_collate"),
    dataset=dict(
        type="LabelledView",
        images=dict(name="digits", root=".", split="train"),
        augmentation=[dict(type="RandomAffine", degrees=10, translate=(0.05, 0.05))],
    ),
)
val_dataloader = dict(
    batch_size=256,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    collate_fn=dict(type="default_collate"),
    dataset=dict(type="LabelledView", images=dict(name="digits", root=".", split="test"), size=32),
)
optim_wrapper = dict(optimizer=dict(type="SGD", lr=0.1, momentum=0.9, weight_decay=0.0))
param_scheduler = [dict(type="CosineAnnealingLR", eta_min=0.0, by_epoch=True)]
train_cfg = dict(type="ResumableEpochLoop", max_epochs=4, val_interval=1)
val_cfg = dict()
val_evaluator = dict(type="TopK")
custom_hooks = [dict(type="KeepFrozen"), dict(type="AccuracyHistory", priority="HIGH")]
