"""Exports: what each library makes of them gives the features of the checkpoint."""

import importlib
import json
import pickle
import re

import pytest
import torch
import yaml
from mmengine.registry import DefaultScope
from safetensors.torch import load_file
from torch.testing import assert_close

from common import export
from common.backbones import build_backbone
from common.checkpoint import META_KEYS, load_checkpoint, save_checkpoint
from common.errors import UserError
from common.export import FORMATS
from common.mmlab.ops import register_detection
from common.records import RecordKey
from tests.recorded import write_record

NAME = "our {best}"  # no pattern may take a label for its own

# Their names and torchvision's, in the order in which they are replaced.
STAGES = {f"res{k + 1}.": f"layer{k}." for k in (1, 2, 3, 4)}
DETECTRON2 = {
    "stem.conv1.norm.": "bn1.", "stem.conv1.": "conv1.", **STAGES,
    "conv1.norm.": "bn1.", "conv2.norm.": "bn2.", "conv3.norm.": "bn3.",
    "shortcut.norm.": "downsample.1.", "shortcut.": "downsample.0.",
}  # fmt: skip
HUGGINGFACE = {
    "embedder.embedder.convolution.": "conv1.", "embedder.embedder.normalization.": "bn1.",
    "encoder.stages.0.layers.": "layer1.", "encoder.stages.1.layers.": "layer2.",
    "encoder.stages.2.layers.": "layer3.", "encoder.stages.3.layers.": "layer4.",
    "layer.0.convolution.": "conv1.", "layer.1.convolution.": "conv2.", "layer.2.convolution.": "conv3.",
    "layer.0.normalization.": "bn1.", "layer.1.normalization.": "bn2.", "layer.2.normalization.": "bn3.",
    "shortcut.convolution.": "downsample.0.", "shortcut.normalization.": "downsample.1.",
}  # fmt: skip


def back(tensors, names):
    renamed = {}
    for key, value in tensors.items():
        for theirs, name in names.items():
            key = re.sub(rf"(^|\.){re.escape(theirs)}", rf"\g<1>{name}", key)
        renamed[key] = torch.as_tensor(value)
    return renamed


def write(path, arch="resnet18", dtype=torch.float32, **meta):
    torch.manual_seed(0)
    network = build_backbone(arch)
    with torch.no_grad():
        network.train()(torch.randn(4, 3, 64, 64))  # other statistics than those at the start
    tensors = {k: v.to(dtype) if v.is_floating_point() else v for k, v in network.state_dict().items()}
    save_checkpoint(path, tensors, dict.fromkeys(META_KEYS, 0) | {"arch": arch, "method": "byol_gsg"} | meta)
    return load_checkpoint(path)


@pytest.fixture(scope="module", params=["resnet18", "resnet50"])
def checkpoint(request, tmp_path_factory):
    return write(tmp_path_factory.mktemp("checkpoint") / "ours.pth", request.param)


def run_card(folder, monkeypatch):
    """Run the card's Python as a user in the folder would, and return what it defines."""
    monkeypatch.chdir(folder)
    [code] = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    names: dict = {}
    exec(code, names)
    return names


def from_tensors(arch, tensors):
    network = build_backbone(arch)
    network.load_state_dict(tensors, strict=True)
    return network.eval()


def loaded(form, arch, folder, monkeypatch):
    """Return the network that the library, or where it is not installed our own renaming, makes of the files."""
    if form == "detectron2":
        content = pickle.loads((folder / f"{NAME}.pkl").read_bytes())
        assert content.keys() == {"model", "__author__", "matching_heuristics"}
        assert "res5.1.conv2.norm.running_var" in content["model"]
        return from_tensors(arch, back(content["model"], DETECTRON2))
    if form == "huggingface":
        tensors = load_file(folder / "model.safetensors")
        assert "encoder.stages.3.layers.1.layer.1.normalization.running_var" in tensors
        return from_tensors(arch, back(tensors, HUGGINGFACE))
    names = run_card(folder, monkeypatch)
    if form == "safetensors":
        return from_tensors(arch, names["tensors"])
    if form == "mmlab":
        register_detection()
        with DefaultScope.overwrite_default_scope("mmdet"):  # whatever scope an earlier run has left
            backbone = importlib.import_module("mmdet.registry").MODELS.build(names["backbone"])
        backbone.init_weights()
        backbone.eval()
        return lambda images: backbone(images)[-1].mean((2, 3))
    return names["network"].eval()


@pytest.mark.parametrize("form", FORMATS)
def test_a_round_trip_gives_equal_features(form, checkpoint, tmp_path, monkeypatch):
    files = export.export(checkpoint, NAME, form, tmp_path)
    assert sorted(files) == sorted(tmp_path.iterdir())
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        theirs = loaded(form, checkpoint.arch, tmp_path, monkeypatch)(images)
        ours = checkpoint.backbone()(images)
        assert_close(theirs, ours, rtol=1e-5, atol=1e-5)
        for path in tmp_path.glob("*.pth"):
            assert torch.equal(load_checkpoint(path).backbone()(images), ours)


