"""Random views: seeds, data order, files that cannot be read."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from common.errors import UserError
from pretrain.views import Draw, EpochSampler, LabelledView, MultiView

CROP = [dict(type="RandomResizedCrop", size=16, scale=(0.2, 1.0))]


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        for split in ("train", "val"):
            (tmp_path / split / name).mkdir(parents=True)
            for k in range(6):
                pixels = rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / name / f"{k}.png")
    return dict(name="folder", root=str(tmp_path), split="train")


def test_a_visit_is_fixed_by_its_seed_alone(folder):
    data = MultiView(folder, CROP, num_views=4)
    torch.manual_seed(1)
    first = data[Draw(3, 99)]["inputs"]
    torch.manual_seed(2)
    state = torch.get_rng_state()
    again = data[Draw(3, 99)]["inputs"]
    assert torch.equal(state, torch.get_rng_state())  # the stream outside is not consumed
    assert len(first) == 4
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], data[Draw(3, 100)]["inputs"][0])


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_do_not_change_what_is_drawn(folder, workers):
    def draws(count):
        data = MultiView(folder, CROP)
        sampler = EpochSampler(data, seed=5)
        sampler.set_epoch(1)
        loader = DataLoader(data, 4, sampler=sampler, num_workers=count)
        return torch.cat([torch.cat(batch["inputs"]) for batch in loader])

    alone = draws(0)
    assert torch.equal(alone, draws(workers))
    assert len({view.numpy().tobytes() for view in alone}) == len(alone)  # no two draws alike


@settings(max_examples=30, deadline=None)
@given(size=st.integers(1, 40), world=st.integers(1, 5), seed=st.integers(0, 9), epoch=st.integers(0, 3))
def test_ranks_share_an_epoch_without_overlap(size, world, seed, epoch):
    seen, lengths = [], set()
    for rank in range(world):
        sampler = EpochSampler(range(size), seed=seed)
        sampler.rank, sampler.world_size = rank, world
        sampler.set_epoch(epoch)
        mine = list(sampler)
        lengths.add(len(mine))
        assert len(mine) == len(sampler)
        seen += mine
    places = [draw.place for draw in seen]
    assert len(lengths) == 1
    assert len(set(places)) == len(places) == size // world * world
    assert len({draw.seed for draw in seen}) == len(seen)


def test_epochs_differ_in_order_and_seeds():
    sampler = EpochSampler(range(50), seed=0)
    first = list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    assert [d.place for d in first] != [d.place for d in second]
    assert not {d.seed for d in first} & {d.seed for d in second}
    sampler.set_epoch(0)
    assert list(sampler) == first


def test_labelled_views_are_random_with_augmentation_and_fixed_without(folder):
    train = LabelledView(folder, CROP)
    test = LabelledView({**folder, "split": "test"}, size=16)
    assert not torch.equal(train[Draw(0, 1)]["inputs"], train[Draw(0, 2)]["inputs"])
    assert torch.equal(test[7]["inputs"], test[7]["inputs"])
    assert test[7]["labels"] == 1
    assert test[0]["inputs"].shape == (3, 16, 16)


def test_files_that_cannot_be_read_are_skipped_counted_and_named(folder, tmp_path, capfd):
    corrupt, missing = tmp_path / "train" / "a" / "2.png", tmp_path / "train" / "a" / "3.png"
    data = MultiView(folder, CROP, skip_corrupt=True)
    corrupt.write_bytes(corrupt.read_bytes()[:200])
    missing.unlink()
    visit, next_place = data[Draw(2, 7)], data[Draw(4, 7)]
    assert (visit["skipped"], next_place["skipped"]) == (2, 0)
    assert all(torch.equal(a, b) for a, b in zip(visit["inputs"], next_place["inputs"], strict=True))
    named = capfd.readouterr().err.splitlines()
    assert [line.split(" is ")[0] for line in named] == [f"skipping: image {path}" for path in (corrupt, missing)]
    assert "skipped" not in MultiView(folder, CROP)[Draw(0, 7)]


def test_skipping_goes_on_at_the_first_place_and_ends_when_nothing_can_be_read(folder, tmp_path):
    data = MultiView(folder, CROP, skip_corrupt=True)
    files = sorted((tmp_path / "train").rglob("*.png"))
    for file in files[1:]:
        file.write_bytes(b"")
    assert data[Draw(11, 0)]["skipped"] == 1
    assert data[Draw(1, 0)]["skipped"] == 11
    files[0].unlink()
    with pytest.raises(UserError, match=r"none of the 12 images of .*-train can be read"):
        data[Draw(5, 0)]


def test_a_missing_folder_says_what_to_place_there(tmp_path):
    with pytest.raises(UserError, match=r"nowhere/train is missing; place one folder per class"):
        MultiView(dict(name="folder", root=str(tmp_path / "nowhere"), split="train"), CROP)
    with pytest.raises(UserError, match=r"unknown data set 'imagnet'; known: aircraft, .*, imagenet, digits, folder"):
        MultiView(dict(name="imagnet", root=str(tmp_path), split="train"), CROP)
