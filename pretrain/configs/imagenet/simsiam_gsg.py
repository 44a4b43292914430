"""SimSiam with GSG, ResNet-50, ImageNet, 100 epochs, batch 512.  make pretrain PROFILE=imagenet METHOD=simsiam_gsg"""

_base_ = "./simsiam.py"

model = dict(guide="nearest", views="fresh")
train_dataloader = dict(dataset=dict(num_views=4))
