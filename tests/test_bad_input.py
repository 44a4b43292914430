"""Bad input to every command: one line that names the thing and the remedy, exit code 1, and nothing lost.

A case is a command line, what is wrong in the folder where it runs, and what the line says: the thing, then the remedy.
Wrong --cfg-options are in test_options.py, damaged bytes in test_fuzz.py of each room.
"""

import json
import math
import os
import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image

from common import cli
from common.backbones import build_backbone
from common.checkpoint import META_KEYS, save_checkpoint
from common.sources import SOURCES
from tests.detection.layouts import write_coco, write_voc
from tests.pretrain.tiny import TINY, write_images

Change = Callable[[Path], object]
MINE = "--checkpoint mine.pth --name mine"
DEEP = "--checkpoint resnet18.pth --name deep"
SHORT = " --cfg-options train_cfg.max_iters=1 train_dataloader.batch_size=2"
PRETRAIN = f"pretrain.train --data-root img --cfg-options {' '.join(TINY)}"
KNN = f"pretrain.knn {MINE} --data-root img --cfg-options evaluation.k=2"
LINEAR = f"pretrain.linear {MINE} --data-root img"
TRANSFER = f"transfer.run {MINE} --data-root img"
VOC = f"detection.train {DEEP} --dataset voc --data-root shapes{SHORT}"
COCO = f"detection.train {DEEP} --dataset coco --data-root things{SHORT}"
MAPS = f"segmentation.train {DEEP} --data-root maps{SHORT}"
XML = "shapes/Annotations/000001.xml"
LIST = "shapes/ImageSets/Main/trainval.txt"
THINGS = "things/annotations/instances_train2017.json"
MAP = "maps/annotations/train/0.png"
PICTURE = "img/train/a/3.png"
INDEX = "runs/demo/segmentation-ade20k/mine-seed0/predictions/index.json"
BOXES = "runs/demo/detection-voc/mine-seed0/predictions.json"
RECORD = "results/demo/knn/mine/img-seed0.json"


def put(path: str, content: str | bytes) -> Change:
    """Write a file."""

    def change(root: Path) -> None:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content.encode() if isinstance(content, str) else content)

    return change


