"""A batch of 1024 images, the learning rate scaled with it.  make pretrain METHOD=simsiam_gsg-batch1024"""

train_dataloader = dict(batch_size=1024)
auto_scale_lr = dict(enable=True)
