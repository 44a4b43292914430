"""BYOL, ResNet-18, CIFAR-10, 200 epochs, batch 128.  make pretrain PROFILE=cifar10 METHOD=byol"""

_base_ = "./simsiam.py"

model = dict(type="BYOL", momentum=0.99)
auto_scale_lr = dict(enable=True)
