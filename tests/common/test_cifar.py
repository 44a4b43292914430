"""CIFAR's official files: both versions, stand-ins of the same form, and files that do not fit."""

import os
import pickle

import numpy as np
import pytest

from common import cifar
from common.cifar import cifar10, cifar100
from common.errors import UserError

NAMES = "airplane automobile bird cat deer dog frog horse ship truck".split()
FILES = [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]


def batch(number, count=3):
    rng = np.random.default_rng(number)
    return rng.integers(0, 256, (count, 3072), np.uint8), rng.integers(0, 10, count).tolist()


def python_version(data, protocol=2, **changes):
    """Write a stand-in of the "python version"; changes replace the content of a file."""
    folder = data / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    contents = {"batches.meta": {"label_names": NAMES, "num_vis": 3072}}
    for number, name in enumerate(FILES):
        pixels, labels = batch(number)
        contents[name] = {"batch_label": name, "data": pixels, "labels": labels, "filenames": ["a.png"] * 3}
    for name, content in (contents | {k.replace("meta", "batches.meta"): v for k, v in changes.items()}).items():
        (folder / name).write_bytes(pickle.dumps(content, protocol))
    return folder


def binary_version(data):
    folder = data / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    (folder / "batches.meta.txt").write_text("\n".join(NAMES) + "\n\n")
    for number, name in enumerate(FILES):
        pixels, labels = batch(number)
        records = np.concatenate([np.array(labels, np.uint8)[:, None], pixels], 1)
        (folder / f"{name}.bin").write_bytes(records.tobytes())
    return folder


@pytest.mark.parametrize("version", [python_version, binary_version])
def test_both_versions_are_read(tmp_path, version):
    version(tmp_path)
    train, test = cifar10(tmp_path, "train"), cifar10(tmp_path, "test")
    assert (train.name, test.name) == ("cifar10-train", "cifar10-test")
    assert train.pixels.shape == (15, 32, 32, 3)
    assert train.classes == test.classes == NAMES
    pixels, labels = batch(5)
    assert test.labels.tolist() == labels
    assert test.labels.dtype == np.int64
    assert test.image(1).getpixel((0, 0)) == tuple(pixels[1, [0, 1024, 2048]])
    assert test.image(1).getpixel((5, 2)) == tuple(pixels[1, [69, 1093, 2117]])  # column 5 of row 2
    assert train.labels[3:6].tolist() == batch(1)[1]
    assert test.fingerprint == cifar10(tmp_path, "test").fingerprint != train.fingerprint


def test_the_python_version_goes_first(tmp_path):
    binary_version(tmp_path)
    folder = python_version(tmp_path, test_batch={"data": batch(9, 1)[0], "labels": [7]})
    assert cifar10(tmp_path, "test").labels.tolist() == [7]
    (folder / "test_batch").unlink()
    with pytest.raises(UserError, match=r"test_batch is missing; move .*cifar-10-batches-py away and run `make data"):
        cifar10(tmp_path, "test")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_any_pickle_protocol(tmp_path, protocol):
    labels = [np.int64(3), np.int64(1), np.int64(2)]
    python_version(tmp_path, protocol, test_batch={"data": batch(0)[0], "labels": labels})
    assert cifar10(tmp_path, "test").labels.tolist() == [3, 1, 2]


