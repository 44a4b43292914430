"""The checkpoint: what others read from it, and every way in which a file can fail to be one."""

import errno
import json
import os
import pickle
import re
import zipfile
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from common.backbones import build_backbone
from common.checkpoint import META_KEYS, load_backbone, load_checkpoint, load_into, save_checkpoint
from common.checkpoint.archive import damaged_entry
from common.errors import UserError

META = dict.fromkeys(META_KEYS, "") | {"arch": "resnet18", "name": "ours", "epochs": 3, "seed": 0, "feature_dim": 512}


@pytest.fixture(scope="module")
def tensors():
    torch.manual_seed(0)
    return build_backbone("resnet18").state_dict()


@pytest.fixture(scope="module")
def good(tensors, tmp_path_factory):
    """Return a valid checkpoint, which no test may change."""
    path = tmp_path_factory.mktemp("good") / "ours.pth"
    save_checkpoint(path, tensors, META)
    return path


def refusal(path: Path, **options: str) -> str:
    """Return the message that refuses a file, after checking that it is one line and names the file."""
    with pytest.raises(UserError) as caught:
        load_checkpoint(path, **options)
    line = str(caught.value)
    assert len(line.splitlines()) == 1
    assert str(path) in line
    return line


def same(a, b):
    return set(a) == set(b) and all(torch.equal(a[key], b[key]) for key in a)


def test_round_trip(good, tensors):
    content = torch.load(good, weights_only=True)
    assert same(content["state_dict"], tensors)
    assert content["meta"] == META
    loaded = load_checkpoint(good)
    assert same(loaded.state_dict, tensors)
    assert loaded.meta == META
    assert loaded.arch == "resnet18"


def test_the_json_beside_it_holds_the_metadata(good):
    assert json.loads(good.with_suffix(".json").read_text()) == META
    assert sorted(p.name for p in good.parent.iterdir()) == ["ours.json", "ours.pth"]


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_keys_and_shapes_are_torchvision_s_without_the_classifier(arch):
    theirs = {k: v.shape for k, v in torchvision.models.get_model(arch).state_dict().items() if k[:3] != "fc."}
    assert {k: v.shape for k, v in build_backbone(arch).state_dict().items()} == theirs


def test_torchvision_and_timm_load_it_and_compute_the_same(good):
    state = torch.load(good, weights_only=True)["state_dict"]
    theirs = torchvision.models.resnet18()
    left = theirs.load_state_dict(state, strict=False)
    assert left.missing_keys == ["fc.weight", "fc.bias"]
    assert left.unexpected_keys == []
    theirs.fc = nn.Identity()
    of_timm = timm.create_model("resnet18", num_classes=0)
    of_timm.load_state_dict(state, strict=True)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours = load_checkpoint(good).backbone()(images)
        torch.testing.assert_close(ours, theirs.eval()(images))
        torch.testing.assert_close(ours, of_timm.eval()(images))


def test_the_backbone_is_frozen(good):
    backbone = load_backbone(str(good))
    assert not backbone.training
    assert not any(parameter.requires_grad for parameter in backbone.parameters())


@pytest.mark.parametrize(("change", "named"), [({"schema": None}, "schema"), ({"extra": 1}, "extra")])
def test_metadata_with_a_missing_or_an_extra_key_is_refused(tmp_path, tensors, change, named):
    meta = {k: v for k, v in (META | change).items() if v is not None}
    with pytest.raises(ValueError, match=rf"missing or extra: \['{named}'\]"):
        save_checkpoint(tmp_path / "a.pth", tensors, meta)
    assert not list(tmp_path.iterdir())


def test_a_missing_file_names_the_command_that_makes_it(tmp_path):
    assert "make it again with `make pretrain METHOD=byol`" in refusal(
        tmp_path / "a.pth", make_it="make pretrain METHOD=byol"
    )


@pytest.mark.parametrize("share", [0.0, 1e-7, 1e-5, 0.01, 0.5, 0.9, 0.999, 0.9999999])
def test_a_truncated_file_is_refused(tmp_path, good, share):
    content = good.read_bytes()
    path = tmp_path / "cut.pth"
    path.write_bytes(content[: int(len(content) * share)])
    assert "make it again with `make x`" in refusal(path, make_it="make x")


