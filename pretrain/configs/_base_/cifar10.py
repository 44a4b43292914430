"""The paper's CIFAR-10 pretraining (appendix B.2, C.2): a ResNet-18 variant, lightly's default setup.

Batch 128 and 200 epochs are the defaults of lightly's benchmark; the paper names no other (PROTOCOLS 2).
"""

_base_ = ["./runtime.py", "../cifar10/knn.py"]

model = dict(
    type="SimSiam",
    backbone=dict(name="resnet18_cifar"),
    projector=dict(layers=2, dim=2048, last_affine=True, last_bias=False),
    predictor=dict(hidden_dim=512),
    guide="none",
)
train_dataloader = dict(
    batch_size=128,
    num_workers=8,
    persistent_workers=True,
    pin_memory=True,
    drop_last=True,
    sampler=dict(type="EpochSampler"),
    collate_fn=dict(type="default_collate"),
    dataset=dict(
        type="MultiView",
        images=dict(name="cifar10", root=".", split="train"),
        augmentation=[  # B.2, in this order; no blur
            dict(type="RandomResizedCrop", size=32, scale=(0.08, 1.0)),
            dict(type="RandomHorizontalFlip", p=0.5),
            dict(type="ColorJitter", brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, p=0.8),
            dict(type="RandomGrayscale", p=0.2),
        ],
        num_views=2,
    ),
)
# No constant rate for the predictor, no scaling with the batch (BYOL scales, and the ablation of the batch).
optim_wrapper = dict(optimizer=dict(type="SGD", lr=0.06, momentum=0.9, weight_decay=5e-4))
auto_scale_lr = dict(base_batch_size=128, enable=False)
param_scheduler = [dict(type="CosineAnnealingLR", eta_min=0.0, by_epoch=True)]
train_cfg = dict(type="ResumableEpochLoop", max_epochs=200)
env_cfg = dict(cudnn_benchmark=True)  # all batches are of one size
# A line of the log waits for the GPU, whose steps take a fiftieth of a second here.
default_hooks = dict(collapse=dict(type="CollapseMonitor"), progress=dict(interval=50))
custom_hooks = [dict(type="KnnMonitor")]
