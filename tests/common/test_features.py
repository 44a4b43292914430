"""Frozen features and their cache."""

import errno
import io

import numpy as np
import pytest
import torch
from PIL import Image

from common import features
from common.backbones import build_backbone
from common.checkpoint import META_KEYS, Checkpoint, load_checkpoint, save_checkpoint
from common.cli import UserError
from common.data import evaluation_transform, image_folder
from common.features import extract_features

TRANSFORM = evaluation_transform(32)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("checkpoints") / "a.pth"
    meta = dict.fromkeys(META_KEYS, "") | {"arch": "resnet18"}
    save_checkpoint(path, build_backbone("resnet18").state_dict(), meta)
    return load_checkpoint(path)


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(5):
        path = tmp_path / "images" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(path)
    return tmp_path / "images"


@pytest.fixture
def forwards(monkeypatch):
    """Return a list that grows by the batch size of every forward pass."""
    sizes, build = [], Checkpoint.backbone

    def counted(self):
        network = build(self)
        network.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
        return network

    monkeypatch.setattr(Checkpoint, "backbone", counted)
    return sizes


def read(folder, name="images"):
    return image_folder(folder, name=name, hint="")


def test_features_are_those_of_a_direct_forward(checkpoint, folder, tmp_path, forwards):
    images = read(folder)
    found = extract_features(checkpoint, images, TRANSFORM, tmp_path / "cache", batch_size=2)
    assert forwards == [2, 2, 1]
    with torch.no_grad():
        batch = torch.stack([TRANSFORM(images.image(k)) for k in range(5)])
        expected = checkpoint.backbone()(batch).numpy()
    np.testing.assert_allclose(found.x, expected, rtol=1e-4, atol=1e-5)
    assert found.x.dtype == np.float32
    assert found.x.shape == (5, 512)
    assert isinstance(found.x, np.memmap)
    assert found.y.tolist() == [0, 0, 0, 1, 1]
    assert found.fingerprint == images.fingerprint


def test_a_second_pass_reads_the_cache(checkpoint, folder, tmp_path, forwards):
    cache = tmp_path / "cache"
    first = extract_features(checkpoint, read(folder), TRANSFORM, cache)
    del forwards[:]
    again = extract_features(checkpoint, read(folder), TRANSFORM, cache, batch_size=3)  # no part of the key
    assert forwards == []
    np.testing.assert_array_equal(first.x, again.x)
    assert len(list(cache.iterdir())) == 1


def test_writing_to_features_does_not_reach_the_cache(checkpoint, folder, tmp_path):
    first = extract_features(checkpoint, read(folder), TRANSFORM, tmp_path / "cache")
    before = first.x.copy()
    first.x[:] = 0
    again = extract_features(checkpoint, read(folder), TRANSFORM, tmp_path / "cache")
    np.testing.assert_array_equal(again.x, before)


@pytest.mark.parametrize("change", ["checkpoint", "transform", "images", "labels", "set"])
def test_another_key_makes_another_pass(checkpoint, folder, tmp_path, forwards, change):
    cache, transform, name = tmp_path / "cache", TRANSFORM, "images"
    extract_features(checkpoint, read(folder), transform, cache)
    if change == "checkpoint":
        checkpoint = Checkpoint(checkpoint.path, "another hash", checkpoint.state_dict, checkpoint.meta)
    elif change == "transform":
        transform = evaluation_transform(32, resize=40)
    elif change == "images":
        Image.new("RGB", (32, 32)).save(folder / "a" / "0.png")
    elif change == "labels":
        (folder / "a" / "0.png").rename(folder / "b" / "0.png")
    else:
        name = "others"
    extract_features(checkpoint, read(folder, name), transform, cache)
    assert forwards == [5, 5]
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("out of memory")], ids=repr)
def test_an_interrupted_pass_leaves_nothing(checkpoint, folder, tmp_path, monkeypatch, error):
    def stop(image):
        calls.append(image)
        if len(calls) == 4:  # in the second batch
            raise error
        return TRANSFORM(image)

    calls = []
    with pytest.raises(type(error)):
        extract_features(checkpoint, read(folder), stop, tmp_path / "cache", batch_size=2)
    assert len(calls) == 4
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_full_disk_is_an_oserror_and_leaves_nothing(checkpoint, folder, tmp_path, monkeypatch):
    class Full(io.FileIO):
        def write(self, content):
            if self.tell() > 3000:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(content)

    monkeypatch.setattr(features, "open", Full, raising=False)
    with pytest.raises(OSError, match="No space left"):
        extract_features(checkpoint, read(folder), TRANSFORM, tmp_path / "cache", batch_size=2)
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize("kind", ["corrupt", "missing"])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_is_named_and_leaves_nothing(checkpoint, folder, tmp_path, kind, workers):
    images, path = read(folder), folder / "b" / "3.png"
    if kind == "corrupt":
        path.write_bytes(path.read_bytes()[:-1000])
    else:
        path.unlink()
    with pytest.raises(UserError) as caught:
        extract_features(checkpoint, images, TRANSFORM, tmp_path / "cache", workers=workers)
    # A worker puts its traceback before the message; `cli.run` shows the last line.
    assert str(path) in str(caught.value).strip().splitlines()[-1]
    assert not (tmp_path / "cache").exists() or list((tmp_path / "cache").iterdir()) == []
