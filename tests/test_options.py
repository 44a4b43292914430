"""--cfg-options that the commands refuse, and our own config files, of whose keys each is read."""

from pathlib import Path

import pytest

import detection.train
import pretrain.knn
import pretrain.linear
import pretrain.train
import segmentation.train
from common import cli
from common.config import load_config
from common.keys import check_keys

ROOT = Path(cli.__file__).parents[1]
COMMANDS = {
    "pretrain": pretrain.train,
    "linear": pretrain.linear,
    "knn": pretrain.knn,
    "detection": detection.train,
    "segmentation": segmentation.train,
}
# Command, option, and what the line says of it: the nearest key or value that it takes, or the flag to use.
REFUSED = """
knn          evaluation.temprature=0.1                      did you mean 'evaluation.temperature'?
knn          evaluation.images.rot=x                        did you mean 'evaluation.images.root'?
knn          evalution.k=5                                  did you mean 'evaluation'?
knn          compile=True                                   remove it
pretrain     modle.guide=none                               did you mean 'model'?
pretrain     model.giude=none                               did you mean 'model.guide'?
pretrain     model.projector.dims=512                       did you mean 'model.projector.dim'?
pretrain     model.backbone.nam=resnet18                    did you mean 'model.backbone.name'?
pretrain     model.type=SimSam                              did you mean 'SimSiam'?
pretrain     train_cfg.max_epoch=3                          did you mean 'train_cfg.max_epochs'?
pretrain     optim_wrapper.optimizer.lrr=0.1                did you mean 'optim_wrapper.optimizer.lr'?
pretrain     optim_wrapper.optimizer.type=Adamm             did you mean 'Adam'?
pretrain     optim_wrapper.clip_grad.max_norms=1            did you mean 'optim_wrapper.clip_grad.max_norm'?
pretrain     optim_wrapper.accumulative_counts=2            remove it
pretrain     env_cfg.cudnn_benchmrk=True                    did you mean 'env_cfg.cudnn_benchmark'?
pretrain     default_hooks.chekpoint.interval=5             did you mean 'default_hooks.checkpoint'?
pretrain     default_hooks.progress.intervall=5             did you mean 'default_hooks.progress.interval'?
pretrain     custom_hooks.0.intervall=5                     did you mean 'custom_hooks.0.interval'?
pretrain     custom_hooks.7.interval=5                      Index 7 exceeds the length of list
pretrain     train_dataloader.num_worker=1                  did you mean 'train_dataloader.num_workers'?
pretrain     train_dataloader.dataset.augmentation.1.hu=0.1 did you mean 'train_dataloader.dataset.augmentation.1.hue'?
pretrain     param_scheduler.0.eta_mn=0.1                   did you mean 'param_scheduler.0.eta_min'?
pretrain     randomness.determinstic=True                   did you mean 'randomness.deterministic'?
pretrain     compile.mod=default                            did you mean 'compile.mode'?
pretrain     custom_hooks.0=1                               an entry on its way is not a dict; correct --cfg-options
pretrain     model.backbone._delete_=True                   set the entries themselves
linear       default_hooks.collapse.stop=True               remove it
linear       val_evaluator.type=TopKK                       did you mean 'TopK'?
linear       evaluation.k=5                                 remove it
detection    train_cfg.max_iter=20                          did you mean 'train_cfg.max_iters'?
detection    model.rpn_head.loss_weigth=2                   did you mean 'model.rpn_head.loss_bbox.loss_weight'?
detection    model.train_cfg.rcnn.sampler.nun=64            did you mean 'model.train_cfg.rcnn.sampler.num'?
detection    model.test_cfg.rcnn.score_thrr=0.1             did you mean 'model.test_cfg.rcnn.score_thr'?
detection    model.test_cfg.rcnn.nms.iou_thresh=0.5         did you mean 'model.test_cfg.rcnn.nms.iou_threshold'?
detection    model.backbone.norm_cfg.typ=BN                 did you mean 'model.backbone.norm_cfg.type'?
detection    auto_scale_lr.enabled=False                    did you mean 'auto_scale_lr.enable'?
detection    log_processor.by_epoc=False                    did you mean 'log_processor.by_epoch'?
detection    env_cfg.mp_cfg.opencv_num_thread=1             did you mean 'env_cfg.mp_cfg.opencv_num_threads'?
detection    train_dataloader.dataset.metainfo.clases=[a]   did you mean 'train_dataloader.dataset.metainfo.classes'?
segmentation model.decode_head.chanels=32                   did you mean 'model.decode_head.channels'?
segmentation train_dataloader.batch_sampler.by_shap=True    did you mean 'train_dataloader.batch_sampler.by_shape'?
pretrain     optim_wrapper.paramwise_cfg.custom_keys.x.lr_mul=1 did you mean 'optim_wrapper.paramwise_cfg.custom_keys.x.
segmentation optim_wrapper.paramwise_cfg.bias_decay=0       did you mean 'optim_wrapper.paramwise_cfg.bias_decay_mult'?

knn          evaluation.k=0                                 choose a whole number from 1 on
knn          evaluation.size=abc                            choose a whole number from 1 on
knn          evaluation.resize=abc                          choose a whole number from 1 on
knn          evaluation.interpolation=cubic                 choose bilinear or bicubic
knn          evaluation.images.root=5                       choose a word, as '.' is
pretrain     train_cfg.max_epochs=-1                        choose a whole number from 1 on
pretrain     train_cfg.max_epochs=1.5                       choose a whole number from 1 on
pretrain     train_cfg.max_epochs=abc                       choose a whole number from 1 on
pretrain     train_cfg.max_epochs.x=1                       an entry on its way is not a dict; correct --cfg-options
pretrain     train_dataloader.batch_size=abc                choose a whole number from 1 on
pretrain     train_dataloader.num_workers=-1                choose a whole number from 0 on
pretrain     train_dataloader.drop_last=5                   choose True or False
pretrain     train_dataloader.dataset.augmentation=5        choose a list
pretrain     train_dataloader.dataset.augmentation.1.p=5    choose a number from 0 to 1
pretrain     optim_wrapper.dtype=float17                    choose None or float16 or bfloat16
pretrain     optim_wrapper.optimizer.lr=None                choose a number from 0 to 1e38
pretrain     optim_wrapper.clip_grad=5                      choose a dict
pretrain     default_hooks.checkpoint.interval=0            choose a whole number from 1 on
pretrain     default_hooks.checkpoint.max_keep_ckpts=0      choose a whole number from 1 on, or -1 for all
pretrain     custom_hooks.0.priority=NEVER                  choose HIGHEST or VERY_HIGH or
pretrain     optim_wrapper.paramwise_cfg.norm_decay_mult=-1 choose a number from 0 on
pretrain     param_scheduler.0.eta_min=-1                   choose a number from 0 on
pretrain     log_processor.window_size=0                    choose a whole number from 1 on
pretrain     train_dataloader.prefetch_factor=0             choose a whole number from 1 on
pretrain     train_dataloader.timeout=-1                    choose a whole number from 0 on
pretrain     default_hooks.progress.interval=0              choose a whole number from 1 on
pretrain     default_hooks.progress=None                    choose a dict
pretrain     compile.mode=fast                              choose default or reduce-overhead or max-autotune
pretrain     sync_bn=mmcv                                   choose None or torch
pretrain     model=None                                     choose a dict
linear       optim_wrapper.optimizer.lr=-1                  choose a number from 0 to 1e38
linear       val_dataloader.dataset.size=0                  choose a whole number from 1 on
detection    train_cfg.max_iters=0                          choose a whole number from 1 on
detection    model.backbone.frozen_stages=9                 choose a whole number from -1 to 4
detection    model.data_preprocessor.mean=5                 choose a list
detection    param_scheduler.0.end=-1                       choose a whole number from 1 on
detection    log_level=LOUD                                 choose DEBUG or INFO or WARNING or ERROR
segmentation train_cfg.max_iters=-3                         choose a whole number from 1 on
segmentation model.test_cfg.crop_size=(0,0)                 choose a whole number from 1 on
segmentation model.test_cfg.mode=part                       choose whole or slide

pretrain     randomness.seed=1                              choose it by SEED=n (--seed n)
detection    randomness.seed=1                              choose it by SEED=n (--seed n)
pretrain     work_dir=x                                     choose another folder by --runs
linear       resume=True                                    add RESUME=1 (--resume)
segmentation launcher=slurm                                 choose it by LAUNCHER=torchrun or slurm (--launcher)
detection    load_from=x.pth                                choose other weights by CHECKPOINT=path NAME=label
linear       model.backbone.name=resnet50                   choose it by METHOD or CHECKPOINT
detection    model.backbone.depth=18                        choose another backbone by METHOD or CHECKPOINT
detection    data_root=x                                    set train_dataloader.dataset.data_root and test_dataloader
segmentation norm_cfg.momentum=0.5                          set model.backbone.norm_cfg and model.decode_head.norm_cfg
"""


