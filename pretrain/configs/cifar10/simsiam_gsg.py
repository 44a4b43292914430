"""SimSiam with GSG, ResNet-18, CIFAR-10, 200 epochs, batch 128.  make pretrain PROFILE=cifar10 METHOD=simsiam_gsg"""

_base_ = "./simsiam.py"

model = dict(guide="nearest", views="fresh")
train_dataloader = dict(dataset=dict(num_views=4))
