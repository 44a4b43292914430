"""`python -m common.checkpoint`: what a file holds, anybody's checkpoint made ours, and checkpoints by name."""

import json
import socket
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from huggingface_hub import constants
from safetensors.torch import save_file

from common.checkpoint import load_checkpoint
from common.checkpoint.__main__ import main
from common.checkpoint.hub import fetch
from common.errors import UserError


@pytest.fixture(scope="module")
def states():
    torch.manual_seed(0)
    return [torchvision.models.resnet18(num_classes=3).state_dict() for _ in range(2)]


def half(tensor):
    return tensor.half() if tensor.is_floating_point() else tensor


@pytest.fixture
def moco(states, tmp_path):
    """Return a file of two networks, in half precision."""
    pairs = zip(("q", "k"), states, strict=True)
    tensors = {f"module.encoder_{which}.{key}": half(t) for which, state in pairs for key, t in state.items()}
    torch.save({"state_dict": tensors | {"module.queue": torch.ones(4, 8)}, "epoch": 3}, tmp_path / "moco.pth.tar")
    return tmp_path / "moco.pth.tar"


def test_inspect_shows_every_part_and_what_an_evaluation_takes(moco, states, capsys):
    main(["inspect", str(moco)])
    lines = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    rows = [[cell.strip() for cell in line if cell] for line in lines]
    numbers = f"{sum(t.numel() for key, t in states[0].items() if key[:3] != 'fc.'):,}"
    assert rows == [
        ["part", "tensors", "numbers", "types", "network"],
        ["state_dict.module.encoder_q", "120", numbers, "float16 int64", "(resnet18)"],
        ["state_dict.module", "5", f"{2 * 513 * 3 + 32:,}", "float16 float32"],
        ["state_dict.module.encoder_k", "120", numbers, "float16 int64", "(resnet18)"],
        ["without tensors of their own: epoch"],
        ["an evaluation takes state_dict.module.encoder_q (resnet18); layout: MoCo v1, MoCo v2 or PCL"],
    ]


def test_inspect_says_why_a_file_is_refused(states, tmp_path, capsys):
    torch.save({key: tensor for key, tensor in states[0].items() if "bn1" not in key}, tmp_path / "a.pth")
    main(["inspect", str(tmp_path / "a.pth")])
    assert f"an evaluation refuses it: {tmp_path}/a.pth holds no complete ResNet" in capsys.readouterr().out
    with pytest.raises(UserError, match="inspect needs a file"):
        main(["inspect"])


def test_inspect_refuses_what_an_evaluation_refuses(states, tmp_path, capsys):
    torch.save({"net": states[0] | {"bn1.weight": torch.full([64], torch.nan)}}, tmp_path / "a.pth")
    main(["inspect", str(tmp_path / "a.pth"), "--key", "net"])
    assert "an evaluation refuses it: the weights of" in capsys.readouterr().out


def imported(moco, *words):
    folder = moco.parent / "checkpoints"
    main(["import", "--checkpoint", str(moco), "--name", "theirs", "--checkpoints", str(folder), *words])
    return folder / "demo" / "theirs.pth"


def test_import_writes_one_of_ours(moco, states, capsys):
    place = imported(moco)
    assert "layout: MoCo v1, MoCo v2 or PCL; prefix: state_dict.module.encoder_q.)" in capsys.readouterr().out
    found = load_checkpoint(place)
    assert (found.arch, found.layout, found.meta["feature_dim"]) == ("resnet18", "ours", 512)
    assert found.meta["source"]["layout"] == "MoCo v1, MoCo v2 or PCL"
    assert json.loads(place.with_suffix(".json").read_text()) == found.meta
    for key, tensor in found.state_dict.items():
        assert tensor.dtype == states[0][key].dtype
        assert torch.equal(tensor, half(states[0][key]).to(tensor.dtype))


def test_import_replaces_only_with_a_word(moco, states):
    place = imported(moco)
    with pytest.raises(UserError, match=r"theirs.pth exists; choose another NAME, or add OVERWRITE=1"):
        imported(moco, "--key", "encoder_k")
    imported(moco, "--key", "encoder_k", "--overwrite")
    assert torch.equal(load_checkpoint(place).state_dict["conv1.weight"], states[1]["conv1.weight"].half().float())
    assert place.with_name("theirs.pth.replaced-1").is_file()
    with pytest.raises(UserError, match="import needs CHECKPOINT=path NAME=label"):
        main(["import"])


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """Let nothing answer at the Hub's address or torch's, and put their caches under tmp_path."""

    def unreachable(*_args, **_options):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{taken.getsockname()[1]}")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))
        yield tmp_path


def cache(folder: Path, repository: str, tensors: dict) -> Path:
    """Put weights where the Hub's library keeps what it has downloaded."""
    place = folder / "hub" / f"models--{repository.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("0" * 40)
    (place / "snapshots" / ("0" * 40)).mkdir(parents=True)
    save_file(tensors, place / "snapshots" / ("0" * 40) / "model.safetensors")
    return place / "snapshots" / ("0" * 40) / "model.safetensors"


def test_a_name_is_fetched_by_its_library(offline):
    torch.manual_seed(1)
    states = [torchvision.models.resnet18().state_dict(), timm.create_model("resnet18").state_dict()]
    weights = torchvision.models.ResNet18_Weights.DEFAULT
    (offline / "torch" / "checkpoints").mkdir(parents=True)
    torch.save(states[0], offline / "torch" / "checkpoints" / weights.url.rpartition("/")[2])
    cache(offline, "timm/resnet18.a1_in1k", states[1])
    theirs = cache(offline, "owner/net", states[1])
    assert fetch("hf:owner/net", offline) == theirs
    assert fetch("hf:owner/net/model.safetensors", offline) == theirs
    for word, state in (("torchvision:resnet18", states[0]), ("timm:resnet18.a1_in1k", states[1])):
        place = fetch(word, offline)
        assert place == offline / "hub" / f"{word.replace(':', '-')}.pth"
        found = load_checkpoint(place)
        assert found.arch == "resnet18"
        assert all(torch.equal(tensor, state[key]) for key, tensor in found.state_dict.items())
        before = place.stat()
        assert fetch(word, offline) == place
        assert place.stat() == before


NAMES = "hf:owner/net timm:resnet18.a1_in1k timm:resnet19 torchvision:resnet19 torchvision:resnet18".split()


@pytest.mark.parametrize("word", NAMES)
def test_a_name_that_cannot_be_fetched_is_one_line(offline, word, capsys):
    with pytest.raises(UserError, match=f"^CHECKPOINT={word} cannot be fetched: .*fetch the file elsewhere") as caught:
        fetch(word, offline)
    assert len(str(caught.value).splitlines()) == 1
    assert capsys.readouterr() == ("", "")
