"""Pretrain a backbone and export it.

make pretrain METHOD=simsiam_gsg PROFILE=demo
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import cli
from common.cli import add_config_arguments, add_deterministic_argument, add_scale_arguments, scale_options
from common.config import config_sha256, join_data, load_config
from common.engine.batch import plan_batch, processes
from common.errors import UserError
from common.keys import check_keys
from common.names import checkpoint_name
from pretrain.data import label, use_folder
from pretrain.export import check_replaceable, export_backbone, is_exported

if TYPE_CHECKING:
    from mmengine.config import Config

CONFIGS = Path(__file__).parent / "configs"


def method_config(args: argparse.Namespace, name: str) -> "Config":
    """Return the settings of `name`, a method or <method>-<ablation>, with the arguments' changes.

    Raises UserError for an ablation that says nothing about the method.
    """
    method, _, ablation = name.partition("-")
    path = CONFIGS / args.profile / f"{method}.py"
    changes = load_config(CONFIGS / "ablation" / f"{ablation}.py").to_dict() if ablation else {}
    if {"guide", "views"} & changes.get("model", {}).keys() and not method.endswith("_gsg"):
        raise UserError(f"METHOD {name}: {method} has no guide to vary; choose {method}_gsg-{ablation}")
    config = load_config(path, options={**changes, **scale_options(args), **args.cfg_options}, register=register)
    if args.skip_corrupt:
        config.train_dataloader.dataset.skip_corrupt = True
    if args.device_views:
        config.device_views = True
    if args.data_root is not None:
        use_folder(config, args.data_root)
    return config


def pretrain(args: argparse.Namespace, method: str) -> None:
    """Train one method, unless its export is there already, and export its online backbone."""
    name = checkpoint_name(method, args.seed)
    config = method_config(args, method)
    sha = config_sha256(config)
    config = join_data(config, args.data_root or args.data)
    path = args.checkpoints / args.profile / f"{name}.pth"
    if is_exported(path, config_sha256=sha, seed=args.seed):
        print(f"already done: {path}", flush=True)
        return
    check_replaceable(path, config_sha256=sha, seed=args.seed, overwrite=args.overwrite)
    work_dir = args.runs / args.profile / "pretrain" / name

    check_keys(config, name=method, register=register)
    from common.engine.processes import unwrapped
    from common.engine.runner import alone_in, build_runner, set_run, train, with_config_mistakes_named
    from pretrain.device_views import start_device_views, use_device_views

    batch = config.train_dataloader.batch_size
    plan = plan_batch(config, *processes(args.launcher))
    plan.apply(config)
    if config.train_dataloader.batch_size < 2:
        raise UserError("config: batch normalisation needs at least 2 images a process; raise the batch size")
    if args.stop_on_collapse:
        config.default_hooks.collapse.stop = True
    if config.get("device_views"):
        use_device_views(config)
    set_run(config, work_dir=work_dir, seed=args.seed, launcher=args.launcher)
    with alone_in(work_dir):
        if args.launcher == "none" and is_exported(path, config_sha256=sha, seed=args.seed):
            print(f"another process has done it: {path}", flush=True)
            return
        runner = build_runner(config, settings=sha, resume=args.resume, overwrite=args.overwrite)
        loader = with_config_mistakes_named(lambda: runner.train_dataloader)
        if runner.rank == 0:
            print(f"{name}: {plan.said}", flush=True)
        if runner.max_iters == 0:
            raise UserError(f"the training set has {len(loader.dataset)} images, fewer than a batch of {batch}")
        if config.get("device_views"):
            start_device_views(runner)
        train(runner)
        if runner.rank == 0:
            model: Any = unwrapped(runner.model)
            export_backbone(
                path,
                model.backbone,
                work_dir=work_dir,
                resumed=bool(config.resume),
                name=name,
                method=method,
                profile=args.profile,
                arch=config.model.backbone.name,
                epochs=runner.max_epochs,
                seed=args.seed,
                dataset=label(config.train_dataloader.dataset.images),
                config_sha256=sha,
            )
            print(f"exported the online backbone: {path}", flush=True)


def register() -> Mapping[str, Any]:
    """Make what the room's configs name known to mmengine's registries. Return the augmentations, which are in none."""
    import pretrain.hooks
    import pretrain.loop
    import pretrain.methods
    import pretrain.optim
    import pretrain.probe
    import pretrain.views  # noqa: F401
    from pretrain.augmentation import AUGMENTATIONS

    return AUGMENTATIONS


def main(argv: Sequence[str] | None = None) -> None:
    """Pretrain every method that the arguments name, one after another."""
    parser = cli.parser("pretrain.train", "pretrain SimSiam or BYOL, with or without GSG, and export the backbone")
    add_config_arguments(parser)
    add_scale_arguments(parser)
    add_deterministic_argument(parser)
    parser.add_argument("--data-root", type=Path, help="pretrain on this ImageFolder (train/, and val/ for kNN)")
    parser.add_argument("--device-views", action="store_true", help="make the views on the GPU, a batch at a time")
    parser.add_argument("--skip-corrupt", action="store_true", help="pass over corrupt images and count them")
    parser.add_argument("--stop-on-collapse", action="store_true", help="end a run whose representations collapse")
    args = parser.parse_args(argv)
    cli.announce("pretrain.train", args, checkpoints=args.checkpoints, runs=args.runs)
    for method in args.method:
        pretrain(args, method)


if __name__ == "__main__":
    cli.run(main)
