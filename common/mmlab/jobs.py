"""The runs of detection and segmentation that a command line asks for."""

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config

from common import cli
from common.config import config_sha256, join_data, keeping, load_config
from common.errors import UserError
from common.files import sha256_of_text
from common.keys import Register
from common.names import PROFILES
from common.records import RecordKey
from common.run import Job
from common.sources import own_data, own_name

WEIGHTS, CONFIG = "final.pth", "config.py"  # what a finished run leaves in its work_dir
# What follows from the checkpoint.
BACKBONE = dict.fromkeys(
    ("model.backbone.depth", "model.neck.in_channels", "model.decode_head.in_channels"),
    "choose another backbone by METHOD or CHECKPOINT (--method, --checkpoint)",
)
# The parts of a config that training does not read: if only these change, the trained weights are tested again.
TESTING = ("val_dataloader", "val_evaluator", "val_cfg", "test_dataloader", "test_evaluator", "test_cfg", "evaluation")


@dataclass(frozen=True, eq=False, kw_only=True)
class Finetuning(Job):
    """A run that finetunes a checkpoint on mmdet or mmseg; `again` means to test the weights trained before."""

    layout: str  # the data set whose layout is read
    data_root: Path | None  # a data set of the user's, instead of one under `folders.data`
    training: str  # SHA-256 of the settings that training reads
    fixed_iterations: bool  # the number of iterations was given, and does not follow the batch

    @property
    def trained_under(self) -> str:
        """SHA-256 of all that trained weights depend on."""
        return sha256_of_text(self.training, self.checkpoint_sha256)


def parser(module: str, description: str, examples: str) -> cli.Parser:
    """Return the parser of a dense task: the common arguments and those of a trainer."""
    result = cli.parser(module, description, examples, reads_checkpoint=True)
    cli.add_config_arguments(result)
    cli.add_scale_arguments(result)
    result.add_argument("--data-root", type=cli.path, help="a data set of your own, in the layout of --dataset")
    result.add_argument(
        "--classes",
        type=_words,
        help="the names of its classes, separated by commas, instead of what its files say",
    )
    result.add_argument(
        "--test-only", action="store_true", help=f"test a finished run again from its {WEIGHTS}; train nothing"
    )
    return result


def picture_parser(module: str, description: str, examples: str) -> cli.Parser:
    """Return the parser of a command that draws what a finished run finds in a folder of images."""
    result = cli.parser(module, description, examples, unused="data checkpoints results")
    result.add_argument("--images", required=True, type=cli.path, help="the folder of images, at any depth")
    result.add_argument("--name", help="the run's label, if it is not a --method's")
    result.add_argument("--dataset", default="", help="the run's data set, if there are several; voc-frozen, say")
    result.add_argument("--reports", default="reports", type=cli.path, help="where the pictures go")
    return result


def _words(text: str) -> list[str]:
    words = [word.strip() for word in text.split(",")]
    if not all(words) or len({*words}) < len(words):
        raise UserError(f"CLASSES is '{text}'; choose names that differ, separated by commas")
    return words


def resolve(
    args: argparse.Namespace,
    task: str,
    dataset: str,
    *,
    configs: Path,
    register: Register,
    variant: str | None,
    options: Mapping[str, Any],
    products: Callable[[Path], Iterable[Path]],
    use_folder: Callable[[Config, Path, Sequence[str] | None, Path], None],
) -> list[Finetuning]:
    """Return the runs of all checkpoints that the arguments ask for.

    `options` are the config entries of the `variant`; `products` returns the files that a finished run leaves in its
    work_dir besides weights and config. `use_folder` fits a config to a data set of the user's in the layout of
    `dataset`, given its folder, its classes if they were named, and where `common.preflight` keeps its results.
    """
    if not (configs / args.profile).is_dir():
        known = ", ".join(profile for profile in PROFILES if (configs / profile).is_dir())
        raise UserError(f"profile {args.profile} has no {task}; choose PROFILE from {known}")
    config = load_config(
        configs / args.profile / f"{dataset}.py",
        options={**options, **cli.scale_options(args), **args.cfg_options},
        register=register,
        set_by_command=BACKBONE,
    )
    label = dataset
    if args.data_root is not None:
        label = own_name(args.data_root)
        with keeping(args.cfg_options, config):
            use_folder(config, args.data_root, args.classes, args.runs / "checked")
    elif args.classes is not None:
        raise UserError(
            "CLASSES names the classes of a data set of your own: add DATA_ROOT=folder (--data-root folder)"
        )
    training = {key: value for key, value in config.to_dict().items() if key not in TESTING}
    own = own_data(args.data_root)
    settings, training_settings = config_sha256(config, *own), config_sha256(Config(training), *own)
    jobs = []
    for subject in cli.subjects(args):
        key = RecordKey(args.profile, task, subject.name, label, args.seed, variant)
        work_dir = args.runs / args.profile / f"{task}-{key.stem}" / f"{subject.name}-seed{args.seed}"
        jobs.append(
            Finetuning(
                key=key,
                subject=subject,
                settings=settings,
                layout=dataset,
                data_root=args.data_root,
                training=training_settings,
                folders=cli.folders(args),
                config=join_data(config, args.data_root or args.data),
                work_dir=work_dir,
                products=[work_dir / WEIGHTS, work_dir / CONFIG, *products(work_dir)],
                launcher=args.launcher,
                logger=args.logger,
                resume=args.resume,
                overwrite=args.overwrite,
                again=args.test_only,
                fixed_iterations="train_cfg.max_iters" in args.cfg_options,
            )
        )
    return jobs


def named(path: str, data: Path) -> str:
    """Return a file's name in a run's products: its path from the data root, or the whole path if it lies elsewhere."""
    absolute, root = Path(path).absolute(), data.absolute()
    return str(absolute.relative_to(root) if absolute.is_relative_to(root) else absolute)
