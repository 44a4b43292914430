"""The paper's ImageNet pretraining (appendix B.1, C.1): ResNet-50, batch 512, 100 epochs.

Sources beyond the appendix: the authors' code and SimSiam's (PROTOCOLS 1).
"""

_base_ = ["./runtime.py", "../imagenet/knn.py"]

model = dict(
    type="SimSiam",
    backbone=dict(name="resnet50", zero_init_residual=True),
    projector=dict(layers=3, dim=2048, last_affine=False, last_bias=True),
    predictor=dict(hidden_dim=512),
    guide="none",
)
sync_bn = "torch"  # BN statistics over all processes, view by view
train_dataloader = dict(
    batch_size=512,
    num_workers=32,
    persistent_workers=True,
    pin_memory=True,
    drop_last=True,
    sampler=dict(type="EpochSampler"),
    collate_fn=dict(type="default_collate"),
    dataset=dict(
        type="MultiView",
        images=dict(name="imagenet", root=".", split="train"),
        augmentation=[  # B.1, in this order
            dict(type="RandomResizedCrop", size=224, scale=(0.2, 1.0)),
            dict(type="ColorJitter", brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, p=0.8),
            dict(type="RandomGrayscale", p=0.2),
            dict(type="GaussianBlur", radius=(0.1, 2.0), p=0.5),
            dict(type="RandomHorizontalFlip", p=0.5),
        ],
        num_views=2,
    ),
)
# 0.05 for 256 images, 0.1 for 512; everything decays, BN and biases too.
optim_wrapper = dict(
    optimizer=dict(type="SGD", lr=0.05, momentum=0.9, weight_decay=1e-4), constructor="FixedPredictorLR"
)
auto_scale_lr = dict(base_batch_size=256, enable=True)
param_scheduler = [dict(type="CosineButFixed", eta_min=0.0, by_epoch=True)]
train_cfg = dict(type="ResumableEpochLoop", max_epochs=100)
env_cfg = dict(cudnn_benchmark=True)
default_hooks = dict(collapse=dict(type="CollapseMonitor"))
custom_hooks = [dict(type="KnnMonitor", interval=10)]
