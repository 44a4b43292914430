"""Projections are their own predictions.  make pretrain METHOD=simsiam_gsg-no_predictor"""

model = dict(predictor=None)
