"""What every pretraining run shares: the loop's hooks, the data order, the console."""

default_scope = "mmengine"
default_hooks = dict(
    runtime_info=dict(type="RuntimeInfoHook"),
    timer=dict(type="IterTimerHook"),
    sampler_seed=dict(type="DistSamplerSeedHook"),
    param_scheduler=dict(type="ParamSchedulerHook"),
    # Two kept: the hook removes the oldest before it writes the newest, and a disk may be full.
    # By steps: a run resumes within an epoch, bit for bit.
    checkpoint=dict(type="CheckpointHook", by_epoch=False, interval=500, max_keep_ckpts=2),
    logger=None,  # Progress writes what it would, to the console, log.jsonl and TensorBoard
    progress=dict(type="Progress", interval=10),
)
visualizer = dict(type="Visualizer", vis_backends=[dict(type="TensorboardVisBackend")])
optim_wrapper = dict(type="StepOptimWrapper")
randomness = dict(seed=0)
env_cfg = dict(cudnn_benchmark=False)
