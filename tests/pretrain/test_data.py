"""The images of pretraining and its evaluation: training and test folders agree in their classes."""

import pytest
import torch
import torchvision

from common.errors import UserError
from pretrain import knn, train
from pretrain.data import open_images
from tests.pretrain.tiny import TINY

DIFFERENT = r"^the class folders of \S+train and \S+val differ: only \S+train has a; give both the same class folders"


@pytest.fixture
def val_lacks_a(space):
    """The tiny folder, whose val/a holds nothing but what a system left there."""
    for path in (space / "data/val/a").iterdir():
        path.rename(path.with_name(f"._{path.name}"))
    return space


def test_a_test_split_without_a_class_is_refused_and_the_training_split_is_not(val_lacks_a):
    assert open_images("folder", "data", "train").classes == ["a", "b"]
    with pytest.raises(UserError, match=DIFFERENT):
        open_images("folder", "data", "test")
    (val_lacks_a / "data").rename(val_lacks_a / "imagenet")
    with pytest.raises(UserError, match=DIFFERENT):
        open_images("imagenet", ".", "test")


def test_any_data_set_with_one_label_per_image_serves(tmp_path):
    for name in ("cifar100", "flowers", "imagenet"):
        with pytest.raises(UserError, match=rf"is missing; run `make data DATASET={name} DATA={tmp_path}`"):
            open_images(name, tmp_path, "test")
    for name in ("voc2007", "coco"):
        with pytest.raises(
            UserError, match=f"^config: unknown data set '{name}'; known: aircraft, .*, digits, folder$"
        ):
            open_images(name, tmp_path, "test")


def test_both_splits_have_the_labels_of_the_same_classes(space):
    for split, count in (("train", 6), ("test", 3)):
        images = open_images("folder", "data", split)
        assert images.classes == ["a", "b"]
        assert images.labels.tolist() == [0] * count + [1] * count


def test_knn_refuses_them_before_it_extracts_features_and_leaves_no_record(val_lacks_a):
    torch.save(torchvision.models.resnet18().state_dict(), "a.pth")
    with pytest.raises(UserError, match=DIFFERENT):
        knn.main(["--data-root", "data", "--checkpoint", "a.pth", "--name", "mine"])
    assert not list(val_lacks_a.rglob("*.npy"))
    assert not list(val_lacks_a.glob("results/**/*.json"))


def test_the_monitor_refuses_them_before_the_first_step(val_lacks_a):
    with pytest.raises(UserError, match=DIFFERENT):
        train.main(["--data-root", "data", "--method", "simsiam", "--cfg-options", *TINY[1:-1]])
    logs = list((val_lacks_a / "runs").rglob("log.jsonl"))
    assert all(path.read_text() == "" for path in logs)
