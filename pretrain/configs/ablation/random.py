"""A pair of views drawn at random learns.  make pretrain METHOD=simsiam_gsg-random"""

model = dict(guide="random")
