"""Pretrain a backbone and export it.

make pretrain METHOD=simsiam_gsg PROFILE=demo
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from common import cli
from common.config import config_sha256, join_data, keeping, load_config
from common.errors import UserError
from common.names import UNTRAINED, checkpoint_name
from common.records import RecordKey
from common.run import Job, Subject, todo
from common.sources import own_data
from pretrain import register
from pretrain.data import label, use_folder
from pretrain.export import check_replaceable, is_exported

if TYPE_CHECKING:
    from mmengine.config import Config

CONFIGS = Path(__file__).parent / "configs"
EXAMPLES = """
make pretrain METHOD=simsiam_gsg
make pretrain METHOD=all PROFILE=imagenet DATA=/data GPUS=8 RESUME=1
make pretrain PROFILE=imagenet DATA_ROOT=/birds ARGS='--amp bf16 --skip-corrupt'
"""


@dataclass(frozen=True, eq=False, kw_only=True)
class Pretraining(Job):
    """A run that makes its subject's checkpoint; other runs evaluate one."""

    @property
    def place(self) -> Path:
        """The export."""
        return self.subject.path

    def is_done(self) -> bool:
        """Return whether the export is there, whole, of exactly these settings.

        Raises UserError for an export of other settings, unless the job may `overwrite` it.
        """
        if is_exported(self.place, config_sha256=self.settings, seed=self.key.seed):
            return True
        check_replaceable(self.place, config_sha256=self.settings, seed=self.key.seed, overwrite=self.overwrite)
        return False


def method_config(args: argparse.Namespace, name: str) -> "Config":
    """Return the settings of `name`, a method or <method>-<ablation>, with the arguments' changes.

    Raises UserError for an ablation of the guide of a method that has none.
    """
    method, _, ablation = name.partition("-")
    path = CONFIGS / args.profile / f"{'simsiam' if method == UNTRAINED else method}.py"
    changes = load_config(CONFIGS / "ablation" / f"{ablation}.py").to_dict() if ablation else {}
    if {"guide", "views"} & changes.get("model", {}).keys() and not method.endswith("_gsg"):
        raise UserError(f"METHOD {name}: {method} has no guide to vary; choose {method}_gsg-{ablation}")
    options = {**changes, **cli.scale_options(args), **args.cfg_options}
    config = load_config(path, options=options, register=register)
    if args.skip_corrupt:
        config.train_dataloader.dataset.skip_corrupt = True
    if args.device_views:
        config.device_views = True
    if args.data_root is not None:
        with keeping(args.cfg_options, config):
            use_folder(config, args.data_root)
    return config


def resolve(args: argparse.Namespace, subject: Subject, own: Sequence[str]) -> Pretraining:
    """Return the run of a method with the arguments' settings; `own` is what `own_data` says of their DATA_ROOT."""
    config = method_config(args, subject.name)
    settings = config_sha256(config, *own)
    config = join_data(config, args.data_root or args.data)
    if args.stop_on_collapse:
        config.default_hooks.collapse.stop = True
    data = label(config.train_dataloader.dataset.images)
    return Pretraining(
        key=RecordKey(args.profile, "pretrain", subject.name, data, args.seed),
        subject=subject,
        settings=settings,
        folders=cli.folders(args),
        config=config,
        work_dir=args.runs / args.profile / "pretrain" / checkpoint_name(subject.name, args.seed),
        launcher=args.launcher,
        logger=args.logger,
        resume=args.resume,
        overwrite=args.overwrite,
    )


def jobs(argv: Sequence[str] | None = None) -> list[Pretraining]:
    """Return the runs that a command line (default: sys.argv) asks for, and print the command's first line."""
    what = "pretrain SimSiam or BYOL, with or without GSG, and export the backbone"
    parser = cli.parser("pretrain.train", what, EXAMPLES, unused="results")
    cli.add_config_arguments(parser)
    cli.add_scale_arguments(parser)
    cli.add_deterministic_argument(parser)
    parser.add_argument("--data-root", type=cli.path, help="pretrain on this ImageFolder (train/, and val/ for kNN)")
    parser.add_argument("--device-views", action="store_true", help="make the views on the GPU, one batch at a time")
    parser.add_argument("--skip-corrupt", action="store_true", help="pass over corrupt images and count them")
    parser.add_argument("--stop-on-collapse", action="store_true", help="end a run whose representations collapse")
    args = parser.parse_args(argv)
    cli.announce("pretrain.train", args, checkpoints=args.checkpoints, runs=args.runs)
    own = own_data(args.data_root)
    return [resolve(args, subject, own) for subject in cli.exports(args)]


def main(argv: Sequence[str] | None = None) -> None:
    """Pretrain every method that the arguments name, one after another."""
    if left := todo(jobs(argv)):
        from pretrain.fit import pretrain

        for job in left:
            pretrain(job)


if __name__ == "__main__":
    cli.run(main)
