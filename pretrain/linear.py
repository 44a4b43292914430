"""Linear evaluation: a linear classifier on the frozen backbone, trained on mmengine's Runner.

make linear METHOD=simsiam_gsg
"""

from collections.abc import Sequence
from pathlib import Path

from common import cli
from common.config import config_sha256, join_data, keeping, load_config
from common.names import checkpoint_name
from common.records import RecordKey
from common.run import Job, record, todo
from common.sources import own_data
from pretrain import register
from pretrain.data import label, use_folder

CONFIGS = Path(__file__).parent / "configs"
EXAMPLES = """
make linear METHOD=simsiam_gsg
make linear METHOD=all PROFILE=imagenet DATA=/data GPUS=8 RESUME=1
make linear CHECKPOINT=resnet50.pth NAME=mine PROFILE=imagenet
"""
BACKBONE = {"model.backbone": "choose it by METHOD or CHECKPOINT (--method, --checkpoint)"}


def main(argv: Sequence[str] | None = None) -> None:
    """Evaluate every checkpoint that the arguments name."""
    parser = cli.parser("pretrain.linear", "linear classifier on frozen features", EXAMPLES, reads_checkpoint=True)
    cli.add_config_arguments(parser)
    cli.add_scale_arguments(parser)
    cli.add_deterministic_argument(parser)
    parser.add_argument("--data-root", type=cli.path, help="train and test on this ImageFolder (train/, val/)")
    args = parser.parse_args(argv)
    cli.announce("pretrain.linear", args, checkpoints=args.checkpoints, runs=args.runs)
    options = {**cli.scale_options(args), **args.cfg_options}
    config = load_config(
        CONFIGS / args.profile / "linear.py", options=options, register=register, set_by_command=BACKBONE
    )
    if args.data_root is not None:
        with keeping(args.cfg_options, config):
            use_folder(config, args.data_root)
    settings = config_sha256(config, *own_data(args.data_root))
    config = join_data(config, args.data_root or args.data)
    data = label(config.train_dataloader.dataset.images)
    folder = "linear" if args.data_root is None else f"linear-{data}"
    jobs = [
        Job(
            key=RecordKey(args.profile, "linear", subject.name, data, args.seed),
            subject=subject,
            settings=settings,
            folders=cli.folders(args),
            config=config,
            work_dir=args.runs / args.profile / folder / checkpoint_name(subject.name, args.seed),
            launcher=args.launcher,
            logger=args.logger,
            resume=args.resume,
            overwrite=args.overwrite,
        )
        for subject in cli.subjects(args)
    ]
    if left := todo(jobs):
        from pretrain.fit import train_probe

        for job in left:
            record(job, train_probe)


if __name__ == "__main__":
    cli.run(main)
