"""Runs of a tiny network on the few images of `write_images`: 12 to train on, two classes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from common.checkpoint import load_checkpoint
from pretrain import train

ROOT = Path(train.__file__).parents[1]
TINY = [
    "train_dataloader.dataset.images.name=folder",
    "train_cfg.max_epochs=2",
    "train_dataloader.batch_size=4",
    "model.backbone.name=test_resnet",
    "model.projector.dim=16",
    "model.predictor.hidden_dim=8",
    "default_hooks.checkpoint.interval=3",  # an epoch
    "default_hooks.progress.interval=1",
    "custom_hooks=[]",
]


def write_images(root: Path) -> None:
    """Write the ImageFolder that TINY trains on: 12 images, and 6 for kNN."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 3)):
        for k, name in enumerate("ab"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 128, (32, 32, 3), dtype=np.uint8) + np.uint8(100 * k)
                Image.fromarray(pixels).save(folder / f"{number}.png")


def run_train(*extra: str, method: str = "simsiam", options: tuple[str, ...] = ()) -> None:
    train.main(["--method", method, *extra, "--cfg-options", *TINY, *options])


def log(space: Path, name: str = "simsiam") -> list[dict]:
    path = space / "runs" / "demo" / "pretrain" / name / "log.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def outcome(space: Path, method: str) -> tuple[dict[str, bytes], list[dict]]:
    """What a run leaves: the bits of its exported tensors, and its log without speeds and times."""
    lines = [{k: v for k, v in line.items() if k not in ("images_per_s", "seconds")} for line in log(space, method)]
    tensors = load_checkpoint(space / "checkpoints" / "demo" / f"{method}.pth").state_dict
    return {name: value.numpy().tobytes() for name, value in tensors.items()}, lines


def remove_export(space: Path) -> None:
    shutil.rmtree(space / "checkpoints")


def start(*extra: str, space: Path, options: tuple[str, ...] = (), prefix=(), more=(), **kwargs) -> subprocess.Popen:
    """Start the training of SimSiam as a process of its own; `prefix` goes before `-m pretrain.train`, `more`
    into its environment.
    """
    command = [sys.executable, *prefix, "-m", "pretrain.train", "--method", "simsiam", *extra]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **dict(more)}
    command += ["--cfg-options", *TINY, *options]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=space, env=environment, stdout=pipe, stderr=pipe, text=True, **kwargs)
