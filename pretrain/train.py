"""Pretrain a backbone and export it.

make pretrain METHOD=simsiam_gsg PROFILE=demo
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import cli
from common.config import add_config_arguments, config_sha256, load_config
from pretrain.export import export_backbone, is_exported

CONFIGS = Path(__file__).parent / "configs"


def pretrain(args: argparse.Namespace, method: str) -> None:
    """Train one method, unless its export is there already, and export its online backbone."""
    name = cli.checkpoint_name(method, args.seed)
    config = load_config(CONFIGS / args.profile / f"{method}.py", data=args.data, options=args.cfg_options)
    sha = config_sha256(config, data=args.data)
    path = args.checkpoints / args.profile / f"{name}.pth"
    if is_exported(path, config_sha256=sha, seed=args.seed):
        print(f"already done: {path}", flush=True)
        return
    work_dir = args.runs / args.profile / "pretrain" / name

    import pretrain.hooks
    import pretrain.loop
    import pretrain.methods
    import pretrain.optim
    import pretrain.views  # noqa: F401  (these register what the configs name)
    from common.engine import build_runner, set_run, train, with_config_mistakes_named

    if config.train_dataloader.batch_size < 2:
        raise cli.UserError("config: batch normalisation needs at least 2 images a process; raise the batch size")
    set_run(config, work_dir=work_dir, seed=args.seed, launcher=args.launcher)
    runner = build_runner(config, settings=sha, resume=args.resume)
    loader = with_config_mistakes_named(lambda: runner.train_dataloader)
    if len(loader) == 0:
        images = len(loader.dataset)
        batch = config.train_dataloader.batch_size
        raise cli.UserError(f"the training set has {images} images, fewer than a batch of {batch} on each process")
    train(runner)
    model: Any = getattr(runner.model, "module", runner.model)
    if runner.rank == 0:
        export_backbone(
            path,
            model.backbone,
            name=name,
            method=method,
            profile=args.profile,
            arch=config.model.backbone.arch,
            epochs=runner.max_epochs,
            seed=args.seed,
            dataset=config.train_dataloader.dataset.images["name"],
            config_sha256=sha,
        )
        print(f"exported the online backbone: {path}", flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Pretrain every method that the arguments name, one after another."""
    parser = cli.parser("pretrain.train", "pretrain SimSiam or BYOL, with or without GSG, and export the backbone")
    add_config_arguments(parser)
    args = parser.parse_args(argv)
    cli.announce("pretrain.train", args, checkpoints=args.checkpoints, runs=args.runs)
    for method in args.method:
        pretrain(args, method)


if __name__ == "__main__":
    cli.run(main)
