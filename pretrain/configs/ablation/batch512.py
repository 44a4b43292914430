"""A batch of 512 images, the learning rate scaled with it.  make pretrain METHOD=simsiam_gsg-batch512"""

train_dataloader = dict(batch_size=512)
auto_scale_lr = dict(enable=True)
