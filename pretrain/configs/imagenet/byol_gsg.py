"""BYOL with GSG, ResNet-50, ImageNet, 100 epochs, batch 512.  make pretrain PROFILE=imagenet METHOD=byol_gsg"""

_base_ = "./byol.py"

model = dict(guide="nearest", views="fresh")
train_dataloader = dict(dataset=dict(num_views=4))