def cut(path: str) -> Change:
    """Keep half of a file."""
    return lambda root: (root / path).write_bytes((root / path).read_bytes()[: (root / path).stat().st_size // 2])


def swap(path: str, old: str, new: str) -> Change:
    """Replace a text in a file."""

    def change(root: Path) -> None:
        text = (root / path).read_text()
        assert old in text
        (root / path).write_text(text.replace(old, new))

    return change


def picture(path: str, pixels: np.ndarray, kind: str | None = None) -> Change:
    """Write an image."""
    return lambda root: Image.fromarray(pixels).save(root / path, kind)


def coco(change: Callable[[dict], object]) -> Change:
    """Change the content of the COCO file."""

    def write(root: Path) -> None:
        content = json.loads((root / THINGS).read_text())
        change(content)
        (root / THINGS).write_text(json.dumps(content))

    return write


def weights(change: Callable[[dict], object]) -> Change:
    """Change the tensors of the checkpoint."""

    def write(root: Path) -> None:
        content = torch.load(root / "mine.pth", weights_only=True)
        change(content["state_dict"])
        torch.save(content, root / "mine.pth")

    return write


def remove(path: str) -> Change:
    """Remove a file or folder."""
    return lambda root: shutil.rmtree(root / path) if (root / path).is_dir() else (root / path).unlink()


def nothing(root: Path) -> None:
    """Leave everything as it is: the words are wrong."""


def instead(path: str, make: Callable[[Path], object]) -> Change:
    """Make something else of a file or folder."""

    def change(root: Path) -> None:
        remove(path)(root)
        make(root / path)

    return change


def remove_all(*paths: str) -> Change:
    """Remove several folders."""
    return lambda root: [remove(path)(root) for path in paths]


def every_map(label: int) -> Change:
    """Give all pixels one label."""

    def change(root: Path) -> None:
        for path in (root / "maps/annotations").rglob("*.png"):
            Image.fromarray(np.full((64, 96), label, np.uint8)).save(path)

    return change


# Command, what is wrong, and what the line says of it: the thing and the remedy.
CASES: list[tuple[str, Change, str]] = [
    (f"{KNN} --profile demo2", nothing, "unknown PROFILE 'demo2' | known: demo"),
    (f"{KNN} --seed -1", nothing, "SEED is '-1' | choose a whole number"),
    (f"{KNN} evaluation.k=100", nothing, "k=100 needs at least 100 images | lower k"),
    (f"{KNN} evaluation.images.name=cifar10", nothing, "evaluation.images.name | leave it out"),
    (f"{KNN} --results mine.pth", nothing, "mine.pth cannot be written (Not a directory) | correct it"),
    (f"{KNN} --runs mine.pth/x", nothing, "mine.pth cannot be written (Not a directory) | correct it"),
    (
        KNN.replace("--name mine", f"--name {'a' * 300}"),
        nothing,
        "aaa/img-seed0.json: File name too long | correct that",
    ),
    (KNN.replace("--name mine", "--name a/b"), nothing, "NAME 'a/b' | choose a label"),
    (KNN.replace("--name mine", ""), nothing, "mine.pth needs a label | add NAME=label"),
    (KNN.replace("--name mine", "--name mine --key ema"), nothing, "ema | correct CHECKPOINT or KEY"),
    (KNN, remove("mine.pth"), "checkpoint mine.pth is missing | correct CHECKPOINT"),
    (KNN.replace("mine.pth", "img"), nothing, "checkpoint img is a folder, not a file | correct CHECKPOINT"),
    (KNN, cut("mine.pth"), "mine.pth is truncated or damaged | fetch the file again"),
    (KNN, put("mine.pth", b""), "mine.pth is not a checkpoint | fetch the file again"),
    (KNN, put("mine.pth", "<!doctype html><p>Sign in"), "mine.pth is a web page | download that again"),
    (
        KNN,
        weights(lambda tensors: tensors["conv1.0.weight"].fill_(math.nan)),
        "mine.pth are not finite | fetch the file",
    ),
    (
        KNN,
        weights(lambda tensors: tensors["conv1.0.weight"].mul_(1e38)),
        "mine.pth (img-train) are not finite | pretrain",
    ),
    (
        KNN,
        weights(lambda tensors: tensors.pop("conv1.0.weight")),
        "mine.pth | conv1.0.weight is missing; export it again",
    ),
    (KNN, remove("img/train"), "img has no folder 'train' | place one folder per class"),
    (KNN, remove("img/train/b"), "img/val has b | give both the same class folders"),
    (KNN, remove_all("img/train/b", "img/val/b"), "one class alone, a | add the others"),
    (KNN, remove("img/val/b"), "only img/train has b | give both the same class folders"),
    (KNN, cut(PICTURE), f"{PICTURE} is truncated or corrupt | restore"),
    (KNN, put(PICTURE, b""), f"{PICTURE} is truncated or corrupt | restore"),
    (KNN, picture(PICTURE, np.eye(9, dtype=np.int32), "TIFF"), f"{PICTURE} holds numbers of 32 bits | convert it"),
    (KNN, instead(PICTURE, lambda path: path.symlink_to("gone.png")), f"{PICTURE} is missing | restore"),
    (KNN, instead(PICTURE, os.mkfifo), f"{PICTURE} is truncated or corrupt (it is not a file) | restore"),
    (
        KNN,
        lambda root: os.rename(root / PICTURE, os.fsencode(root) + b"/img/train/a/\xe9.png"),
        r"\xe9.png | rename it",
    ),
    (KNN, instead("runs/demo", lambda path: path.write_text("")), "runs/demo | Not a directory; correct that"),
    (f"{LINEAR} --amp fp64", nothing, "--amp: invalid choice: 'fp64' | choose from"),
    (f"{LINEAR} --accumulate 0", nothing, "--accumulate is '0' | choose a whole number from 1"),
    (f"{LINEAR} --launcher slurm", nothing, "--launcher slurm | srun"),
    (f"{LINEAR} --launcher pytorch", nothing, "--launcher pytorch | torchrun"),
    (f"{LINEAR} --logger csv", nothing, "unknown LOGGER 'csv' | known: wandb, mlflow"),
    (LINEAR, remove("img/val"), "img/val is missing | place one folder per class"),
    (LINEAR, cut(PICTURE), f"{PICTURE} is truncated or corrupt | restore"),
    (f"{PRETRAIN} --method moco", nothing, "unknown METHOD 'moco' | known: simsiam"),
    (f"{PRETRAIN} --method simsiam-random", nothing, "simsiam has no guide to vary | choose simsiam_gsg-random"),
    (
        f"{PRETRAIN} train_dataloader.batch_size=100",
        nothing,
        "12 images, fewer than a batch of 100 | lower train_dataloader.batch_size",
    ),
    (f"{PRETRAIN} model.backbone.name=resnot", nothing, "'resnot' | known"),
    (f"{PRETRAIN} model.guide=closest", nothing, "'closest' | nearest"),
    (f"{PRETRAIN} optim_wrapper.optimizer.lr=1e30", nothing, "the loss is nan | lower the learning rate"),
    (f"{PRETRAIN} --checkpoints mine.pth", nothing, "mine.pth cannot be written (Not a directory) | correct it"),
    (PRETRAIN, cut(PICTURE), f"{PICTURE} is truncated or corrupt | restore"),
    (PRETRAIN.replace("img", "nowhere"), nothing, "nowhere (DATA_ROOT) is not a folder | correct"),
    (PRETRAIN.replace("img", "results"), nothing, "results holds no images | place them there"),
    (TRANSFER, remove("img/val/b"), "img/train has b | give both the same class folders"),
    (TRANSFER, remove_all("img/train/b", "img/val/b"), "one class alone, a | add the others"),
    (TRANSFER, cut(PICTURE), f"{PICTURE} is truncated or corrupt | restore"),
    (f"transfer.run {MINE} --dataset mars", nothing, "unknown DATASET 'mars' | known"),
    (f"transfer.run {MINE} --dataset dtd", nothing, "DTD is not in the profile demo | add PROFILE="),
    (
        f"transfer.run {MINE} --dataset dtd --profile imagenet",
        nothing,
        "data/dtd/dtd/images is missing | make data DATASET=dtd",
    ),
    (f"{VOC} --classes round", nothing, "unknown class 'square' | known: round"),
    (f"{VOC} --test-only", nothing, "final.pth | leave --test-only out"),
    (f"{VOC} --profile cifar10", nothing, "profile cifar10 has no detection | choose PROFILE from"),
    (VOC.replace(DEEP, MINE), nothing, "test_resnet cannot serve a dense task | choose a checkpoint of resnet18"),
    (VOC, remove("shapes/ImageSets"), "shapes (DATA_ROOT) has no lists | place there ImageSets/Main/trainval.txt"),
    (VOC, put(LIST, ""), f"{LIST} lists no image | restore"),
    (VOC, put(LIST, "000001\n000001\n"), f"{LIST} names 000001 2 times | leave one"),
    (VOC, put(LIST, "../000001\n"), f"{LIST} names '../000001' | restore"),
    (VOC, put(LIST, b"\xff\xfe\xff"), f"{LIST} is not text in UTF-8 | restore"),
    (VOC, put(LIST, "000001\n999999\n"), "999999.xml is listed but missing | restore"),
    (VOC, cut(XML), f"{XML} | restore it"),
    (VOC, swap(XML, "<xmin>", "<xmin>nan"), f"{XML} | restore it"),
    (VOC, cut("shapes/JPEGImages/000001.jpg"), "shapes/JPEGImages/000001.jpg is truncated or corrupt | restore it"),
    (
        VOC,
        picture("shapes/JPEGImages/000001.jpg", np.eye(9, dtype=np.uint8)),
        "000001 | is (9, 9) pixels, not | restore",
    ),
    (COCO, put(THINGS, "[" * 100_000), f"{THINGS} is truncated or corrupt | restore it"),
    (COCO, put(THINGS, "[]"), f"{THINGS} holds no JSON object | restore it"),
    (COCO, put(THINGS, "{}"), f"{THINGS} is not in COCO's format | restore it"),
    (
        COCO,
        coco(lambda c: c["annotations"][0].update(bbox=["1", 2, 3, 4])),
        f"{THINGS} | is not four numbers | restore",
    ),
    (
        COCO,
        coco(lambda c: c["annotations"][0].update(category_id=77)),
        f"{THINGS}: object 1 is of unknown class 77 | known: round, square",
    ),
    (COCO, coco(lambda c: c["annotations"][0].update(image_id=77)), f"{THINGS} | 77 | restore"),
    (COCO, coco(lambda c: c["annotations"][0].update(iscrowd="no")), f"{THINGS} | 'no' | restore"),
    (COCO, coco(lambda c: c["annotations"][0].update(id=2)), f"{THINGS}: id 2 occurs twice | correct the file"),
    (COCO, coco(lambda c: c["images"][0].update(id=2)), f"{THINGS}: id 2 occurs twice | correct the file"),
    (COCO, coco(lambda c: c["images"][0].update(file_name="x.jpg")), "things/train2017/x.jpg is missing | restore"),
    (COCO, coco(lambda c: c["images"][0].update(width=7)), f"{THINGS} | pixels, not (7, | restore"),
    (f"{MAPS} --classes a,b", nothing, "CLASSES names 2 classes | name each of them"),
    (f"{MAPS} --ignored 900", nothing, "--ignored is '900' | choose a whole number"),
    (MAPS, remove("maps/annotations/val"), "maps (DATA_ROOT) has no folders | place there {images,annotations}"),
    (MAPS, remove(MAP), "maps/images/train/0.png has no annotation | restore"),
    (MAPS, cut(MAP), f"class map {MAP} is truncated or corrupt | restore it"),
    (MAPS, picture(MAP, np.zeros((64, 96, 3), np.uint8)), f"class map {MAP} does not hold 8-bit labels | convert it"),
    (MAPS, picture(MAP, np.eye(9, dtype=np.uint8)), f"class map {MAP} is (9, 9) | restore"),
    (MAPS, picture(MAP, np.zeros((64, 96), np.uint8), "JPEG"), f"class map {MAP} is a JPEG | restore"),
    (MAPS, every_map(7), "maps/annotations have 1 classes | choose 2 to 254"),
    ("detection.detect --images img --name mine", nothing, "no finished detection of mine | train it first"),
    ("segmentation.segment --images img --name mine", nothing, "no finished segmentation of mine | train it first"),
    ("detection.detect --images img --score-threshold 2", nothing, "--score-threshold is '2' | choose a number from 0"),
    (f"common.export {DEEP} --format onnx", nothing, "unknown FORMAT 'onnx' | known: torchvision"),
    (f"common.export {MINE} --format detectron2", nothing, "test_resnet | choose"),
    ("common.checkpoint.__main__ inspect", nothing, "inspect needs a file | inspect FILE"),
    ("common.checkpoint.__main__ inspect img", nothing, "checkpoint img is a folder, not a file | correct its path"),
    (
        "common.checkpoint.__main__ import --checkpoint zoo:a --name a",
        nothing,
        "zoo:a is neither a file nor | timm:NAME",
    ),
    (
        f"common.checkpoint.__main__ import {MINE} --checkpoints mine.pth",
        nothing,
        "mine.pth/demo | Not a directory; correct",
    ),
    ("common.download --dataset mars", nothing, "unknown DATASET 'mars' | known"),
    ("common.download --dataset cars", nothing, "data/stanford_cars | make data DATASET=cars"),
    ("common.download --data mine.pth", nothing, "cannot access mine.pth | correct that"),
    ("analysis.tables", put(RECORD, "{"), f"{RECORD} is not a valid results record | delete it"),
    ("analysis.tables", swap(RECORD, '"k": 3', '"k": 4'), f"{RECORD} | does not fit its sha256 | delete it"),
    ("analysis.tables", remove("results"), "no results records in results/demo | make knn"),
    ("analysis.report", put(RECORD, "[" * 100_000), f"skipped: {RECORD} is not a valid results record | delete it"),
    ("analysis.curves", nothing, "no training logs in runs/demo/pretrain | make pretrain"),
    (
        "analysis.curves",
        put("runs/demo/pretrain/byol/log.jsonl", "{"),
        "byol/log.jsonl is not a valid log | pretrain byol again",
    ),
    ("analysis.figures", put(INDEX, "{"), f"{INDEX} is not an index of predictions | delete it and run"),
    ("analysis.figures", put(BOXES, "{"), f"{BOXES} holds no predictions | delete it and run"),
    (f"analysis.tsne {MINE} --data-root img --perplexity 0", nothing, "--perplexity is '0' | choose a number from 1"),
    (
        f"analysis.tsne {MINE} --data-root img",
        cut("img/val/a/0.png"),
        "img/val/a/0.png is truncated or corrupt | restore",
    ),
    ("analysis.geometry --method byol", nothing, "no checkpoint in checkpoints/demo | make pretrain"),
    (f"analysis.geometry {MINE} --data-root nowhere", nothing, "nowhere is missing | place one folder per class"),
    (f"tools.evaluate {MINE} --only mars", nothing, "unknown ONLY 'mars' | known"),
    (f"tools.evaluate {MINE} --data-root results", nothing, "results (DATA_ROOT) has neither | place"),
    ("tools.clean_cache --runs nowhere", nothing, "--runs nowhere is not a folder | correct it"),
    ("tools.study --only 9z", nothing, "ONLY: unknown question or run '9z' | did you mean"),
    ("tools.study --budget soon", nothing, "BUDGET is 'soon' | as in 90m"),
    ("tools.study --data nowhere", nothing, "nowhere | make data"),
    ("tools.bench --only mars", nothing, "--only mars | --help"),
    ("tools.chaos --faults 0", nothing, "FAULTS is '0' | choose a whole number from 1"),
    ("tools.gpu_check --device cpu --only mars", nothing, "mars | known"),
]


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the commands read, all of it sound: images, a data set of each kind, checkpoints, a record."""
    root = tmp_path_factory.mktemp("template")
    write_images(root / "img")
    write_voc(root / "years", ("round", "square"))
    (root / "years/VOC2007").rename(root / "shapes")
    shutil.rmtree(root / "years")
    write_coco(root / "things", ("round", "square"))
    rng = np.random.default_rng(0)
    for split, count in (("train", 2), ("val", 1)):
        for kind, high, shape in (("images", 256, (64, 96, 3)), ("annotations", 3, (64, 96))):
            (root / "maps" / kind / split).mkdir(parents=True)
            for k in range(count):
                pixels = rng.integers(0, high, shape, dtype=np.uint8)
                Image.fromarray(pixels).save(root / "maps" / kind / split / f"{k}.png")
    for name, arch in (("mine", "test_resnet"), ("resnet18", "resnet18")):
        torch.manual_seed(0)
        meta = dict.fromkeys(META_KEYS, "") | {"arch": arch, "name": name}
        save_checkpoint(root / f"{name}.pth", build_backbone(arch).state_dict(), meta)
    large = tmp_path_factory.mktemp("large") / "resnet18.pth"
    (root / "resnet18.pth").rename(large)
    (root / "resnet18.pth").symlink_to(large)
    with pytest.MonkeyPatch.context() as context:
        context.chdir(root)
        call(KNN.replace("k=2", "k=3"))
    return root


def call(line: str) -> None:
    module, *words = line.split()
    with patch.dict(SOURCES):  # to which a folder of the user's is added
        import_module(module).main(words)


def files(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file() and not p.is_symlink()}


@pytest.mark.parametrize(("line", "change", "says"), CASES, ids=[says for *_, says in CASES])
def test_bad_input(
    template: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    line: str,
    change: Change,
    says: str,
) -> None:
    shutil.copytree(template, tmp_path, dirs_exist_ok=True, symlinks=True)
    change(tmp_path)
    monkeypatch.chdir(tmp_path)
    before = files(tmp_path)
    with pytest.raises(SystemExit) as ended:
        cli.run(lambda: call(line))
    assert ended.value.code == 1
    said = [one for one in capsys.readouterr().err.splitlines() if one.startswith(("skipped: ", "error: "))]
    assert said[-1].startswith("error: ")
    assert len(said) == 1 + said[0].startswith("skipped: ")  # the file, and how many there were
    assert [part for part in says.split(" | ") if part not in said[0]] == [], said
    after = files(tmp_path)
    assert {name for name, content in before.items() if after.get(name) != content} == set()
    assert {name.split("/")[0] for name in after.keys() - before.keys()} <= {"runs", "reports"}
