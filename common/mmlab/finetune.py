"""Detection and segmentation from command line to record; the rooms add configs, readers and metrics.

A pretrained backbone is finetuned with the other layers for a fixed number of iterations, and the last
iterate is tested. torch is imported only when there is something to run.
"""

import argparse
import glob
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from os.path import relpath  # for data sets beside the data root, too
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmengine.config import Config, ConfigDict

from common import cli, records
from common.cli import add_config_arguments, add_scale_arguments, scale_options
from common.config import config_sha256, join_data, load_config
from common.engine.batch import plan_batch, processes
from common.errors import UserError
from common.files import atomic_path, atomic_write, is_whole_zip, sha256_of_file, sha256_of_text
from common.keys import check_keys
from common.names import PROFILES
from common.run import Run, Subject, start_run

if TYPE_CHECKING:
    from common.engine.runner import Runner

BASIC, BOTTLENECK = (64, 128, 256, 512), (256, 512, 1024, 2048)
# Name -> depth and channels after layer1 ... layer4. All have the 7x7 stem and strides 4, 8, 16, 32.
RESNETS = {
    "resnet18": (18, BASIC),
    "resnet34": (34, BASIC),
    "resnet50": (50, BOTTLENECK),
    "resnet101": (101, BOTTLENECK),
    "resnet152": (152, BOTTLENECK),
}

WEIGHTS, CONFIG = "final.pth", "config.py"  # what a finished run leaves in its work_dir
# What follows from the checkpoint.
BACKBONE = dict.fromkeys(
    ("model.backbone.depth", "model.neck.in_channels", "model.decode_head.in_channels"),
    "choose another backbone by METHOD or CHECKPOINT (--method, --checkpoint)",
)
# The parts of a config that training does not read: under others of these, what was trained is tested again.
TESTING = ("val_dataloader", "val_evaluator", "val_cfg", "test_dataloader", "test_evaluator", "test_cfg", "evaluation")


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
    # Checks a data set of the config before training, and returns (width, height) by the path of each image where the
    # annotations do not say it; the folder is for what common.preflight remembers.
    preflight: Callable[[ConfigDict, Path], dict[str, tuple[int, int]]] = lambda dataset, cache: {}
    facts: Callable[[Config], dict[str, Any]] = lambda config: {}  # what else the record's protocol says
    # From all that the evaluator found to the record's `details`, such as the value of each class.
    details: Callable[[dict[str, Any]], dict[str, Any]] = lambda found: {}
    finish: Callable[["Runner"], None] = lambda runner: None  # what else a finished run leaves
    products: Callable[[Path], Iterable[Path]] = lambda work_dir: ()  # files without which it is not done


def parser(module: str, description: str) -> cli.Parser:
    """Return the parser of a dense task: the common arguments and those of a trainer."""
    result = cli.parser(module, description, reads_checkpoint=True)
    add_config_arguments(result)
    add_scale_arguments(result)
    result.add_argument(
        "--test-only", action="store_true", help=f"test a finished run again from its {WEIGHTS}; train nothing"
    )
    return result


def evaluate_all(task: Task, args: argparse.Namespace) -> None:
    """Finetune, test and record every checkpoint that the arguments ask for, unless it is done already."""
    if not (task.configs / args.profile).is_dir():
        known = ", ".join(p for p in PROFILES if (task.configs / p).is_dir())
        raise UserError(f"profile {args.profile} has no {task.name}; choose PROFILE from {known}")
    options = {**task.options, **scale_options(args), **args.cfg_options}
    path = task.configs / args.profile / f"{task.dataset}.py"
    config = load_config(path, options=options, register=task.register, set_by_command=BACKBONE)
    sha256 = config_sha256(config)
    training = {key: value for key, value in config.to_dict().items() if key not in TESTING}
    training_sha256 = config_sha256(Config(training))
    stem = task.dataset if task.variant is None else f"{task.dataset}-{task.variant}"
    todo = []
    for subject in cli.subjects(args):
        work_dir = args.runs / args.profile / f"{task.name}-{stem}" / f"{subject.name}-seed{args.seed}"
        key = records.RecordKey(args.profile, task.name, subject.name, task.dataset, args.seed, task.variant)
        products = [work_dir / WEIGHTS, work_dir / CONFIG, *task.products(work_dir)]
        run = start_run(
            key,
            subject,
            config_sha256=sha256,
            results=args.results,
            products=products,
            overwrite=args.overwrite,
            again=args.test_only,
        )
        if run is not None:
            todo.append((subject, run, work_dir))
    for subject, run, work_dir in todo:
        config = join_data(load_config(path, options=options, register=task.register), args.data)
        settings = sha256_of_text(training_sha256, run.checkpoint_sha256)
        _evaluate(task, args, config, subject, run, work_dir, settings)


