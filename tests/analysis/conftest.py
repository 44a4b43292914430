import json
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common import records
from common.cli import METHODS, checkpoint_name
from common.records import RecordKey, Run

CLASSES = ["background", "cup", "door"]
PALETTE = [[10, 20, 30], [200, 0, 0], [0, 0, 250]]


@pytest.fixture
def args(tmp_path):
    """Return the arguments of an analysis command whose every folder is under tmp_path."""
    places = ("data", "checkpoints", "results", "runs", "reports")
    chosen = {"checkpoint": None, "name": None, "dataset": None, "data_root": None, "size": None}
    return Namespace(
        **chosen, **{name: tmp_path / name for name in places},
        profile="demo", seed=0, method=list(METHODS), limit=10_000, perplexity=30.0,
    )  # fmt: skip


@pytest.fixture
def record(args, monkeypatch):
    """Return a function that writes a record and returns its file."""

    def write(
        model, task, dataset, metrics, seed=0, profile="demo", variant=None, protocol=None, config="c0ffee", data="da7a"
    ) -> Path:
        key = RecordKey(profile, task, model, dataset, seed, variant)
        return Run(key, f"{len(model):064x}", f"{config:0<64}").finish(
            args.results, metrics=metrics, protocol=protocol or {}, data_fingerprint=f"{data:0<64}", device="cpu"
        )

    # Whether this checkout has uncommitted changes must not matter.
    monkeypatch.setattr(records, "git_state", lambda: ("5eed" * 10, False))
    return write


@pytest.fixture
def change():
    """Return a function that changes a record in its file."""

    def in_file(path, how) -> None:
        content = json.loads(path.read_text())
        how(content)
        path.write_text(json.dumps(content))

    return in_file


@pytest.fixture
def predictions(args):
    """Return a function that writes a model's predictions of two images; the annotations are of the test's making."""
    folder = args.data / "ade"
    folder.mkdir(parents=True)
    truth = np.array([[0, 1], [2, 3]], np.uint8).repeat(4, 0).repeat(4, 1)
    for k in (1, 2):
        Image.fromarray(np.full((8, 8, 3), 90 * k, np.uint8)).save(folder / f"v{k}.jpg")
        Image.fromarray(truth).save(folder / f"v{k}.png")

    def write(model, seed=0):
        place = args.runs / "demo" / "segmentation-ade20k" / f"{model}-seed{seed}" / "predictions"
        place.mkdir(parents=True)
        for k in (1, 2):
            Image.fromarray(np.maximum(truth, 1) - 1).save(place / f"v{k}.png")
        index = {
            "images": ["ade/v1.jpg", "ade/v2.jpg"],
            "annotations": ["ade/v1.png", "ade/v2.png"],
            "palette": PALETTE,
            "classes": CLASSES,
        }
        (place / "index.json").write_text(json.dumps(index))
        return place

    return write


@pytest.fixture
def log(args):
    """Return a function that writes a pretraining log of three epochs, cut short by a kill."""

    def write(model, seed=0):
        path = args.runs / "demo" / "pretrain" / checkpoint_name(model, seed) / "log.jsonl"
        path.parent.mkdir(parents=True)
        lines = [{"step": 5, "loss": -0.1}]
        lines += [{"step": 10 * e, "epoch": e, "loss": -0.1 * e, "std": 0.02, "knn": 30.0 * e} for e in (1, 2, 3)]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 35, "lo')
        return path

    return write
