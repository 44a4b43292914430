"""Batches and images as the network sees them, and the check of the files."""

import json
import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from mmengine.config import ConfigDict
from mmengine.dataset import InfiniteSampler
from PIL import Image

from common.errors import UserError
from segmentation.preflight import check
from segmentation.train import register

register()

from segmentation.batches import ScaledBatches  # noqa: E402
from segmentation.datasets import ADE20K, PackScales, ResizeToScale, resized  # noqa: E402

SCALES = [(1000, 300), (1000, 375), (1000, 450), (1000, 525), (1000, 600)]
sides = st.integers(20, 3000)


@given(sides, sides, st.sampled_from(SCALES))
@example(512, 683, (1000, 300))
@example(200, 2000, (1000, 600))
def test_sizes_are_csails(height, width, scale) -> None:
    """Its loader: a scale that neither the shorter nor the longest side exceeds, cut down to whole pixels."""
    this_scale = min(scale[1] / min(height, width), scale[0] / max(height, width))
    expected = np.zeros(2, np.int32)
    expected[:] = height * this_scale, width * this_scale
    found = resized((height, width), scale)
    assert found == tuple(expected)
    assert max(found) <= 1000
    assert min(found) <= scale[1]


class Shapes(list):
    """A data set of image sizes alone: every third is tall."""

    def get_data_info(self, place: int) -> dict[str, int]:
        return self[place]


DATASET = Shapes({"height": 40 if k % 3 == 0 else 30, "width": 30} for k in range(50))


def batches(number: int, *, skip: int = 0, seed: int = 0, size: int = 2) -> list:
    source = ScaledBatches(InfiniteSampler(DATASET, seed=seed), size, by_shape=True, scales=SCALES)
    source.skip = skip
    stream = iter(source)
    return [next(stream) for _ in range(number)]


def test_a_batch_has_one_scale_and_one_orientation() -> None:
    drawn = batches(1000)
    for batch in drawn:
        assert len(batch) == 2
        assert len({visit.place.scale for visit in batch}) == 1
        assert len({visit.place.place % 3 == 0 for visit in batch}) == 1  # a square image is not tall
    scales = Counter(batch[0].place.scale for batch in drawn)
    assert set(scales) == set(SCALES)
    assert all(150 < count < 250 for count in scales.values()), scales
    seen = Counter(visit.place.place for batch in drawn for visit in batch)
    assert set(seen) == set(range(50))
    assert max(seen.values()) - min(seen.values()) <= 2


def test_a_resumed_run_sees_the_batches_that_an_uninterrupted_one_sees() -> None:
    assert batches(40)[15:] == batches(25, skip=15)
    assert batches(40) != batches(40, seed=1)


def test_training_images_are_resized_with_their_maps() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (60, 90, 3), dtype=np.uint8)
    labels = np.repeat(np.repeat(rng.integers(0, 9, (2, 3), dtype=np.uint8), 30, 0), 30, 1)
    found = ResizeToScale().transform({"img": image, "gt_seg_map": labels, "scale": (1000, 20)})
    assert found["img_shape"] == found["img"].shape[:2] == found["gt_seg_map"].shape == (20, 30)
    np.testing.assert_array_equal(found["img"], np.asarray(Image.fromarray(image).resize((30, 20), Image.BILINEAR)))
    np.testing.assert_array_equal(found["gt_seg_map"], labels[1::3, 1::3])


def test_the_test_image_is_resized_once_to_multiples_of_32_and_its_map_is_left_alone() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (50, 75, 3), dtype=np.uint8)
    labels = rng.integers(0, 9, (50, 75), dtype=np.uint8)
    pack = PackScales(scales=[(1000, 33), (60, 60)], size_divisor=32)
    packed = pack.transform({"img": image, "gt_seg_map": labels, "ori_shape": (50, 75)})
    # 33 x 49.5 and 40 x 60 pixels.
    assert [tuple(part.shape) for part in packed["inputs"]] == [(3, 64, 64), (3, 64, 64)]
    expected = np.asarray(Image.fromarray(image).resize((64, 64), Image.BILINEAR))
    np.testing.assert_array_equal(packed["inputs"][0].permute(1, 2, 0).numpy(), expected)
    np.testing.assert_array_equal(packed["data_samples"].gt_sem_seg.data[0].numpy(), labels)


@pytest.fixture
def settings(tmp_path: Path) -> ConfigDict:
    """Four images of 12 x 16 pixels in ADE20K's layout, with labels 0 to 150."""
    rng = np.random.default_rng(0)
    root = tmp_path / "ADEChallengeData2016"
    for kind in ("images", "annotations"):
        (root / kind / "training").mkdir(parents=True)
    for k in (1, 2, 3, 4):
        image = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        image.save(root / f"images/training/ADE_train_0000000{k}.jpg")
        labels = Image.fromarray(rng.integers(0, 151, (12, 16), dtype=np.uint8))
        labels.save(root / f"annotations/training/ADE_train_0000000{k}.png")
    return ConfigDict(
        data_root=str(root), data_prefix={"img_path": "images/training", "seg_map_path": "annotations/training"}
    )