@pytest.mark.parametrize(
    "case", [line for line in REFUSED.splitlines() if line], ids=lambda case: " ".join(case.split()[:2])
)
def test_a_wrong_option_ends_in_one_line_before_anything_is_written(case, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command, option, remedy = case.split(maxsplit=2)
    with pytest.raises(SystemExit) as ended:
        cli.run(lambda: COMMANDS[command].main(["--cfg-options", option]))
    assert ended.value.code == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: config ")
    key = option.partition("=")[0]
    assert key in line or key.rpartition(".")[0] in line or key.rpartition(".")[2] in line  # the part that is wrong
    assert remedy in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", sorted(ROOT.glob("*/configs/[!_]*/*.py")), ids=lambda p: f"{p.parts[-2]}/{p.stem}")
def test_every_key_of_our_configs_is_read(path):
    """Also those of entries with a `type`, which a command checks only once it has imported what they name."""
    module = COMMANDS[path.parts[-4]]
    config = load_config(path)
    if path.parent.name == "ablation":
        method = path.parents[1] / "demo" / ("byol_gsg.py" if path.stem == "chosen_only" else "simsiam_gsg.py")
        config = load_config(method, options=config.to_dict(), register=module.register)
    check_keys(config, name=path.name, register=module.register)


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("pretrain", {"model.chosen_only": True, "model.type": "BYOL"}),
        ("pretrain", {"model.backbone.zero_init_residual": True, "optim_wrapper.clip_grad.max_norm": 3}),
        ("pretrain", {"optim_wrapper.optimizer.nesterov": True, "train_dataloader.prefetch_factor": 4}),
        ("pretrain", {"param_scheduler.0.T_max": 3, "custom_hooks.0.priority": "LOW", "custom_hooks.0.interval": 2}),
        ("detection", {"model.neck.upsample_cfg.align_corners": False, "default_hooks.checkpoint.save_last": False}),
        ("detection", {"model.roi_head.bbox_roi_extractor.roi_layer.pool_mode": "max", "log_level": "DEBUG"}),
        ("detection", {"model.test_cfg.rcnn.nms.type": "soft_nms", "model.test_cfg.rcnn.nms.min_score": 0.01}),
        ("segmentation", {"model.backbone.avg_down": True, "optim_wrapper.paramwise_cfg.bypass_duplicate": True}),
    ],
)
def test_options_that_the_files_do_not_name_are_taken(command, options):
    name = {"pretrain": "simsiam_gsg", "detection": "voc", "segmentation": "ade20k"}[command]
    path = ROOT / command / "configs" / "demo" / f"{name}.py"
    config = load_config(path, options=options, register=COMMANDS[command].register)
    check_keys(config, name=path.name, register=COMMANDS[command].register)
