"""Pinning, and what goes to the device."""

import torch
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from torch.utils.data._utils.pin_memory import pin_memory

import common.mmlab.pipeline  # noqa: F401


def test_the_loaders_pinning_reaches_the_labels(monkeypatch) -> None:
    """There is no pinned memory without a GPU: the tensors that it would hold are counted."""
    pinned = []

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        pinned.append(tensor.clone())
        return pinned[-1]

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    sample = BaseDataElement(metainfo={"img_shape": (2, 3)})
    sample.gt_sem_seg = PixelData(data=torch.ones(1, 2, 3))
    sample.gt_instances = InstanceData(labels=torch.tensor([4, 5]), names=["a", "b"])
    batch = pin_memory({"inputs": [torch.zeros(3, 2, 3)], "data_samples": [sample]})
    [after] = batch["data_samples"]
    for tensor in (batch["inputs"][0], after.gt_sem_seg.data, after.gt_instances.labels):
        assert any(tensor is one for one in pinned)
    assert after.img_shape == (2, 3)
    assert after.gt_sem_seg.data.sum() == 6
    assert (after.gt_instances.labels.tolist(), after.gt_instances.names) == ([4, 5], ["a", "b"])
