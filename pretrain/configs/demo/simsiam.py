"""SimSiam, ResNet-18, embedded digits, minutes on a CPU.  make pretrain METHOD=simsiam

The demo shows that the chain works; its numbers are never comparable with the paper's.
"""

_base_ = ["../_base_/runtime.py", "./knn.py"]

model = dict(
    type="SimSiam",
    backbone=dict(name="resnet18", zero_init_residual=False),
    projector=dict(layers=2, dim=512),
    predictor=dict(hidden_dim=128),
    guide="none",
)
train_dataloader = dict(
    batch_size=64,
    num_workers=0,
    drop_last=True,
    sampler=dict(type="EpochSampler"),
    collate_fn=dict(type="default_collate"),
    dataset=dict(
        type="MultiView",
        images=dict(name="digits", root=".", split="train"),
        # Digits must stay legible: no flip, no small crop.
        augmentation=[
            dict(type="RandomAffine", degrees=10, translate=(0.08, 0.08), scale=(0.9, 1.1)),
            dict(type="ColorJitter", brightness=0.4, contrast=0.4, p=0.8),
        ],
        num_views=2,
    ),
)
optim_wrapper = dict(optimizer=dict(type="SGD", lr=0.03, momentum=0.9, weight_decay=5e-4))
auto_scale_lr = dict(base_batch_size=64, enable=False)
param_scheduler = [dict(type="CosineAnnealingLR", eta_min=0.0, by_epoch=True)]
train_cfg = dict(type="ResumableEpochLoop", max_epochs=2)
default_hooks = dict(collapse=dict(type="CollapseMonitor"))
custom_hooks = [dict(type="KnnMonitor")]
