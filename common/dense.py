"""Detection and segmentation from command line to record; the rooms add configs, readers and metrics.

A pretrained backbone is finetuned with the other layers for a fixed number of iterations, and the last
iterate is tested. torch is imported only when there is something to run.
"""

import argparse
from collections.abc import Callable, Iterable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmengine.config import Config, ConfigDict

from common import cli, records
from common.config import add_config_arguments, config_sha256, load_config
from common.files import sha256_of_text

if TYPE_CHECKING:
    from common.engine import Runner

BASIC, BOTTLENECK = (64, 128, 256, 512), (256, 512, 1024, 2048)
# Name -> depth and channels after layer1 ... layer4. All have the 7x7 stem and strides 4, 8, 16, 32.
RESNETS = {
    "resnet18": (18, BASIC),
    "resnet34": (34, BASIC),
    "resnet50": (50, BOTTLENECK),
    "resnet101": (101, BOTTLENECK),
    "resnet152": (152, BOTTLENECK),
}


@dataclass(frozen=True)
class Task:
    """What a room tells the shared trainer about one data set."""

    name: str
    dataset: str
    configs: Path
    metrics: dict[str, tuple[str, float]]  # the record's name -> the evaluator's key, factor to percent
    register: Callable[[], None]  # makes mmdet's or mmseg's modules and the room's own known
    place: str  # which files the official layout has under the data root
    variant: str | None = None
    options: dict[str, Any] = field(default_factory=dict)  # config overrides that the variant means
    before_test: Callable[["Runner"], None] = lambda runner: None
    finish: Callable[["Runner"], None] = lambda runner: None  # what else a finished run leaves
    products: Callable[[Path], Iterable[Path]] = lambda work_dir: ()  # files without which it is not done


def parser(module: str, description: str) -> cli.Parser:
    """Return the parser of a dense task: the common arguments and those of a trainer."""
    result = cli.parser(module, description, reads_checkpoint=True)
    add_config_arguments(result)
    return result


def evaluate_all(task: Task, args: argparse.Namespace) -> None:
    """Finetune, test and record every checkpoint that the arguments ask for, unless it is done already."""
    if not (task.configs / args.profile).is_dir():
        known = ", ".join(p for p in cli.PROFILES if (task.configs / p).is_dir())
        raise cli.UserError(f"profile {args.profile} has no {task.name}; choose PROFILE from {known}")
    options = {**task.options, **args.cfg_options}
    path = task.configs / args.profile / f"{task.dataset}.py"
    sha256 = config_sha256(load_config(path, data=args.data, options=options), data=args.data)
    stem = task.dataset if task.variant is None else f"{task.dataset}-{task.variant}"
    todo = []
    for subject in cli.subjects(args):
        work_dir = args.runs / args.profile / f"{task.name}-{stem}" / f"{subject.name}-seed{args.seed}"
        key = records.RecordKey(args.profile, task.name, subject.name, task.dataset, args.seed, task.variant)
        products = task.products(work_dir)
        run = records.start_run(key, subject, config_sha256=sha256, results=args.results, products=products)
        if run is not None:
            todo.append((subject, run, work_dir))
    for subject, run, work_dir in todo:
        config = load_config(path, data=args.data, options=options)
        _evaluate(task, args, config, subject, run, work_dir)


