"""Weighted kNN on frozen features: the standard evaluation without training.

make knn METHOD=simsiam_gsg
"""

from collections.abc import Sequence
from pathlib import Path

from common import cli
from common.config import config_sha256, join_data, keeping, load_config
from common.records import RecordKey
from common.run import Job, record, todo
from common.sources import own_data
from pretrain.data import label, use_folder

CONFIGS = Path(__file__).parent / "configs"
EXAMPLES = """
make knn METHOD=all
make knn CHECKPOINT=resnet50.pth NAME=mine PROFILE=imagenet DATA_ROOT=/birds
make knn ARGS='--cfg-options evaluation.k=20'
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run kNN for every method that the arguments name."""
    parser = cli.parser("pretrain.knn", "weighted kNN on frozen features", EXAMPLES, reads_checkpoint=True)
    cli.add_options_argument(parser)
    parser.add_argument("--data-root", type=cli.path, help="use this ImageFolder: train/ as the bank, val/ as queries")
    args = parser.parse_args(argv)
    cli.announce("pretrain.knn", args, checkpoints=args.checkpoints)
    config = load_config(CONFIGS / args.profile / "knn.py", options=args.cfg_options)
    if args.data_root is not None:
        with keeping(args.cfg_options, config):
            use_folder(config, args.data_root)
    settings = config_sha256(config, *own_data(args.data_root))
    config = join_data(config, args.data_root or args.data)
    jobs = [
        Job(
            key=RecordKey(args.profile, "knn", subject.name, label(config.evaluation.images), args.seed),
            subject=subject,
            settings=settings,
            folders=cli.folders(args),
            config=config,
        )
        for subject in cli.subjects(args)
    ]
    if left := todo(jobs):
        from pretrain.neighbours import measure

        for job in left:
            record(job, measure)


if __name__ == "__main__":
    cli.run(main)