def _evaluate(
    task: Task,
    args: argparse.Namespace,
    config: Config,
    subject: Subject,
    run: Run,
    work_dir: Path,
    settings: str,
) -> None:
    check_keys(config, name=f"{task.dataset}.py", register=task.register)
    from common.checkpoint import load_checkpoint
    from common.embedded import ensure_embedded
    from common.engine.runner import (
        alone_in,
        build_runner,
        is_finished,
        mark_finished,
        set_run,
        with_config_mistakes_named,
    )

    checkpoint = load_checkpoint(subject.path, make_it=subject.make_it)
    fit_to_arch(config, checkpoint.arch)
    if args.profile == "demo":
        ensure_embedded(args.data)
    require_layout(config, task.place)
    sizes: dict[str, tuple[int, int]] = {}
    for dataset in datasets(config):
        sizes |= task.preflight(dataset, args.runs / "checked")
    # Each process has the config's workers, as with detectron2: its batch of two costs them the same with any number.
    fixed = "train_cfg.max_iters" in args.cfg_options
    plan = plan_batch(config, *processes(args.launcher), fixed=fixed, workers_per_process=True)
    plan.apply(config)
    said = f"{subject.name}: {plan.said}"
    set_run(config, work_dir=work_dir, seed=args.seed, launcher=args.launcher)
    with alone_in(work_dir):
        trained = trained_weights(task, work_dir, settings)
        if args.test_only and trained is None:
            raise UserError(f"no {work_dir / WEIGHTS} of these settings to test; leave --test-only out to train it")
        runner = build_runner(
            config,
            settings=settings,
            backbone=checkpoint,
            resume=args.resume or is_finished(work_dir, settings),
            overwrite=args.overwrite,
            trained=trained,
        )
        if runner.rank == 0:
            print(said, flush=True)
            runner.logger.info(said)
        with redirect_stdout(StringIO()):  # pycocotools reports each of its steps
            train, test = with_config_mistakes_named(
                lambda: (runner.train_loop.dataloader.dataset, runner.test_loop.dataloader.dataset)
            )
        runner.train_loop.dataloader.batch_sampler.sizes = sizes
        fingerprint = data_fingerprint(args.data, config, train, test)
        if trained is None:
            with_config_mistakes_named(runner.train)
            save_weights(runner, settings=settings)
        else:
            load_weights(runner, trained)
        save_config(runner)
        try:
            with redirect_stdout(StringIO()):
                found = runner.test_loop.run()
        finally:
            runner.close_progress()
        if runner.rank != 0:
            return
        metrics = {name: round(found[key] * factor, 4) for name, (key, factor) in task.metrics.items()}
        record = run.finish(
            args.results,
            metrics=metrics,
            protocol={**protocol_facts(runner, n_train=len(train), n_test=len(test)), **task.facts(runner.cfg)},
            data_fingerprint=fingerprint,
            device=next(runner.model.parameters()).device.type,
            details=task.details(found) or None,
        )
        mark_finished(runner)
        shown = "  ".join(f"{name} {value:.1f}" for name, value in metrics.items())
        print(f"{subject.name} on {task.dataset}: {shown}  -> {record}", flush=True)
        task.finish(runner)  # not before: what goes wrong with the extras must not cost the record


def named(path: str, data: Path) -> str:
    """Return what a product calls the file: its path from the data root, or the whole path if it lies elsewhere."""
    absolute, root = Path(path).absolute(), data.absolute()
    return str(absolute.relative_to(root) if absolute.is_relative_to(root) else absolute)


def fit_to_arch(config: Config, arch: str) -> None:
    """Set the backbone's depth, and the channels that the neck or decode head takes from it, for `arch`.

    Raises UserError for a network without the four stages at strides 4-32 that the dense heads read.
    """
    if arch not in RESNETS:
        raise UserError(
            f"{arch} cannot serve a dense task, whose heads read strides 4, 8, 16 and 32 of a ResNet with a "
            f"7x7 stem; choose a checkpoint of {', '.join(RESNETS)}"
        )
    depth, channels = RESNETS[arch]
    model = config.model
    model.backbone.depth = depth
    (model.neck if "neck" in model else model.decode_head).in_channels = list(channels)


def require_layout(config: Config, place: str) -> None:
    """Raise UserError naming the first folder or file that a data set of `config` reads and that is not there."""
    for dataset in datasets(config):
        root = Path(dataset.data_root)
        parts = [dataset.get("ann_file", ""), *dataset.data_prefix.values()]
        for path in (root, *(root / part for part in parts if part)):
            if not path.exists():
                raise UserError(f"data set: {path} is missing; {place} under {root}")


