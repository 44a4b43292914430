"""BYOL, ResNet-18, embedded digits.  make pretrain METHOD=byol"""

_base_ = "./simsiam.py"

model = dict(type="BYOL", momentum=0.99)
