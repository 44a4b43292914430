import json
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.names import METHODS, checkpoint_name
from common.records import RecordKey
from tests.recorded import write_record

CLASSES = ["background", "cup", "door"]
PALETTE = [[10, 20, 30], [200, 0, 0], [0, 0, 250]]
PLACES = ("data", "checkpoints", "results", "runs", "reports")


def arguments(root):
    """Return the arguments of an analysis command whose every folder is under `root`."""
    chosen = {"checkpoint": None, "name": None, "dataset": None, "data_root": None, "size": None}
    places = {name: root / name for name in PLACES}
    settings = {"profile": "demo", "seed": 0, "method": list(METHODS), "limit": 10_000, "perplexity": 30.0}
    return Namespace(**chosen, **places, **settings)


def clean_commit(monkeypatch):
    """Whether this checkout has uncommitted changes must not matter."""
    monkeypatch.setattr("common.run.git_state", lambda: ("5eed" * 10, False))


class Maker:
    """Writes what runs leave behind, where the arguments say."""

    def __init__(self, args):
        self.args = args

    def record(
        self, model, task, dataset, metrics, seed=0, profile="demo", variant=None, protocol=None, config="c0ffee",
        data="da7a", details=None,
    ) -> Path:  # fmt: skip
        key = RecordKey(profile, task, model, dataset, seed, variant)
        about = dict(checkpoint=f"{len(model):064x}", settings=f"{config:0<64}", fingerprint=f"{data:0<64}")
        return write_record(self.args.results, key, metrics, protocol=protocol or {}, details=details, **about)

    def log(self, model, seed=0) -> Path:
        """A pretraining log of three epochs, cut short by a kill."""
        path = self.args.runs / "demo" / "pretrain" / checkpoint_name(model, seed) / "log.jsonl"
        path.parent.mkdir(parents=True)
        lines = [{"step": 5, "loss": -0.1}]
        values = {"loss": -0.1, "knn": 30.0, "seconds": 70.0}
        lines += [{"step": 10 * e, "epoch": e, "std": 0.02, **{k: v * e for k, v in values.items()}} for e in (1, 2, 3)]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 35, "lo')
        return path

    def predictions(self, model, seed=0) -> Path:
        """A model's predictions of two images; the annotations are of the test's making."""
        folder = self.args.data / "ade"
        folder.mkdir(parents=True, exist_ok=True)
        truth = np.array([[0, 1], [2, 3]], np.uint8).repeat(4, 0).repeat(4, 1)
        place = self.args.runs / "demo" / "segmentation-ade20k" / f"{model}-seed{seed}" / "predictions"
        place.mkdir(parents=True)
        for k in (1, 2):
            Image.fromarray(np.full((8, 8, 3), 90 * k, np.uint8)).save(folder / f"v{k}.jpg")
            Image.fromarray(truth).save(folder / f"v{k}.png")
            Image.fromarray(np.maximum(truth, 1) - 1).save(place / f"v{k}.png")
        index = {
            "images": ["ade/v1.jpg", "ade/v2.jpg"],
            "annotations": ["ade/v1.png", "ade/v2.png"],
            "palette": PALETTE,
            "classes": CLASSES,
        }
        (place / "index.json").write_text(json.dumps(index))
        return place

    def detections(self, model, seed=0) -> Path:
        """A model's detections in two images, one of them tall, of a cup and of a door that does not count."""
        folder = self.args.data / "voc"
        folder.mkdir(parents=True, exist_ok=True)
        for k, size in enumerate([(60, 40), (40, 60)]):
            Image.new("RGB", size, (40, 90, 40)).save(folder / f"{k}.png")
        truth = [
            {"box": [2, 4, 30, 35], "label": 1, "ignored": False},
            {"box": [20, 20, 39, 38], "label": 2, "ignored": True},
        ]
        found = [{"box": [3, 4, 30, 34], "label": 1, "score": 0.91}]
        images = [{"path": f"voc/{k}.png", "truth": truth, "detections": found} for k in (0, 1)]
        path = self.args.runs / "demo" / "detection-voc" / f"{model}-seed{seed}" / "predictions.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"classes": CLASSES, "score": 0.5, "images": images}))
        return path

    def tsne_files(self, stem, n=60, models=("simsiam", "simsiam_gsg")) -> None:
        """The files of a t-SNE figure of random points under a name of `make tsne`."""
        from analysis import tsne

        rng = np.random.default_rng(0)
        labels = np.arange(n) % 3
        where = self.args.reports / "demo"
        where.mkdir(parents=True, exist_ok=True)
        points = [rng.standard_normal((n, 2)) + 4 * np.stack((labels, labels % 2), 1) for _ in models]
        panels = [(m, p, tsne.scores(p, p, labels)) for m, p in zip(models, points, strict=True)]
        tsne._draw(panels, labels, CLASSES, where / stem)
        content = {"data": "flowers", "perplexity": 30.0, "classes": CLASSES, "labels": labels.tolist()}
        content["panels"] = [{"model": m, "scores": s, "points": tsne._whole(p)} for m, p, s in panels]
        (where / f"{stem}.json").write_text(json.dumps(content))
        side = tsne.THUMBNAIL * int(np.ceil(np.sqrt(n)))
        Image.fromarray(rng.integers(0, 255, (side, side, 3), dtype=np.uint8)).save(where / f"{stem}.webp")


@pytest.fixture
def args(tmp_path):
    return arguments(tmp_path)


@pytest.fixture
def record(args, monkeypatch):
    """Return a function that writes a record and returns its file."""
    clean_commit(monkeypatch)
    return Maker(args).record


@pytest.fixture
def log(args):
    return Maker(args).log


@pytest.fixture
def predictions(args):
    return Maker(args).predictions


@pytest.fixture
def saved_detections(args):
    return Maker(args).detections


@pytest.fixture
def tsne_files(args):
    return Maker(args).tsne_files


@pytest.fixture
def change():
    """Return a function that changes a record in its file."""

    def in_file(path, how) -> None:
        content = json.loads(path.read_text())
        how(content)
        path.write_text(json.dumps(content))

    return in_file
