"""Finetuning of a pretrained backbone on mmdet or mmseg; the rooms add configs, readers and metrics.

The whole network is trained for a fixed number of iterations, and its last state is tested.
"""

import copy
import glob
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, redirect_stdout
from io import StringIO
from os.path import relpath  # unlike Path.relative_to, it can leave the data root
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, ConfigDict

import common.engine.steps  # noqa: F401  (registers the loop and the wrapper that the configs name)
from common.checkpoint import Checkpoint, save_tensors
from common.embedded import ensure_embedded
from common.engine.batch import plan_batch, processes
from common.engine.processes import unwrapped
from common.engine.progress import images_per_step
from common.engine.runner import (
    Runner,
    alone_in,
    build_runner,
    is_finished,
    mark_finished,
    set_run,
    with_config_mistakes_named,
)
from common.errors import UserError
from common.files import atomic_write, is_whole_zip, sha256_of_file, sha256_of_text
from common.mmlab.jobs import CONFIG, WEIGHTS, Finetuning
from common.run import Measured, record

BASIC, BOTTLENECK = (64, 128, 256, 512), (256, 512, 1024, 2048)
# Name -> depth and channels after layer1 ... layer4. All have the 7x7 stem and strides 4, 8, 16, 32.
RESNETS = {
    "resnet18": (18, BASIC),
    "resnet34": (34, BASIC),
    "resnet50": (50, BOTTLENECK),
    "resnet101": (101, BOTTLENECK),
    "resnet152": (152, BOTTLENECK),
}


class Finetune:
    """A run in its steps, to be taken in this order: `check`, `fit`, `train`, `test`."""

    runner: Runner

    def __init__(self, job: Finetuning) -> None:
        self.job, self.config = job, copy.deepcopy(job.config)
        self._sizes: dict[str, tuple[int, int]] = {}
        self._trained: Path | None = None
        self._held = ExitStack()  # the lock of the work_dir

    def check(
        self,
        checkpoint: Checkpoint,
        place: str,
        check: Callable[[ConfigDict, Path], dict[str, tuple[int, int]] | None],
    ) -> None:
        """Fit the config to the checkpoint's network, and check the data sets as a whole.

        `place` says what to put where if a folder is missing. `check` takes a data set of the config and the folder
        where `common.preflight` keeps its results; it may return (width, height) by the path of each image, if the
        annotations do not give it.
        """
        fit_to_arch(self.config, checkpoint.arch)
        if self.job.key.profile == "demo" and self.job.data_root is None:
            ensure_embedded(self.job.folders.data)
        require_layout(self.config, place)
        for dataset in datasets(self.config):
            self._sizes |= check(dataset, self.job.folders.runs / "checked") or {}

    def fit(self, checkpoint: Checkpoint) -> None:
        """Take the work_dir, fit the config to the machine, and build the Runner and its data sets."""
        job, config = self.job, self.config
        self._held.enter_context(alone_in(job.work_dir))
        # Each process has the config's workers, as with detectron2: its batch of two costs them the same at any number.
        plan = plan_batch(config, *processes(job.launcher), fixed=job.fixed_iterations, workers_per_process=True)
        plan.apply(config)
        said = f"{job.subject.name}: {plan.said}"
        set_run(config, work_dir=job.work_dir, seed=job.key.seed, launcher=job.launcher, logger=job.logger)
        self._trained = trained_weights(job)
        if job.again and self._trained is None:
            raise UserError(f"no {job.work_dir / WEIGHTS} of these settings to test; leave --test-only out to train it")
        self.runner = build_runner(
            config,
            settings=job.trained_under,
            backbone=checkpoint,
            resume=job.resume or is_finished(job.work_dir, job.trained_under),
            overwrite=job.overwrite,
            trained=self._trained,
        )
        if self.runner.rank == 0:
            print(said, flush=True)
            self.runner.logger.info(said)
        with redirect_stdout(StringIO()):  # pycocotools reports each of its steps
            self._sets = with_config_mistakes_named(
                lambda: (self.runner.train_loop.dataloader.dataset, self.runner.test_loop.dataloader.dataset)
            )
        self.runner.train_loop.dataloader.batch_sampler.sizes = self._sizes
        self._fingerprint = data_fingerprint(job.data_root or job.folders.data, config, *self._sets)

    def train(self) -> None:
        """Train unless there are weights of these settings, and leave weights and config in the work_dir."""
        if self._trained is None:
            with_config_mistakes_named(self.runner.train)
            save_weights(self.runner, settings=self.job.trained_under)
        else:
            load_weights(self.runner, self._trained)
        save_config(self.runner)

    def test(self) -> dict[str, Any]:
        """Return the evaluator's scores of the trained network."""
        try:
            with redirect_stdout(StringIO()):
                return self.runner.test_loop.run()
        finally:
            self.runner.close_progress()

    def measured(
        self, metrics: Mapping[str, float], details: Mapping[str, Any], facts: Mapping[str, Any] | None = None
    ) -> Measured:
        """Return the run's content of its record; `facts` adds settings that a reader needs to compare it."""
        n_train, n_test = map(len, self._sets)
        protocol = {**protocol_facts(self.runner, n_train=n_train, n_test=n_test), **(facts or {})}
        device = next(self.runner.model.parameters()).device.type
        rounded = {name: round(value, 4) for name, value in metrics.items()}
        return Measured(rounded, protocol, self._fingerprint, device, details)

    def record(
        self, measure: Callable[[Finetuning, Checkpoint], Measured], save: Callable[[Runner, Path], None]
    ) -> None:
        """Record the result of `measure`, then `save` the run's other products.

        In this order, so that an error in the products does not cost the record.
        """
        with self._held:
            record(self.job, measure)
            if self.runner.rank == 0:
                mark_finished(self.runner)
                save(self.runner, self.job.folders.data)


