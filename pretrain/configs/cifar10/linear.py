"""Linear classifier on CIFAR-10.  make linear PROFILE=cifar10

Ours: neither the paper nor lightly has one. ImageNet's protocol at 32 pixels, without a resize (PROTOCOLS 3.3).
"""

_base_ = "../imagenet/linear.py"

model = dict(backbone=dict(name="resnet18_cifar"), num_classes=10)
train_dataloader = dict(
    num_workers=8,
    dataset=dict(
        images=dict(name="cifar10"),
        augmentation=[
            dict(type="RandomResizedCrop", size=32, scale=(0.08, 1.0)),
            dict(type="RandomHorizontalFlip", p=0.5),
        ],
    ),
)
val_dataloader = dict(num_workers=2, dataset=dict(images=dict(name="cifar10"), size=32, resize=None))