def damaged(kind: str, path: Path) -> None:
    if kind == "text":
        path.write_text("epoch 1\nepoch 2\n")
    elif kind == "picture":
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    elif kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("readme.txt", "no torch file")
    elif kind == "pickled list":
        path.write_bytes(pickle.dumps([1, 2, 3]))
    else:
        wrong = {
            "list": [torch.zeros(2)],
            "tensor": torch.zeros(2),
            "empty dict": {},
            "numbered tensors": {1: torch.zeros(2)},
            "no tensors": {"state_dict": {"a": 1}, "meta": META},
            "only metadata": {"meta": META},
            "state dict is a list": {"state_dict": [torch.zeros(2)]},
            "only a classifier": {"fc.weight": torch.zeros(2, 2), "fc.bias": torch.zeros(2)},
        }
        torch.save(wrong[kind], path)


@pytest.mark.parametrize(
    "kind",
    (
        "text|picture|zip|pickled list|list|tensor|empty dict|numbered tensors|no tensors|only metadata|"
        "state dict is a list|only a classifier"
    ).split("|"),
)
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, kind):
    damaged(kind, tmp_path / "a.pth")
    assert "make it again with `make pretrain`" in refusal(tmp_path / "a.pth")


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_are_refused_in_one_line(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("any") / "a.pth"
    path.write_bytes(content)
    assert f"{path} " in (line := refusal(path))
    assert "; " in line  # what is wrong, and the remedy


def flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 0x10]) + content[at + 1 :]


@pytest.mark.parametrize("what", ["conv1.weight", "layer4.1.bn2.running_var"])
def test_one_flipped_bit_of_a_tensor_is_refused(tmp_path, good, tensors, what):
    content = good.read_bytes()
    path = tmp_path / "flipped.pth"
    path.write_bytes(flipped(content, content.index(tensors[what].numpy().tobytes()) + 5))
    torch.load(path, weights_only=True)  # torch does not notice
    assert re.search(r"is damaged: entry '\S+/data/\d+' does not fit its checksum; make it again", refusal(path))


def test_a_flipped_bit_anywhere_is_found_or_changes_nothing(tmp_path, tensors):
    path, few = tmp_path / "a.pth", {"conv1.weight": tensors["conv1.weight"][:1]}
    save_checkpoint(path, few, META)
    content, found = path.read_bytes(), 0
    for at in range(0, len(content), 37):
        path.write_bytes(flipped(content, at))
        if damaged_entry(path) is not None:
            found += 1
            continue
        try:
            loaded = torch.load(path, weights_only=True)
        except Exception:  # torch notices what is wrong with the zip itself
            continue
        assert same(loaded["state_dict"], few)
        assert loaded["meta"] == META
    assert found > 588 / 37  # the tensor's bytes alone are 588


def test_a_file_saved_without_checksums_is_taken(tmp_path, tensors):
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        save_checkpoint(tmp_path / "a.pth", tensors, META)
    finally:
        torch.serialization.set_crc32_options(before)
    assert same(load_checkpoint(tmp_path / "a.pth").state_dict, tensors)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 1e300])
@pytest.mark.parametrize("key", ["layer1.0.conv1.weight", "layer4.1.bn2.running_mean"])
def test_weights_that_are_not_finite_are_refused(tmp_path, tensors, key, value):
    wrong = tensors[key].double().clone()
    wrong.view(-1)[3] = value  # 1e300 is finite until it becomes float32
    save_checkpoint(tmp_path / "a.pth", tensors | {key: wrong}, META)
    line = refusal(tmp_path / "a.pth", make_it="make x")
    assert line.endswith(f"are not finite numbers (first: {key}): its training diverged; make it again with `make x`")


def test_a_negative_variance_is_refused(tmp_path, tensors):
    wrong = tensors["bn1.running_var"].clone()
    wrong[0] = -1e-3
    save_checkpoint(tmp_path / "a.pth", tensors | {"bn1.running_var": wrong}, META)
    assert "bn1.running_var holds negative variances; make it again" in refusal(tmp_path / "a.pth")


