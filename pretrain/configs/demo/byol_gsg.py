"""BYOL with GSG, ResNet-18, embedded digits.  make pretrain METHOD=byol_gsg"""

_base_ = "./byol.py"

model = dict(guide="nearest", views="fresh")
train_dataloader = dict(dataset=dict(num_views=4))
