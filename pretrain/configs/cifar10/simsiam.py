"""SimSiam, ResNet-18, CIFAR-10, 200 epochs, batch 128.  make pretrain PROFILE=cifar10 METHOD=simsiam"""

_base_ = "../_base_/cifar10.py"
