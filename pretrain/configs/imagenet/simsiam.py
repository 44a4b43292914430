"""SimSiam, ResNet-50, ImageNet, 100 epochs, batch 512.  make pretrain PROFILE=imagenet METHOD=simsiam"""

_base_ = "../_base_/imagenet.py"