@pytest.mark.parametrize(
    "kind",
    [torch.complex64, torch.int8, torch.int64, torch.bool, torch.float8_e4m3fn, "sparse", "meta"],
    ids=str,
)
def test_weights_that_are_not_plain_floating_point_numbers_are_refused(tmp_path, tensors, kind):
    weight = tensors["conv1.weight"]
    wrong = {
        "sparse": lambda: weight.to_sparse(),
        "meta": lambda: weight.to("meta"),
    }.get(kind, lambda: weight.to(kind))()
    torch.save({**tensors, "conv1.weight": wrong}, tmp_path / "a.pth")
    line = refusal(tmp_path / "a.pth")
    integers = kind in (torch.int8, torch.int64, torch.bool)  # the others cannot be read without torch's own classes
    assert re.search("conv1.weight holds .* not plain" if integers else "not plain numbers: conv1.weight", line)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_point_weights_are_taken(tmp_path, tensors, kind):
    state = {k: v.to(kind) if v.is_floating_point() else v.to(torch.int32) for k, v in tensors.items()}
    torch.save(state, tmp_path / "a.pth")
    network = load_checkpoint(tmp_path / "a.pth").backbone().state_dict()
    assert all(v.dtype == tensors[k].dtype for k, v in network.items())
    assert all(torch.equal(v, state[k].to(v.dtype)) for k, v in network.items())