def test_a_python_2_pickle_as_the_official_files_are(tmp_path):
    """Text and array bytes are byte strings there, and the array's module is numpy.core.multiarray."""
    folder = python_version(tmp_path)
    pixels = bytes(range(256)) * 12
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
        b"(I1\n(I1\nI3072\ntcnumpy\ndtype\n(S'u1'\nI0\nI1\ntR(I3\nS'|'\nNNNI-1\nI-1\nI0\ntbI00\n"
        b"T" + len(pixels).to_bytes(4, "little") + pixels + b"tb"
    )
    (folder / "test_batch").write_bytes(b"\x80\x02}(U\x04data" + array + b"U\x06labels](K\x04eu.")
    images = cifar10(tmp_path, "test")
    assert images.labels.tolist() == [4]
    assert images.pixels[0, 0, :3, 0].tolist() == [0, 1, 2]


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": Evil()}, r"is not a pickle of arrays \(it asks for posix\.mkdir\)"),
        ([1], "holds no dictionary"),
        ({}, "holds no array 'data' of N x 3072 bytes"),
        ({"data": np.zeros((0, 3072), np.uint8), "labels": []}, "holds no array 'data'"),
        ({"data": np.zeros((3, 3071), np.uint8), "labels": [0, 0, 0]}, "holds no array 'data'"),
        ({"data": np.zeros((3, 3072)), "labels": [0, 0, 0]}, "holds no array 'data'"),
        ({"data": np.zeros((3, 3072), np.uint8)}, r"must have one label of 0 \.\.\. 9 per image"),
        ({"data": np.zeros((3, 3072), np.uint8), "labels": [0, 0]}, "must have one label"),
        ({"data": np.zeros((3, 3072), np.uint8), "labels": [0, 0, 10]}, "must have one label"),
        ({"data": np.zeros((3, 3072), np.uint8), "labels": [0, 0, -1]}, "must have one label"),
        ({"data": np.zeros((3, 3072), np.uint8), "labels": [0, 0, 0.5]}, "must have one label"),
        ({"data": np.zeros((3, 3072), np.uint8), "labels": [0, [0], 1]}, "must have one label"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_batch_that_does_not_fit_is_one_line(tmp_path, monkeypatch, change, message):
    monkeypatch.chdir(tmp_path)
    folder = python_version(tmp_path, 4, test_batch=change)
    with pytest.raises(UserError, match=message) as caught:
        cifar10(tmp_path, "test")
    line = str(caught.value)
    assert line.startswith(f"data set file {folder / 'test_batch'} ")
    assert line.endswith(f"; move {folder} away and run `make data DATASET=cifar10 DATA={tmp_path}`")
    assert "\n" not in line
    assert os.listdir() == ["cifar-10-batches-py"]


@pytest.mark.parametrize("names", [None, [], [1, 2], "abc"])
def test_names_that_do_not_fit(tmp_path, names):
    python_version(tmp_path, meta={"label_names": names})
    with pytest.raises(UserError, match=r"batches\.meta holds no list 'label_names' of class names"):
        cifar10(tmp_path, "test")


@pytest.mark.parametrize("length", [0, 1, 100, 5000])
def test_a_cut_pickle_is_a_user_s_error(tmp_path, length):
    path = python_version(tmp_path) / "test_batch"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(UserError, match="test_batch is not a pickle of arrays"):
        cifar10(tmp_path, "test")


@pytest.mark.parametrize("code", [b"r\xff\xff\xff\x7f", b"p2147483647\n"])
def test_a_pickle_cannot_reserve_memory(tmp_path, code):
    """Pickle keeps a table of as many objects as the highest number says: 16 GB here."""
    path = python_version(tmp_path) / "test_batch"
    path.write_bytes(b"\x80\x02}" + code + b".")
    with pytest.raises(UserError, match="it numbers more objects than it holds"):
        cifar10(tmp_path, "test")


def test_binary_files_that_do_not_fit(tmp_path):
    folder = binary_version(tmp_path)
    path = folder / "test_batch.bin"
    whole = path.read_bytes()
    for content, message in (
        (b"", r"test_batch\.bin of 0 bytes does not hold whole records of 3073"),
        (whole[:-1], r"of 9218 bytes does not hold whole records"),
        (b"\x0a" + whole[1:], r"must have one label of 0 \.\.\. 9 per image"),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match=message):
            cifar10(tmp_path, "test")
    path.unlink()
    with pytest.raises(UserError, match=r"test_batch\.bin is missing"):
        cifar10(tmp_path, "test")
    (folder / "batches.meta.txt").write_text("\n")
    with pytest.raises(UserError, match="holds no class names"):
        cifar10(tmp_path, "test")


def test_a_file_of_the_official_size_must_be_the_official_one(tmp_path, monkeypatch):
    folder = python_version(tmp_path)
    size = (folder / "test_batch").stat().st_size
    monkeypatch.setitem(cifar._CIFAR10.test, "test_batch", size + 1)
    cifar10(tmp_path, "test")
    monkeypatch.setitem(cifar._CIFAR10.test, "test_batch", size)
    with pytest.raises(
        UserError, match=r"test_batch is damaged: its MD5 is .*, not 40351d587109b95175f43aff81a1287e; "
    ):
        cifar10(tmp_path, "test")


@pytest.mark.parametrize(("read", "folder"), [(cifar10, "cifar-10-batches-py"), (cifar100, "cifar-100-python")])
def test_a_missing_folder(tmp_path, read, folder):
    with pytest.raises(
        UserError, match=f"^data set folder {tmp_path / folder} is missing; run `make data DATASET=cifar"
    ):
        read(tmp_path, "test")


def test_cifar100_takes_the_fine_labels(tmp_path):
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    names = [f"c{k}" for k in range(100)]
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": names, "coarse_label_names": ["x"]}))
    content = {"data": batch(0)[0], "fine_labels": [99, 0, 50], "coarse_labels": [0, 0, 0]}
    for name in ("train", "test"):
        (folder / name).write_bytes(pickle.dumps(content))
    images = cifar100(tmp_path, "train")
    assert images.name == "cifar100-train"
    assert images.labels.tolist() == [99, 0, 50]
    assert images.classes == names
