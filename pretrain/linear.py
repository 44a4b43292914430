"""Linear evaluation: a linear classifier on the frozen backbone, trained on mmengine's Runner.

make linear METHOD=simsiam_gsg
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config

from common import cli
from common.cli import add_config_arguments, add_deterministic_argument, add_scale_arguments, scale_options
from common.config import config_sha256, join_data, load_config
from common.engine.batch import plan_batch, processes
from common.keys import check_keys
from common.names import checkpoint_name
from common.records import RecordKey
from common.run import Subject, start_run
from pretrain.data import label, use_folder
from pretrain.train import register

CONFIGS = Path(__file__).parent / "configs"
BACKBONE = {"model.backbone": "choose it by METHOD or CHECKPOINT (--method, --checkpoint)"}


def evaluate(args: argparse.Namespace, subject: Subject, config: Config) -> None:
    """Train and test the classifier on one checkpoint and write its record: top-1 and top-5, last and best."""
    sha = config_sha256(config)
    config = join_data(config, args.data_root or args.data)
    data = label(config.train_dataloader.dataset.images)
    run = start_run(
        RecordKey(args.profile, "linear", subject.name, data, args.seed),
        subject,
        config_sha256=sha,
        results=args.results,
        overwrite=args.overwrite,
    )
    if run is None:
        return
    from common.checkpoint import load_checkpoint
    from common.engine.runner import alone_in, build_runner, set_run, train
    from common.features import pick_device
    from common.files import sha256_of_text
    from pretrain import probe

    check_keys(config, name="linear", register=register)

    checkpoint = load_checkpoint(subject.path, make_it=subject.make_it)
    config.model.backbone = dict(name=checkpoint.arch)
    work_dir = args.runs / args.profile / "linear" / checkpoint_name(subject.name, args.seed)
    batch = config.train_dataloader.batch_size
    plan = plan_batch(config, *processes(args.launcher))
    plan.apply(config)
    set_run(config, work_dir=work_dir, seed=args.seed, launcher=args.launcher)
    with alone_in(work_dir):
        runner = build_runner(
            config,
            settings=sha + checkpoint.sha256,
            backbone=checkpoint,
            resume=args.resume,
            overwrite=args.overwrite,
        )
        if runner.rank == 0:
            print(f"{subject.name}: {plan.said}", flush=True)
        train(runner)
        if runner.rank != 0:
            return
        train_set, test_set = runner.train_dataloader.dataset.images, runner.val_dataloader.dataset.images
        metrics = probe.history(runner)
        path = run.finish(
            args.results,
            metrics=metrics,
            protocol={
                "epochs": runner.max_epochs,
                "batch_size": batch,
                "lr": config.optim_wrapper.optimizer.lr,
                "optimizer": config.optim_wrapper.optimizer.type,
                "n_train": len(train_set.labels),
                "n_test": len(test_set.labels),
            },
            data_fingerprint=sha256_of_text(train_set.fingerprint, test_set.fingerprint),
            device=pick_device().type,
        )
        print(f"{subject.name}: linear top-1 {metrics['top1']:.2f} % (best epoch {metrics['best_top1']:.2f})  ({path})")


def main(argv: Sequence[str] | None = None) -> None:
    """Evaluate every checkpoint that the arguments name."""
    parser = cli.parser("pretrain.linear", "linear classifier on frozen features", reads_checkpoint=True)
    add_config_arguments(parser)
    add_scale_arguments(parser)
    add_deterministic_argument(parser)
    parser.add_argument("--data-root", type=Path, help="train and test on this ImageFolder (train/, val/)")
    args = parser.parse_args(argv)
    cli.announce("pretrain.linear", args, checkpoints=args.checkpoints, runs=args.runs)
    for subject in cli.subjects(args):
        options = {**scale_options(args), **args.cfg_options}
        config = load_config(
            CONFIGS / args.profile / "linear.py", options=options, register=register, set_by_command=BACKBONE
        )
        if args.data_root is not None:
            use_folder(config, args.data_root)
        evaluate(args, subject, config)


if __name__ == "__main__":
    cli.run(main)
