"""mIoU, pixel accuracy and IoU a class against a plain count, pixel by pixel."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from segmentation.train import register
from tests.processes import in_two_processes

register()

from segmentation.metric import ClasswiseIoU  # noqa: E402

NAMES = ("wall", "sky", "tree", "road", "bed")


def measure(pairs, names=NAMES, size=None) -> dict:
    metric = ClasswiseIoU()
    metric.dataset_meta = {"classes": names}
    samples = [
        {key: {"data": torch.from_numpy(part.astype(np.int64))[None]} for key, part in zip(KEYS, pair, strict=True)}
        for pair in pairs
    ]
    metric.process({}, samples)
    return metric.evaluate(size or len(samples))


KEYS = ("gt_sem_seg", "pred_sem_seg")


def plain(pairs, names=NAMES) -> dict:
    """CSAIL's rule, stated pixel by pixel: 255 does not count; a class without a pixel has an IoU of 0."""
    common, either = dict.fromkeys(range(len(names)), 0), dict.fromkeys(range(len(names)), 0)
    right = labelled = 0
    for truth, predicted in pairs:
        for t, p in zip(truth.flatten().tolist(), predicted.flatten().tolist(), strict=True):
            if t == 255:
                continue
            labelled += 1
            right += t == p
            for k in {t, p}:
                either[k] += 1
                common[k] += t == p
    values = [100 * common[k] / either[k] if either[k] else None for k in common]
    return {
        "mIoU": sum(value or 0 for value in values) / len(names),
        "aAcc": 100 * right / labelled if labelled else 0.0,
        "IoU_per_class": dict(zip(names, values, strict=True)),
    }


@st.composite
def images(draw):
    pairs = []
    for _ in range(draw(st.integers(1, 3))):
        shape = draw(st.tuples(st.integers(1, 6), st.integers(1, 6)))
        truth = draw(arrays(np.uint8, shape, elements=st.sampled_from([0, 1, 2, 4, 255])))
        pairs.append((truth, draw(arrays(np.uint8, shape, elements=st.sampled_from([0, 1, 3])))))
    return pairs


@given(images(), st.just(NAMES))
@example([(np.full((2, 2), 255), np.zeros((2, 2), int))], NAMES)  # nothing is labelled
@example([(np.zeros((4, 4), int),) * 2], NAMES[:1])
@settings(max_examples=100, deadline=None)
def test_random_maps(pairs, names) -> None:
    """Sums over all images, not a mean of means."""
    found, expected = measure(pairs, names), plain(pairs, names)
    assert found["mIoU"] == pytest.approx(expected["mIoU"])
    assert found["aAcc"] == pytest.approx(expected["aAcc"])
    assert found["IoU_per_class"] == pytest.approx(expected["IoU_per_class"], abs=5e-5)


def test_worked_by_hand() -> None:
    truth = np.array([[0, 0, 1, 255], [0, 1, 1, 255]])
    predicted = np.array([[0, 1, 1, 2], [0, 1, 0, 1]])
    # wall: 2 of 4; sky: 2 of 4; the rest has no labelled pixel: tree is predicted where nothing is labelled.
    found = measure([(truth, predicted)])
    assert found["IoU_per_class"] == {"wall": 50.0, "sky": 50.0, "tree": None, "road": None, "bed": None}
    assert found["mIoU"] == pytest.approx((50 + 50) / 5)
    assert found["aAcc"] == pytest.approx(100 * 4 / 6)


def test_two_processes_that_share_no_folder_count_all_images(tmp_path) -> None:
    pairs = [(np.full((2, 3), k), np.arange(6).reshape(2, 3) % 5) for k in range(4)]
    assert in_two_processes(tmp_path, lambda rank: measure(pairs[rank::2], size=4)) == [measure(pairs)] * 2


def test_large_counts_are_exact() -> None:
    """float32, in which mmseg adds up, stops counting at 2 ** 24 pixels; ADE20K's validation set has 4e8."""
    metric = ClasswiseIoU()
    metric.dataset_meta = {"classes": ("wall",)}
    big, one = torch.tensor([2.0**24]), torch.tensor([1.0])
    zero = torch.zeros(1)
    found = metric.compute_metrics([(big, big, big, big), *[(zero, one, one, one)] * 64])
    assert found["aAcc"] == pytest.approx(100 * 2**24 / (2**24 + 64), abs=1e-9)
