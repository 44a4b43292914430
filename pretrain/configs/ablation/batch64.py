"""A batch of 64 images, the learning rate scaled with it.  make pretrain METHOD=simsiam_gsg-batch64"""

train_dataloader = dict(batch_size=64)
auto_scale_lr = dict(enable=True)
