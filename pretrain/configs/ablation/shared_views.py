"""References are the batch's own two views (ours).  make pretrain METHOD=simsiam_gsg-shared_views"""

model = dict(views="shared")
train_dataloader = dict(dataset=dict(num_views=2))
