"""A batch of 128 images, the learning rate scaled with it.  make pretrain METHOD=simsiam_gsg-batch128"""

train_dataloader = dict(batch_size=128)
auto_scale_lr = dict(enable=True)