class Payload:
    """What an attacker puts into a file: unpickling it creates the file `mark`."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (os.mkdir, (str(self.mark),))


@pytest.mark.parametrize("how", ["torch", "pickle", "legacy"])
def test_pickled_code_is_refused_and_does_not_run(tmp_path, tensors, how):
    path, mark = tmp_path / "a.pth", tmp_path / "it_ran"
    content = {"state_dict": tensors, "meta": Payload(mark)}
    if how == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "torch")
    assert re.search(r"carries code \(it would run posix.mkdir\) and is refused; .* do not trust", refusal(path))
    assert not mark.exists()
    if how != "pickle":
        torch.load(path, weights_only=False)  # the attack is a real one
        assert mark.exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: s.pop("layer4.1.bn2.bias"), "tensor layer4.1.bn2.bias is missing"),
        (lambda s: s.update({"extra": torch.zeros(1)}), "tensor extra is not part of it"),
        (lambda s: s.update({"conv1.weight": torch.zeros(64, 3, 3, 3)}), r"conv1.weight has shape (64, 3, 3, 3)"),
    ],
    ids=["missing", "extra", "shape"],
)
def test_tensors_that_are_not_the_architecture_s_are_named(tmp_path, tensors, change, says):
    state = dict(tensors)
    change(state)
    save_checkpoint(tmp_path / "a.pth", state, META)
    line = refusal(tmp_path / "a.pth")
    assert "is not the resnet18 that it says" in line
    assert says in line


def test_another_architecture_than_it_says_is_refused(tmp_path, tensors):
    save_checkpoint(tmp_path / "a.pth", tensors, META | {"arch": "resnet50"})
    assert "is not the resnet50 that it says" in refusal(tmp_path / "a.pth")


def test_an_unknown_architecture_is_refused(tmp_path, tensors):
    save_checkpoint(tmp_path / "a.pth", tensors, META | {"arch": "resnet19"})
    assert "unknown backbone 'resnet19'" in refusal(tmp_path / "a.pth")
    torch.save({"net.weight": torch.zeros(3)}, tmp_path / "b.pth")
    assert "no known architecture: no ResNet in its 1 tensors (first: net.weight)" in refusal(tmp_path / "b.pth")


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_state_dict_of_torchvision_is_taken_with_its_classifier(tmp_path, wrapped):
    state = torchvision.models.resnet18(num_classes=7).state_dict()
    torch.save({"state_dict": state} if wrapped else state, tmp_path / "theirs.pth")
    loaded = load_checkpoint(tmp_path / "theirs.pth")
    assert loaded.arch == "resnet18"
    assert loaded.meta["name"] == "theirs"
    assert same(loaded.state_dict, {k: v for k, v in state.items() if k[:3] != "fc."})


def authors_file(path, method="simsiam", change=None):
    """Save what `main_pretrain.py` of facebookresearch/simsiam and of the GSG authors saves, and return the encoder."""
    encoder = torchvision.models.resnet18()
    encoder.fc = nn.Sequential(nn.Linear(512, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8))
    modules = {"encoder": encoder, "predictor": nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4))}
    if method == "byol":
        modules["encoder_momentum"] = torchvision.models.resnet18()  # other weights, easily mistaken
    state = {f"module.{key}": value for key, value in nn.ModuleDict(modules).state_dict().items()}
    if change is not None:
        change(state)
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.1, momentum=0.9)
    content = {"epoch": 100, "arch": "resnet18", "state_dict": state, "optimizer": optimizer.state_dict()}
    torch.save(content, path)
    return {key: value for key, value in encoder.state_dict().items() if key[:3] != "fc."}


@pytest.mark.parametrize("method", ["simsiam", "byol"])
def test_the_authors_files_give_their_online_encoder(tmp_path, method):
    encoder = authors_file(tmp_path / "a.pth", method)
    loaded = load_checkpoint(tmp_path / "a.pth")
    assert loaded.arch == "resnet18"
    assert same(loaded.state_dict, encoder)
    start = "state_dict.module"
    others = {f"{start}.encoder.fc (not part of the backbone)", f"{start}.predictor (outside the network)"}
    if method == "byol":
        target = f"{start}.encoder_momentum"
        others.add(f"{target} (another network, KEY={target} takes it)")
    assert {part for part in loaded.left_out if not part.startswith("optimizer")} == others
    assert loaded.loaded.endswith(f"not loaded: {', '.join(loaded.left_out)}")


def test_the_target_network_never_stands_in_for_the_online_encoder(tmp_path):
    """It neither fills in for a missing tensor nor stands in for a missing encoder; KEY takes it all the same."""
    authors_file(tmp_path / "a.pth", "byol", lambda state: state.pop("module.encoder.layer4.0.bn1.bias"))
    line = refusal(tmp_path / "a.pth")
    assert "module.encoder (resnet18, 1 of 120 tensors are missing or not plain numbers: layer4.0.bn1.bias)" in line

    def only_target(state):
        for key in [key for key in state if key.startswith("module.encoder.")]:
            del state[key]

    authors_file(tmp_path / "b.pth", "byol", only_target)
    assert "choose by KEY= from: state_dict.module.encoder_momentum (resnet18)" in refusal(tmp_path / "b.pth")
    assert load_checkpoint(tmp_path / "b.pth", key="encoder_momentum").arch == "resnet18"


@pytest.mark.parametrize("name", ["resnext50_32x4d", "wide_resnet50_2"])
def test_other_resnets_of_torchvision_are_known_by_their_tensors(tmp_path, name):
    network = torchvision.models.get_model(name)
    torch.save(network.state_dict(), tmp_path / "a.pth")
    loaded = load_checkpoint(tmp_path / "a.pth")
    assert loaded.arch == name
    network.fc = nn.Identity()
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(loaded.backbone()(images), network.eval()(images))


def test_a_file_from_before_the_batch_counter_is_taken(tmp_path, tensors):
    torch.save({k: v for k, v in tensors.items() if "num_batches_tracked" not in k}, tmp_path / "old.pth")
    loaded = load_checkpoint(tmp_path / "old.pth")
    assert set(loaded.state_dict) == set(tensors)
    assert all(torch.equal(v, tensors[k]) for k, v in loaded.state_dict.items() if "num_batches" not in k)


def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path, tensors, monkeypatch):
    path = tmp_path / "ours.pth"
    save_checkpoint(path, tensors, META)
    real = Path.write_bytes

    def full(file, content):
        real(file, bytes(content[:1000]))
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(path, {k: v + 1 for k, v in tensors.items()}, META | {"name": "new"})
    assert same(load_checkpoint(path).state_dict, tensors)
    assert json.loads(path.with_suffix(".json").read_text()) == META
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ours.json", "ours.pth"]


def test_load_into_copies_every_tensor(good, tensors):
    network = build_backbone("resnet18")
    line = load_into(network, load_checkpoint(good))
    assert same(network.state_dict(), tensors)
    what = "(resnet18; layout: ours; prefix: state_dict.)"
    assert line == f"loaded {len(tensors)} of {len(tensors)} backbone tensors from {good} {what}; not loaded: none"


@pytest.mark.parametrize("arch", ["resnet34", "resnet18_cifar", "resnet50"])
def test_load_into_changes_nothing_when_one_tensor_misfits(good, arch):
    network = build_backbone(arch)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(UserError, match=rf"\(resnet18\) fits only \d+ of {len(before)} .* to be resnet18$"):
        load_into(network, load_checkpoint(good))
    assert same(network.state_dict(), before)
