"""SimSiam with GSG, ResNet-18, embedded digits.  make pretrain METHOD=simsiam_gsg"""

_base_ = "./simsiam.py"

model = dict(guide="nearest", views="fresh")
train_dataloader = dict(dataset=dict(num_views=4))
