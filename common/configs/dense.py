"""What every run of detection and segmentation shares: counted in iterations, saved and shown on the way."""

default_hooks = dict(
    runtime_info=dict(type="RuntimeInfoHook"),
    timer=dict(type="IterTimerHook"),
    sampler_seed=dict(type="DistSamplerSeedHook"),
    param_scheduler=dict(type="ParamSchedulerHook"),
    # Two kept: the hook removes the oldest before it writes the newest, and a disk may be full.
    checkpoint=dict(type="CheckpointHook", by_epoch=False, interval=1000, max_keep_ckpts=2),
    logger=dict(type="LoggerHook", interval=50),
    progress=dict(type="Progress", interval=10),
)
# An iteration is a step of the optimiser; --accumulate divides it into parts, --amp runs it in another precision.
train_cfg = dict(type="ResumableIterLoop")
optim_wrapper = dict(type="StepOptimWrapper")
visualizer = dict(type="Visualizer", vis_backends=[dict(type="TensorboardVisBackend")])
log_processor = dict(by_epoch=False)
env_cfg = dict(cudnn_benchmark=False, mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0))
val_cfg = None  # no choice among checkpoints: the last iterate is tested
test_cfg = dict()
