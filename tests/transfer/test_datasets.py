import pickle
from hashlib import md5

import numpy as np
import pytest

from common import embedded
from common.cifar import cifar10
from common.cli import UserError
from transfer import datasets
from transfer.datasets import DATASETS, PAPER, Spec, fifth, known, load, read_voc


@pytest.mark.parametrize("n", [5, 9, 1437, 3680])
def test_a_fifth_is_upstreams_split_and_leaves_the_global_generator_alone(n):
    indices = list(range(n))
    np.random.seed(0)
    np.random.shuffle(indices)
    state = np.random.get_state()[1].copy()
    assert fifth(n).tolist() == indices[: int(np.floor(0.2 * n))]
    assert (np.random.get_state()[1] == state).all()


@pytest.fixture(scope="module")
def voc(tmp_path_factory):
    root = tmp_path_factory.mktemp("voc") / "demo"
    embedded.generate(root, scenes={"train": 12, "val": 6, "test": 8})
    return root / "VOCdevkit" / "VOC2007"


def test_voc_labels_are_the_flags(voc):
    found = read_voc(voc, "scenes", embedded.CLASSES)
    assert len(found.both.labels) == 18
    assert found.val.tolist() == list(range(12, 18))
    assert found.train.tolist() == list(range(12))
    assert found.test.labels.shape == (8, 10)
    flags = dict(line.split() for line in (voc / "ImageSets/Main/three_test.txt").read_text().splitlines())
    for path, row in zip(found.test.paths, found.test.labels, strict=True):
        assert row[3] == (flags[path[-10:-4]] == "1")
    assert found.both.image(0).size == (160, 160)


def test_difficult_only_is_negative(voc, tmp_path):
    main = tmp_path / "ImageSets" / "Main"
    main.mkdir(parents=True)
    for split in ("train", "val", "test"):
        (main / f"cat_{split}.txt").write_text("000001  1\n000002  0\n000003 -1\n")
    assert read_voc(tmp_path, "x", ["cat"]).test.labels.tolist() == [[1], [0], [0]]


def test_voc_errors_name_the_file(voc, tmp_path):
    with pytest.raises(UserError, match=r"nowhere is missing; place the official VOCdevkit"):
        read_voc(tmp_path / "nowhere", "voc2007", datasets.VOC_CLASSES)
    with pytest.raises(UserError, match=r"aeroplane_train\.txt is missing"):
        read_voc(voc, "voc2007", datasets.VOC_CLASSES)
    main = tmp_path / "ImageSets" / "Main"
    main.mkdir(parents=True)
    (main / "cat_train.txt").write_text("000001 yes\n")
    with pytest.raises(UserError, match=r"cat_train\.txt is no list"):
        read_voc(tmp_path, "x", ["cat"])
    (main / "cat_train.txt").write_text("000001 1\n")
    (main / "dog_train.txt").write_text("000002 1\n")
    with pytest.raises(UserError, match=r"dog_train\.txt lists other images"):
        read_voc(tmp_path, "x", ["cat", "dog"])


def test_voc2007_must_have_its_published_size(voc, monkeypatch):
    spec = Spec(lambda data: read_voc(voc, "voc2007", embedded.CLASSES), "mAP11", sizes=DATASETS["voc2007"].sizes)
    monkeypatch.setitem(DATASETS, "voc2007", spec)
    with pytest.raises(UserError, match=r"\(12, 6, 8\) images in train, val and test, not \(2501, 2510, 4952\)"):
        load("voc2007", voc)
    assert len(datasets.VOC_CLASSES) == 20


def test_train_and_test_with_other_classes(monkeypatch, voc):
    def read(data):
        found = read_voc(voc, "x", embedded.CLASSES)
        return datasets.Recognition(found.both, found.val, read_voc(voc, "x", embedded.CLASSES[:9]).test)

    monkeypatch.setitem(DATASETS, "x", Spec(read, "mAP11"))
    with pytest.raises(UserError, match="differ in the classes nine"):
        load("x", voc)


def test_profiles_know_their_data_sets():
    assert known("demo") == ["digits", "scenes"]
    assert all({"voc2007", "cifar10"} <= set(known(profile)) for profile in PAPER)


def test_cifar10_reads_official_files(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="cifar-10-batches-py is missing or incomplete"):
        cifar10(tmp_path, "test")
    from torchvision.datasets import CIFAR10

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    pixels = np.arange(2 * 3072, dtype=np.int64).astype(np.uint8).reshape(2, 3072)
    contents = {"test_batch": {"data": pixels, "labels": [3, 1]}, "batches.meta": {"label_names": list("abcd")}}
    sums = {}
    for name, content in contents.items():
        (folder / name).write_bytes(pickle.dumps(content))
        sums[name] = md5((folder / name).read_bytes(), usedforsecurity=False).hexdigest()
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "train_list", [])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": sums["batches.meta"]})
    images = cifar10(tmp_path, "test")
    assert images.labels.tolist() == [3, 1]
    assert images.classes == list("abcd")
    assert images.image(1).getpixel((0, 0)) == tuple(pixels[1, [0, 1024, 2048]])
    assert images.fingerprint == cifar10(tmp_path, "test").fingerprint
