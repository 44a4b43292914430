import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from analysis import study, summary
from analysis.scope import resolve
from analysis.tsne import add_arguments
from common import run
from common.backbones import build_backbone, feature_dim
from common.checkpoint import META_KEYS, save_checkpoint
from common.names import checkpoint_name
from common.records import RecordKey
from tests.recorded import write_record

CLASSES = ["background", "cup", "door"]
PALETTE = [[10, 20, 30], [200, 0, 0], [0, 0, 250]]
PLACES = ("data", "checkpoints", "results", "runs", "reports")


def folders(root):
    """Return the words of a command line that put every folder under `root`."""
    return [f"--{name}={root / name}" for name in PLACES]


def resolved(root, *words):
    """Return the scope of a command that has every argument, with every folder under `root`."""
    command = [*folders(root), *map(str, words)]
    return resolve("analysis.test", "", command, "", reads_checkpoint=True, more=add_arguments)


def clean_commit(monkeypatch):
    """Make this checkout look clean: its uncommitted changes must not matter."""
    monkeypatch.setattr(run, "git_state", lambda: ("5eed" * 10, False))


class Maker:
    """Writes what runs leave behind, where the scope says."""

    def __init__(self, scope):
        self.scope = scope

    def record(
        self, model, task, dataset, metrics, seed=0, profile="demo", variant=None, protocol=None, config="c0ffee",
        data="da7a", details=None,
    ) -> Path:  # fmt: skip
        key = RecordKey(profile, task, model, dataset, seed, variant)
        about = dict(checkpoint=f"{len(model):064x}", settings=f"{config:0<64}", fingerprint=f"{data:0<64}")
        return write_record(self.scope.results, key, metrics, protocol=protocol or {}, details=details, **about)

    def studied(self) -> None:
        """The records of a study in which SimSiam collapses without a predictor, with GSG or not."""
        for method in ("simsiam-no_predictor", "simsiam_gsg-no_predictor"):
            for seed in study.SEEDS:
                details = {"std": 0.0, "even_std": 0.02, "effective_rank": 1.0, "seconds": 60.0}
                write_record(
                    summary.STUDY / "records",
                    study.key(study.Arm(method), "cpu", seed),
                    {"knn_top1": 10.0, "linear_top1": 10.0},
                    protocol={"epochs": study.SCALES["cpu"].epochs},
                    details=details,
                )

    def log(self, model, seed=0) -> Path:
        """A pretraining log of three epochs, cut short by a kill."""
        path = self.scope.runs / "demo" / "pretrain" / checkpoint_name(model, seed) / "log.jsonl"
        path.parent.mkdir(parents=True)
        lines = [{"step": 5, "loss": -0.1}]
        values = {"loss": -0.1, "knn": 30.0, "seconds": 70.0}
        lines += [{"step": 10 * e, "epoch": e, "std": 0.02, **{k: v * e for k, v in values.items()}} for e in (1, 2, 3)]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 35, "lo')
        return path

    def predictions(self, model, seed=0) -> Path:
        """A model's predictions of two images."""
        folder = self.scope.data / "ade"
        folder.mkdir(parents=True, exist_ok=True)
        truth = np.array([[0, 1], [2, 3]], np.uint8).repeat(4, 0).repeat(4, 1)
        place = self.scope.runs / "demo" / "segmentation-ade20k" / f"{model}-seed{seed}" / "predictions"
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
        """A model's detections in two images, one of them tall, with a cup and a door that does not count."""
        folder = self.scope.data / "voc"
        folder.mkdir(parents=True, exist_ok=True)
        for k, size in enumerate([(60, 40), (40, 60)]):
            Image.new("RGB", size, (40, 90, 40)).save(folder / f"{k}.png")
        truth = [
            {"box": [2, 4, 30, 35], "label": 1, "ignored": False},
            {"box": [20, 20, 39, 38], "label": 2, "ignored": True},
        ]
        found = [{"box": [3, 4, 30, 34], "label": 1, "score": 0.91}]
        images = [{"path": f"voc/{k}.png", "truth": truth, "detections": found} for k in (0, 1)]
        path = self.scope.runs / "demo" / "detection-voc" / f"{model}-seed{seed}" / "predictions.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"classes": CLASSES, "score": 0.5, "images": images}))
        return path

    def tsne_files(self, stem, n=60, models=("simsiam", "simsiam_gsg")) -> None:
        """The files of a t-SNE figure of random points, under a name that `make tsne` gives."""
        from analysis import drawing, embedding, products, tsne

        rng = np.random.default_rng(0)
        labels = np.arange(n) % 3
        where = self.scope.reports / "demo"
        where.mkdir(parents=True, exist_ok=True)
        points = [rng.standard_normal((n, 2)) + 4 * np.stack((labels, labels % 2), 1) for _ in models]
        panels = [(m, p, embedding.scores(p, p, labels)) for m, p in zip(models, points, strict=True)]
        drawing.tsne([(m, p, tsne.caption(s)) for m, p, s in panels], labels, CLASSES, where / stem)
        content = {"data": "flowers", "perplexity": 30.0, "classes": CLASSES, "labels": labels.tolist()}
        content["panels"] = [{"model": m, "scores": s, "points": tsne.whole(p)} for m, p, s in panels]
        (where / f"{stem}.json").write_text(json.dumps(content))
        side = tsne.THUMBNAIL * int(np.ceil(np.sqrt(n)))
        Image.fromarray(rng.integers(0, 255, (side, side, 3), dtype=np.uint8)).save(where / f"{stem}.webp")
        files = [where / f"{stem}{ending}" for ending in (".png", ".json", ".webp")]
        products.make_once(where, stem, [], files, lambda: None)


@pytest.fixture(autouse=True)
def no_study(tmp_path, monkeypatch):
    """Pages of tests show neither this checkout's study nor its address."""
    monkeypatch.setattr(summary, "STUDY", tmp_path / "study")


@pytest.fixture
def scope(tmp_path):
    return resolved(tmp_path)


@pytest.fixture
def record(scope, monkeypatch):
    """Return a function that writes a record and returns its file."""
    clean_commit(monkeypatch)
    return Maker(scope).record


@pytest.fixture
def log(scope):
    return Maker(scope).log


@pytest.fixture
def predictions(scope):
    return Maker(scope).predictions


@pytest.fixture
def saved_detections(scope):
    return Maker(scope).detections


@pytest.fixture
def tsne_files(scope):
    return Maker(scope).tsne_files


@pytest.fixture
def studied(scope):
    Maker(scope).studied()


@pytest.fixture
def checkpoint(scope):
    """Return a function that writes a checkpoint of random weights and returns its file."""

    def write(name, seed=0):
        torch.manual_seed(seed)
        network = build_backbone("resnet18")
        meta = dict.fromkeys(META_KEYS, 0) | {"arch": "resnet18", "feature_dim": feature_dim(network)}
        path = scope.checkpoints / "demo" / f"{name}.pth"
        save_checkpoint(path, network.state_dict(), meta)
        return path

    return write


@pytest.fixture
def change():
    """Return a function that changes a record in its file."""

    def in_file(path, how) -> None:
        content = json.loads(path.read_text())
        content.pop("sha256", None)
        how(content)
        path.write_text(json.dumps(content))

    return in_file