def files(settings: ConfigDict, number: int) -> tuple[Path, Path]:
    root = Path(settings.data_root)
    stem = f"training/ADE_train_0000000{number}"
    return root / "images" / f"{stem}.jpg", root / "annotations" / f"{stem}.png"


def test_a_sound_data_set_is_checked_once(settings, tmp_path, capsys) -> None:
    sizes = {str(files(settings, k)[0]): (16, 12) for k in (1, 2, 3, 4)}
    assert check(settings, tmp_path / "checked") == sizes
    assert "checking ade20k-training: 100%" in capsys.readouterr().err
    assert check(settings, tmp_path / "checked") == sizes
    assert capsys.readouterr().err == ""
    os.utime(files(settings, 2)[1], (0, 0))
    check(settings, tmp_path / "checked")
    assert "checking" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", '{"name": "ade20k-training", "items": 4}', '{"name": "ade20k-tr'])
def test_what_a_check_left_damaged_or_in_another_form_is_made_again(settings, tmp_path, content) -> None:
    sizes = check(settings, tmp_path / "checked")
    [kept] = (tmp_path / "checked").glob("*.json")
    kept.write_text(content)
    assert check(settings, tmp_path / "checked") == sizes
    assert json.loads(kept.read_text())["found"] == [[16, 12]] * 4


def test_ade20k_reads_labels_as_classes_in_the_order_of_the_names(settings) -> None:
    from mmengine.registry import DefaultScope

    with DefaultScope.overwrite_default_scope("mmseg"):
        import common.mmlab.pipeline  # noqa: F401

        pipeline = [{"type": "LoadImage"}, {"type": "LoadClassMap"}]
        dataset = ADE20K(data_root=settings.data_root, data_prefix=dict(settings.data_prefix), pipeline=pipeline)
    assert [Path(dataset.get_data_info(k)["img_path"]) for k in range(4)] == [
        files(settings, k)[0] for k in (1, 2, 3, 4)
    ]
    raw = np.asarray(Image.open(files(settings, 3)[1])).astype(int)
    np.testing.assert_array_equal(dataset[2]["gt_seg_map"], np.where(raw == 0, 255, raw - 1))


def _rename(path: Path) -> None:
    path.rename(path.with_name(os.fsdecode(b"caf\xe9") + path.suffix))


def _replace(path: Path, labels: np.ndarray) -> None:
    Image.fromarray(labels).save(path)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


ZEROS = np.zeros((12, 16), np.uint8)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda image, label: [_rename(image), _rename(label)], r"the name of b'.*caf\\xe9.jpg' is not UTF-8; rename"),
        (lambda image, label: image.unlink(), r"annotation .*ADE_train_00000003\.png has no image .*00000003\.jpg"),
        (lambda image, label: label.unlink(), r"image .*ADE_train_00000003\.jpg has no annotation .*00000003\.png"),
        (lambda image, label: _truncate(image), r"image .*ADE_train_00000003\.jpg is truncated or corrupt"),
        (lambda image, label: image.write_text("no image"), r"image .*ADE_train_00000003\.jpg is truncated or corrupt"),
        (lambda image, label: _truncate(label), r"class map .*ADE_train_00000003\.png is truncated or corrupt"),
        (lambda image, label: _replace(label, ZEROS + 151), r"00000003\.png has label 151, beyond 150"),
        (lambda image, label: _replace(label, ZEROS + 255), r"00000003\.png has label 255, beyond 150"),
        (lambda image, label: _replace(label, ZEROS.T), r"00000003\.png is \(16, 12\), but its image is \(12, 16\)"),
        (
            lambda image, label: _replace(label, np.stack([ZEROS] * 3, 2)),
            r"00000003\.png does not hold 8-bit .* mode RGB",
        ),
        (
            lambda image, label: _replace(label, ZEROS.astype(np.uint16)),
            r"00000003\.png does not hold 8-bit .* I;16",
        ),
    ],
)
def test_what_is_wrong_is_named(settings, tmp_path, damage, message) -> None:
    check(settings, tmp_path / "checked")
    damage(*files(settings, 3))
    for _ in range(2):
        with pytest.raises(UserError, match=message):
            check(settings, tmp_path / "checked")


def test_an_empty_data_set_is_named(settings, tmp_path) -> None:
    shutil.rmtree(Path(settings.data_root) / "images/training")
    with pytest.raises(UserError, match=r"images/training holds no \.jpg images"):
        check(settings, tmp_path / "checked")


def test_classes_are_those_of_the_config(settings, tmp_path) -> None:
    settings.metainfo = {"classes": ["a", "b"]}
    with pytest.raises(UserError, match=r"has label \d+, beyond 2"):
        check(settings, tmp_path / "checked")
