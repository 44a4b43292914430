"""Segmentation on the device: steps through the trainer's own path, which wait for nothing."""

import json
from typing import Any

import pytest
import torch
from mmengine.device import get_device

from segmentation.train import main, register
from tests.dense import Place

register()

from segmentation.upernet import UPerNet  # noqa: E402

pytestmark = pytest.mark.gpu
WARM_UP = 2  # steps in which libraries and memory are set up
OPTIONS = (
    "train_cfg.max_iters=10",
    "train_dataloader.batch_size=4",  # all four scenes, so that losses compare
    "model.decode_head.channels=16",
    "default_hooks.progress.interval=1",
)


@pytest.mark.parametrize("precision", [(), ("--amp=bf16",)], ids=["float32", "bf16"])
def test_ten_steps_fall_and_wait_for_nothing(
    place: Place, device: torch.device, monkeypatch: pytest.MonkeyPatch, precision: tuple[str, ...]
) -> None:
    """With the batch in pinned memory; on CUDA an operation that waits raises an error."""
    if get_device() != device.type:
        pytest.skip(f"mmengine trains on {get_device()} here")
    original = UPerNet.train_step
    steps = []

    def train_step(self, data: dict[str, Any], optim_wrapper: Any) -> dict[str, torch.Tensor]:
        steps.append(data["data_samples"][0].gt_sem_seg.data.is_pinned() and data["inputs"][0].is_pinned())
        if device.type != "cuda" or len(steps) <= WARM_UP:
            return original(self, data, optim_wrapper)
        torch.cuda.set_sync_debug_mode("error")
        try:
            return original(self, data, optim_wrapper)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(UPerNet, "train_step", train_step)
    place.run(main, *precision, options=OPTIONS)
    assert steps == [device.type == "cuda"] * 10
    lines = (place.root / "runs/demo/segmentation-ade20k/tiny-seed0/log.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    assert len(losses) == 10
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])
