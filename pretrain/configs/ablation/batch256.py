"""A batch of 256 images, the learning rate scaled with it.  make pretrain METHOD=simsiam_gsg-batch256"""

train_dataloader = dict(batch_size=256)
auto_scale_lr = dict(enable=True)