def _evaluate(
    task: Task, args: argparse.Namespace, config: Config, subject: cli.Subject, run: records.Run, work_dir: Path
) -> None:
    from common.checkpoint import load_checkpoint
    from common.embedded import ensure_embedded
    from common.engine import build_runner, mark_finished, set_run, with_config_mistakes_named

    checkpoint = load_checkpoint(subject.path, make_it=subject.make_it)
    fit_to_arch(config, checkpoint.arch)
    if args.profile == "demo":
        ensure_embedded(args.data)
    require_layout(config, task.place)
    set_run(config, work_dir=work_dir, seed=args.seed, launcher=args.launcher)
    task.register()
    settings = sha256_of_text(run.config_sha256, run.checkpoint_sha256)
    runner = build_runner(config, settings=settings, backbone=checkpoint, resume=args.resume)
    with redirect_stdout(StringIO()):  # pycocotools reports each of its steps
        train, test = with_config_mistakes_named(
            lambda: (runner.train_loop.dataloader.dataset, runner.test_loop.dataloader.dataset)
        )
    fingerprint = data_fingerprint(args.data, train, test)
    with_config_mistakes_named(runner.train)
    task.before_test(runner)
    with redirect_stdout(StringIO()):
        found = runner.test_loop.run()
    if runner.rank != 0:
        return
    # mmdet's COCO evaluator gives no number at all when nothing was detected anywhere: that is an AP of 0.
    metrics = {name: round(found.get(key, 0.0) * factor, 4) for name, (key, factor) in task.metrics.items()}
    task.finish(runner)
    record = run.finish(
        args.results,
        metrics=metrics,
        protocol=protocol_facts(runner, n_train=len(train), n_test=len(test)),
        data_fingerprint=fingerprint,
        device=next(runner.model.parameters()).device.type,
    )
    mark_finished(runner)  # not before: a run killed in its test resumes at its last iterate
    shown = "  ".join(f"{name} {value:.1f}" for name, value in metrics.items())
    print(f"{subject.name} on {task.dataset}: {shown}  -> {record}", flush=True)


def fit_to_arch(config: Config, arch: str) -> None:
    """Set the backbone's depth, and the channels that the neck or decode head takes from it, for `arch`.

    Raises UserError for a network without the four stages at strides 4-32 that the dense heads read.
    """
    if arch not in RESNETS:
        raise cli.UserError(
            f"{arch} cannot serve a dense task, whose heads read strides 4, 8, 16 and 32 of a ResNet with a "
            f"7x7 stem; choose a checkpoint of {', '.join(RESNETS)}"
        )
    depth, channels = RESNETS[arch]
    model = config.model
    model.backbone.depth = depth
    (model.neck if "neck" in model else model.decode_head).in_channels = list(channels)


def require_layout(config: Config, place: str) -> None:
    """Raise UserError naming the first folder or file that a data set of `config` reads and that is not there."""
    for dataset in (*_leaves(config.train_dataloader.dataset), *_leaves(config.test_dataloader.dataset)):
        root = Path(dataset.data_root)
        parts = [dataset.get("ann_file", ""), *dataset.data_prefix.values()]
        for path in (root, *(root / part for part in parts if part)):
            if not path.exists():
                raise cli.UserError(f"data set: {path} is missing; {place} under {root}")


def data_fingerprint(data: Path, *datasets: Any) -> str:
    """Return a SHA-256 over names and sizes in bytes of the images and annotations that the data sets list.

    Raises UserError naming a listed file that is not there: better now than after hours of training.
    """
    entries = []
    for dataset in datasets:
        for index in range(len(dataset)):
            info = dataset.get_data_info(index)
            for path in (Path(info[key]) for key in ("img_path", "xml_path", "seg_map_path") if info.get(key)):
                try:
                    entries.append(f"{path.relative_to(data)}:{path.stat().st_size}")
                except FileNotFoundError:
                    raise cli.UserError(f"{path} is listed but missing; restore the data set") from None
    return sha256_of_text(*entries)


def protocol_facts(runner: "Runner", *, n_train: int, n_test: int) -> dict[str, Any]:
    """Return what a reader of the record must know to compare it."""
    config = runner.cfg
    return {
        "iterations": config.train_cfg.max_iters,
        "batch": config.train_dataloader.batch_size * runner.world_size,
        "lr": config.optim_wrapper.optimizer.lr,
        "frozen_stages": config.model.backbone.frozen_stages,
        "backbone_depth": config.model.backbone.depth,
        "n_train": n_train,
        "n_test": n_test,
        "evaluation": config.evaluation,
    }


def _leaves(dataset: ConfigDict) -> Iterator[ConfigDict]:
    if "datasets" in dataset:
        for part in dataset.datasets:
            yield from _leaves(part)
    else:
        yield dataset
