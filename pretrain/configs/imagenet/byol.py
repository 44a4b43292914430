"""BYOL, ResNet-50, ImageNet, 100 epochs, batch 512.  make pretrain PROFILE=imagenet METHOD=byol"""

_base_ = "./simsiam.py"

model = dict(type="BYOL", momentum=0.99)