def fit_to_arch(config: Config, arch: str) -> None:
    """Set the backbone's depth, and the channels that the neck or decode head takes from it, for `arch`.

    Raises UserError for a network without the four stages at strides 4 to 32 that the dense heads read.
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
    """Raise UserError naming the first missing folder or file that a data set of `config` reads."""
    for dataset in datasets(config):
        root = Path(dataset.data_root)
        parts = [dataset.get("ann_file", ""), *dataset.data_prefix.values()]
        for path in (root, *(root / part for part in parts if part)):
            if not path.exists():
                raise UserError(f"data set: {path} is missing; {place} under {root}")


def datasets(config: Config) -> Iterator[ConfigDict]:
    """Yield the settings of every data set that a run reads; a concatenation yields its parts."""
    yield from _leaves(config.train_dataloader.dataset)
    yield from _leaves(config.test_dataloader.dataset)


def save_weights(runner: Runner, *, settings: str) -> None:
    """Write the trained network to the work_dir, for mmdet's `init_detector` and mmseg's `init_model`.

    `final.pth` holds plain tensors, on the CPU, and plain values: torch.load(weights_only=True) reads it.
    """
    if runner.rank != 0:
        return
    tensors = {name: value.detach().cpu() for name, value in unwrapped(runner.model).state_dict().items()}
    metainfo = runner.train_loop.dataloader.dataset.metainfo
    meta = {
        "dataset_meta": {key: list(metainfo[key]) for key in ("classes", "palette") if metainfo.get(key)},
        "iter": runner.iter,
        "settings_sha256": settings,
    }
    save_tensors(Path(runner.work_dir) / WEIGHTS, {"state_dict": tensors, "meta": meta})


def trained_weights(job: Finetuning) -> Path | None:
    """Return the `final.pth` of these settings, from the work_dir or from a variant that trains alike, or None."""
    work_dir = job.work_dir
    folders = glob.escape(str(work_dir.parent.parent / f"{job.key.task}-{job.key.dataset}")) + "*"
    others = sorted(Path(path) for path in glob.glob(f"{folders}/{glob.escape(work_dir.name)}/{WEIGHTS}"))
    return next((path for path in (work_dir / WEIGHTS, *others) if _settings_of(path) == job.trained_under), None)


def _settings_of(path: Path) -> str | None:
    """Return the settings that a `final.pth` was trained under; None if it is missing, damaged or not such a file."""
    try:
        meta = torch.load(path, map_location="cpu", mmap=True, weights_only=True)["meta"]
        return meta["settings_sha256"] if is_whole_zip(path) else None
    except Exception:  # torch may raise nearly anything; the run is then trained
        return None


def load_weights(runner: Runner, path: Path) -> None:
    """Load the weights of `path` into the runner, and copy the file to its work_dir."""
    unwrapped(runner.model).load_state_dict(torch.load(path, map_location="cpu", weights_only=True)["state_dict"])
    runner.call_hook("before_run")
    runner._maybe_compile("test_step")
    if runner.rank == 0:
        print(f"testing the weights trained before: {path}", flush=True)
        if path.parent != Path(runner.work_dir):
            atomic_write(Path(runner.work_dir) / WEIGHTS, lambda file: shutil.copyfile(path, file))


def save_config(runner: Runner) -> None:
    """Write the run's config to the work_dir, beside the weights."""
    if runner.rank == 0:
        text = Config(runner.cfg.to_dict()).pretty_text
        atomic_write(Path(runner.work_dir) / CONFIG, lambda file: file.write_text(text, encoding="utf-8"))


def data_fingerprint(data: Path, config: Config, *listed: Any) -> str:
    """Return a SHA-256 over names and sizes in bytes of the images and annotations that the data sets list.

    A file that the config names (COCO's annotations, VOC's lists) enters by its content. Raises UserError naming a
    listed file that is missing, before hours are spent on training.
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


def protocol_facts(runner: Runner, *, n_train: int, n_test: int) -> dict[str, Any]:
    """Return the settings that a reader of the record needs to compare it."""
    config = runner.cfg
    return {
        "iterations": config.train_cfg.max_iters,
        "batch": images_per_step(runner),
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