@pytest.mark.parametrize("form", FORMATS)
def test_half_precision_becomes_float32(form, tmp_path):
    checkpoint = write(tmp_path / "half.pth", dtype=torch.bfloat16)
    folder = tmp_path / form
    export.export(checkpoint, NAME, form, folder)
    [weights] = [path for path in folder.iterdir() if path.suffix in (".pth", ".pkl", ".safetensors")]
    if weights.suffix == ".safetensors":
        tensors = load_file(weights)
    elif weights.suffix == ".pkl":
        tensors = back(pickle.loads(weights.read_bytes())["model"], {})
    else:
        tensors = torch.load(weights, weights_only=True)
        tensors = tensors.get("state_dict", tensors)
    assert {t.dtype for t in tensors.values()} == {torch.float32, torch.int64}  # the counters of batches are whole


# Layers per stage and their widths, as transformers' own conversion of timm's ResNets has them.
@pytest.mark.parametrize(
    ("arch", "kind", "depths", "widths"),
    [
        ("resnet18", "basic", [2, 2, 2, 2], [64, 128, 256, 512]),
        ("resnet34", "basic", [3, 4, 6, 3], [64, 128, 256, 512]),
        ("resnet50", "bottleneck", [3, 4, 6, 3], [256, 512, 1024, 2048]),
        ("resnet101", "bottleneck", [3, 4, 23, 3], [256, 512, 1024, 2048]),
        ("resnet152", "bottleneck", [3, 8, 36, 3], [256, 512, 1024, 2048]),
    ],
)
def test_the_config_of_transformers(arch, kind, depths, widths):
    with torch.device("meta"):
        tensors = build_backbone(arch).state_dict()
    config = export.huggingface_config(tensors)
    assert (config["layer_type"], config["depths"], config["hidden_sizes"]) == (kind, depths, widths)
    assert config["model_type"] == "resnet"


def test_what_a_library_cannot_build_is_refused(tmp_path):
    checkpoint = write(tmp_path / "small.pth", "resnet18_cifar")
    for form in FORMATS:
        if form == "safetensors":
            weights, _ = export.export(checkpoint, NAME, form, tmp_path / form)
            assert load_checkpoint(weights).arch == "resnet18_cifar"  # its tensors do not show whether there is a ReLU
            continue
        with pytest.raises(UserError, match=f"FORMAT={form} has no resnet18_cifar .*; choose FORMAT=safetensors"):
            export.export(checkpoint, NAME, form, tmp_path / form)
        assert not (tmp_path / form).exists()


def run(root, *words):
    places = [f"--{name}={root / name}" for name in ("checkpoints", "results", "exports")]
    export.main([*places, *words])
    return root / "exports"


def test_the_card_has_settings_metrics_licence_and_citation(tmp_path, capsys):
    path = tmp_path / "checkpoints" / "demo" / "byol_gsg.pth"
    checkpoint = write(path, epochs=7)
    for sha256, top1 in ((checkpoint.sha256, 91.25), ("of others", 11.0)):
        key = RecordKey("demo", "knn", f"model{top1:.0f}", "digits", 0)
        write_record(tmp_path / "results", key, {"top1": top1}, protocol={"k": 20}, checkpoint=sha256)
    folder = run(tmp_path, "--name=byol_gsg", "--format=timm") / "demo" / "byol_gsg" / "timm"
    assert f"written: {folder / 'README.md'}" in capsys.readouterr().out
    card = (folder / "README.md").read_text()
    assert yaml.safe_load(card.split("---")[1])["license"] == "apache-2.0"
    assert "# byol_gsg\n\nA resnet18 without classifier, pretrained by gsg with the method byol_gsg." in card
    for row in ("epochs | 7", f"checkpoint (SHA-256) | {checkpoint.sha256}"):
        assert f"| {row} |" in card
    assert "| demo | knn | digits |  | 0 | top1 | 91.25 | k 20 |" in card
    assert "11.00" not in card
    assert "Numbers of the profile demo are of embedded images, and comparable with no others." in card
    assert "## Licence\n\nApache-2.0." in card
    assert "@inproceedings{lee2023implicit," in card
    assert json.loads((folder / "config.json").read_text())["architecture"] == "resnet18"


@pytest.mark.parametrize("imported", [False, True])
def test_the_card_of_weights_of_others_claims_nothing(tmp_path, imported):
    path = tmp_path / "theirs.pth"
    if imported:
        write(path, source={"file": "moco.pth", "layout": "MoCo"})
    else:
        torch.save(build_backbone("resnet18").state_dict(), path)
    folder = run(tmp_path, f"--checkpoint={path}", "--name=theirs", "--format=safetensors") / "demo" / "theirs"
    card = (folder / "safetensors" / "README.md").read_text()
    assert ("| imported: layout | MoCo |" in card) == imported
    assert yaml.safe_load(card.split("---")[1])["license"] == "other"
    assert "not pretrained by gsg" in card
    assert "No result of these weights is recorded." in card
    assert "The terms of whoever trained these weights apply." in card


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--format=onnx"], "unknown FORMAT 'onnx'; known: torchvision, timm,"),
        (["--format="], "unknown FORMAT ''; known: torchvision, timm,"),
        (["--format=timm", "--name=gone"], "gone.pth is missing; make it with `make pretrain"),
        (["--format=timm", "--checkpoint=x.pth"], "needs a label: add NAME=label"),
        (["--format=timm", "--name=../x"], "choose a label without slashes"),
    ],
)
def test_a_wrong_command_ends_in_one_line(tmp_path, words, said):
    with pytest.raises(UserError, match=re.escape(said)):
        run(tmp_path, *words)
    assert not (tmp_path / "exports").exists()
