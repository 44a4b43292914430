"""Train, val and test as transfer uses them, and lists of the user's own."""

import json

import numpy as np
import pytest

from common.errors import UserError
from common.sources import SOURCES, NotPublishedError
from tests.layouts import WRITERS
from transfer.datasets import check_labels, fifth, load, read_split


@pytest.mark.parametrize("n", [5, 9, 1437, 3680])
def test_a_fifth_is_upstreams_split_and_leaves_the_global_generator_alone(n):
    indices = list(range(n))
    np.random.seed(0)
    np.random.shuffle(indices)
    state = np.random.get_state()[1].copy()
    assert fifth(n).tolist() == indices[: int(np.floor(0.2 * n))]
    assert (np.random.get_state()[1] == state).all()


@pytest.mark.parametrize("name", WRITERS)
def test_val_is_predefined_or_a_fifth(name, tiny, tmp_path):
    copy = tiny(name)
    images = load(name, tmp_path)
    train, val, _ = copy.sizes
    assert (len(images.train), len(images.val), len(images.test.labels)) == copy.sizes
    assert images.both.labels.tolist() == copy.trainval_labels
    assert images.test.labels.tolist() == copy.test_labels
    assert sorted([*images.train, *images.val]) == list(range(train + val))
    predefined = list(range(train, train + val)) if len(SOURCES[name].splits) == 3 else fifth(train + val).tolist()
    assert images.val.tolist() == predefined
    assert [images.both.image(k).mode for k in range(train + val)] == ["RGB"] * (train + val)


def test_another_size_is_taken_only_when_asked_for(tiny, tmp_path, monkeypatch):
    tiny("pets")
    monkeypatch.undo()  # the published sizes
    with pytest.raises(NotPublishedError, match="data set pets has 3 classes, not 37: it is not the published one; "):
        load("pets", tmp_path)
    assert len(load("pets", tmp_path, any_size=True).test.labels) == 3


def test_a_split_of_the_user_s(tiny, tmp_path):
    tiny("caltech101")
    lists = {
        "train": [f"{c}/image_000{k}.jpg" for c in ("Faces", "accordion", "BACKGROUND_Google") for k in (2, 1)],
        "test": ["accordion/image_0003.jpg", "Faces/image_0007.jpg"],
    }
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(lists))
    images = load("caltech101", tmp_path, path)
    assert images.both.paths == lists["train"]
    assert images.test.paths == lists["test"]
    assert images.both.labels.tolist() == [1, 1, 2, 2, 0, 0]
    assert images.val.tolist() == fifth(6).tolist()
    path.write_text(json.dumps(lists | {"test": ["Faces/image_0008.jpg"]}))
    with pytest.raises(UserError, match=r"Faces/image_0008\.jpg of the test list is missing; restore it or correct"):
        load("caltech101", tmp_path, path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read (No such file or directory); correct the path"),
        ("{", "is not JSON"),
        ("[]", 'is not {"train": [paths], "test": [paths]}; correct it'),
        ('{"train": ["a"]}', "is not {"),
        ('{"train": ["a"], "test": []}', "is not {"),
        ('{"train": ["a"], "test": [1]}', "is not {"),
        ('{"train": ["a"], "test": "b"}', "is not {"),
        ('{"train": ["a", "b"], "test": ["b"]}', "has b in train and in test; remove it from one"),
    ],
)
def test_a_split_file_that_does_not_fit(tmp_path, content, message):
    path = tmp_path / "split.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError) as caught:
        read_split(path)
    assert str(caught.value).startswith(f"--split-file {path} {message}")


def test_check_labels_names_what_is_missing():
    classes = ["cat", "dog", "fox"]
    whole, lacking = np.array([0, 1, 2]), np.array([0, 2, 2])
    check_labels(classes, train=whole, val=lacking, both=whole, test=whole)
    with pytest.raises(UserError, match="train set has no image of dog"):
        check_labels(classes, train=lacking, val=whole, both=whole, test=whole)
    with pytest.raises(UserError, match="test set has no image of dog"):
        check_labels(classes, train=whole, val=whole, both=whole, test=lacking)
    many = np.array([[1, 0], [1, 1]])
    with pytest.raises(UserError, match="every image of the train set is cat"):
        check_labels(classes[:2], train=many, val=many, both=many, test=many)
    with pytest.raises(UserError, match="val set has no image of dog"):
        check_labels(classes[:2], train=1 - np.eye(2, dtype=int), val=many * [1, 0], both=many, test=many)
