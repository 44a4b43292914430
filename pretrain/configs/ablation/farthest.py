"""The pair of views that lie farthest apart learns.  make pretrain METHOD=simsiam_gsg-farthest"""

model = dict(guide="farthest")
