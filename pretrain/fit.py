"""The two runs of this room that train on mmengine's Runner: pretraining, and the linear probe."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from common.checkpoint import Checkpoint
from common.engine.batch import plan_batch, processes
from common.engine.processes import unwrapped
from common.engine.runner import (
    Runner,
    alone_in,
    build_runner,
    is_finished,
    mark_finished,
    set_run,
    train,
    with_config_mistakes_named,
)
from common.errors import UserError
from common.features import pick_device
from common.files import sha256_of_text
from common.images import LabelledImages
from common.keys import check_keys
from common.names import UNTRAINED
from common.run import Job, Measured
from pretrain import register
from pretrain.device_views import start_device_views, use_device_views
from pretrain.export import export_backbone
from pretrain.probe import history


def pretrain(job: Job) -> Runner | None:
    """Train the method of the job's config and export its online backbone to the job's place.

    The subject `untrained` is exported as initialised: the weights with which every method of this seed begins.
    Returns the Runner, or None if another process has done the job since it was listed.
    """
    config: Any = copy.deepcopy(job.config)
    batch, is_trained = config.train_dataloader.batch_size, job.subject.name != UNTRAINED
    if config.get("device_views"):
        use_device_views(config)
    with alone_in(job.work_dir):
        if job.launcher == "none" and job.is_done():
            print(f"another process has done it: {job.place}", flush=True)
            return None
        runner = start(job, config, settings=job.settings, least=2, says_plan=is_trained)
        if is_trained:
            _require_steps(runner, batch)
            if config.get("device_views"):
                start_device_views(runner)
            train(runner)
        else:
            mark_finished(runner)
        if runner.rank == 0:
            export_backbone(
                job.place,
                unwrapped(runner.model).backbone,
                work_dir=job.work_dir,
                resumed=bool(config.resume),
                name=job.place.stem,
                method=job.subject.name,
                profile=job.key.profile,
                arch=config.model.backbone.name,
                epochs=runner.max_epochs if is_trained else 0,
                seed=job.key.seed,
                dataset=job.key.dataset,
                config_sha256=job.settings,
            )
            print(f"exported the online backbone: {job.place}", flush=True)
    return runner


def train_probe(job: Job, checkpoint: Checkpoint) -> Measured:
    """Train a linear classifier on the checkpoint's features: top-1 and top-5, of the last epoch and of the best."""
    config: Any = copy.deepcopy(job.config)
    config.model.backbone = dict(name=checkpoint.arch)
    batch, settings = config.train_dataloader.batch_size, job.settings + checkpoint.sha256
    with alone_in(job.work_dir):
        if is_finished(job.work_dir, settings):  # its record was lost
            job = replace(job, resume=True)
        runner = start(job, config, settings=settings, backbone=checkpoint)
        _require_steps(runner, batch)
        sets = [loader.dataset.images for loader in (runner.train_dataloader, runner.val_dataloader)]
        _check_classes(sets, config.model.num_classes)
        train(runner)
    optimizer = config.optim_wrapper.optimizer
    protocol = {
        "epochs": runner.max_epochs,
        "batch": batch,
        "lr": optimizer.lr,
        "precision": config.optim_wrapper.get("dtype") or "float32",
        "optimizer": optimizer.type,
        "n_train": len(sets[0].labels),
        "n_test": len(sets[1].labels),
    }
    fingerprint = sha256_of_text(*(images.fingerprint for images in sets))
    return Measured(history(runner), protocol, fingerprint, pick_device().type)


def _require_steps(runner: Runner, batch: int) -> None:
    """Raise UserError for a training set that has not even one batch."""
    loader = with_config_mistakes_named(lambda: runner.train_dataloader)
    if runner.max_iters == 0:
        raise UserError(
            f"the training set has {len(loader.dataset)} images, fewer than a batch of {batch}; "
            "lower train_dataloader.batch_size"
        )


def _check_classes(sets: Sequence[LabelledImages], number: int) -> None:
    """Raise UserError unless training and test set have the same classes, `number` of them."""
    train, test = (list(images.classes) for images in sets)
    if train != test:
        raise UserError(f"config: {sets[0].name} and {sets[1].name} have other classes; choose parts of one data set")
    if len(train) != number:
        raise UserError(
            f"config: model.num_classes is {number}, but {sets[0].name} has {len(train)} classes; set it so"
        )


def start(
    job: Job,
    config: Any,
    *,
    settings: str,
    backbone: Checkpoint | None = None,
    least: int = 1,
    says_plan: bool = True,
) -> Runner:
    """Return the Runner of the job's `config`, and print how the processes share its batch if it `says_plan`.

    `settings` is the SHA-256 under which the run may be resumed; `backbone` is loaded into the model's. Raises
    UserError if a process gets fewer than `least` images at a time.
    """
    check_keys(job.config, name=job.key.task, register=register)
    plan = plan_batch(config, *processes(job.launcher))
    plan.apply(config)
    if config.train_dataloader.batch_size < least:
        raise UserError(f"config: batch normalisation needs at least {least} images per process; raise the batch size")
    set_run(config, work_dir=job.work_dir, seed=job.key.seed, launcher=job.launcher, logger=job.logger)
    runner = build_runner(config, settings=settings, backbone=backbone, resume=job.resume, overwrite=job.overwrite)
    if says_plan and runner.rank == 0:
        print(f"{job.work_dir.name}: {plan.said}", flush=True)
    return runner