def datasets(config: Config) -> Iterator[ConfigDict]:
    """Yield the settings of every data set that a run reads, those of a concatenation one by one."""
    yield from _leaves(config.train_dataloader.dataset)
    yield from _leaves(config.test_dataloader.dataset)


def save_weights(runner: "Runner", *, settings: str) -> None:
    """Write the trained network to the work_dir, for mmdet's `init_detector` and mmseg's `init_model`.

    `final.pth` holds plain tensors, on the CPU, and plain values: torch.load(weights_only=True) reads it.
    """
    import torch

    from common.engine.processes import unwrapped

    if runner.rank != 0:
        return
    tensors = {name: value.detach().cpu() for name, value in unwrapped(runner.model).state_dict().items()}
    metainfo = runner.train_loop.dataloader.dataset.metainfo
    meta = {
        "dataset_meta": {key: list(metainfo[key]) for key in ("classes", "palette") if metainfo.get(key)},
        "iter": runner.iter,
        "settings_sha256": settings,
    }
    with atomic_path(Path(runner.work_dir) / WEIGHTS) as temporary:
        torch.save({"state_dict": tensors, "meta": meta}, temporary)


def trained_weights(task: Task, work_dir: Path, settings: str) -> Path | None:
    """Return the `final.pth` of these settings: the work_dir's, or that of a variant which trains alike; else None."""
    folders = glob.escape(str(work_dir.parent.parent / f"{task.name}-{task.dataset}")) + "*"
    others = sorted(Path(found) for found in glob.glob(f"{folders}/{glob.escape(work_dir.name)}/{WEIGHTS}"))
    return next((path for path in (work_dir / WEIGHTS, *others) if _settings_of(path) == settings), None)


def _settings_of(path: Path) -> str | None:
    """Return the settings that a `final.pth` was trained under; None if it is missing, damaged or another file."""
    import torch

    try:
        meta = torch.load(path, map_location="cpu", mmap=True, weights_only=True)["meta"]
        return meta["settings_sha256"] if is_whole_zip(path) else None
    except Exception:  # torch raises nearly anything; the run is then resumed, or trained
        return None


def load_weights(runner: "Runner", path: Path) -> None:
    """Make the runner test the weights of `path`, and let its work_dir have them."""
    import torch

    from common.engine.processes import unwrapped

    unwrapped(runner.model).load_state_dict(torch.load(path, map_location="cpu", weights_only=True)["state_dict"])
    runner.call_hook("before_run")
    runner._maybe_compile("test_step")
    if runner.rank == 0:
        print(f"tests what was trained before: {path}", flush=True)
        if path.parent != Path(runner.work_dir):
            atomic_write(Path(runner.work_dir) / WEIGHTS, lambda file: shutil.copyfile(path, file))


def save_config(runner: "Runner") -> None:
    """Write the run's config to the work_dir, beside the weights."""
    if runner.rank == 0:
        text = Config(runner.cfg.to_dict()).pretty_text
        atomic_write(Path(runner.work_dir) / CONFIG, lambda file: file.write_text(text, encoding="utf-8"))


def data_fingerprint(data: Path, config: Config, *listed: Any) -> str:
    """Return a SHA-256 over names and sizes in bytes of the images and annotations that the data sets list.

    Of a file that the config names (COCO's annotations, VOC's lists) the content counts. Raises UserError naming
    a listed file that is not there: better now than after hours of training.
    """
    files = {Path(d.data_root) / d.ann_file for d in datasets(config) if d.get("ann_file")}
    entries = [f"{relpath(file, data)}:{sha256_of_file(file)}" for file in sorted(files)]
    for dataset in listed:
        for index in range(len(dataset)):
            info = dataset.get_data_info(index)
            for path in (Path(info[key]) for key in ("img_path", "xml_path", "seg_map_path") if info.get(key)):
                try:
                    entries.append(f"{relpath(path, data)}:{path.stat().st_size}")
                except FileNotFoundError:
                    raise UserError(f"{path} is listed but missing; restore the data set") from None
    return sha256_of_text(*entries)


def protocol_facts(runner: "Runner", *, n_train: int, n_test: int) -> dict[str, Any]:
    """Return what a reader of the record must know to compare it."""
    from common.engine.progress import images_a_step

    config = runner.cfg
    return {
        "iterations": config.train_cfg.max_iters,
        "batch": images_a_step(runner),
        "lr": config.optim_wrapper.optimizer.lr,
        "precision": config.optim_wrapper.get("dtype") or "float32",
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
