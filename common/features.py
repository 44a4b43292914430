"""Frozen features: one pass over a data set gives an (N, D) float32 array, cached on disk.

kNN, the linear probe, the transfer suite and t-SNE all read it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from tqdm import tqdm

from common.backbones import feature_dim
from common.checkpoint import Checkpoint
from common.data import LabelledImages, Transformed
from common.files import atomic_path, sha256_of_text


@dataclass(frozen=True)
class Features:
    """Pooled backbone outputs `x` (N, D) float32, memory-mapped copy-on-write, and the labels `y` of the images."""

    x: np.ndarray
    y: np.ndarray
    fingerprint: str


def extract_features(
    checkpoint: Checkpoint,
    images: LabelledImages,
    transform: Callable[[Image.Image], Any],
    cache: Path,
    *,
    batch_size: int = 64,
    workers: int = 0,
) -> Features:
    """Return the features of `images`, from the cache when the same pass was made before.

    The key is the checkpoint's hash, the data set's fingerprint and the preprocessing (the transform's
    `repr`). Features are neither L2-normalised nor standardised (PROTOCOLS 4.4). The array appears under
    its name only when it is complete, so an interrupted pass leaves nothing half done.
    """
    key = sha256_of_text(checkpoint.sha256, checkpoint.arch, images.fingerprint, repr(transform))
    path = cache / f"{images.name}-{key[:16]}.npy"
    if not path.is_file():
        with atomic_path(path) as temporary:
            _extract(checkpoint, images, transform, temporary, batch_size, workers)
    return Features(np.load(path, mmap_mode="c"), images.labels, images.fingerprint)


def pick_device() -> torch.device:
    """Return the GPU when there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@torch.inference_mode()
def _extract(
    checkpoint: Checkpoint,
    images: LabelledImages,
    transform: Callable[[Image.Image], Any],
    path: Path,
    batch_size: int,
    workers: int,
) -> None:
    device = pick_device()
    backbone = checkpoint.backbone().to(device)
    width = feature_dim(backbone)
    loader = DataLoader(
        Transformed(images, transform), batch_size, num_workers=workers, pin_memory=device.type == "cuda"
    )
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.float32)), "fortran_order": False}
    bar = tqdm(total=len(images.labels), desc=f"features {images.name}", unit="img", leave=False)
    # Written as a stream, batch after batch: on a full disk a memory map ends the process by SIGBUS.
    with bar, open(path, "wb") as stream:
        np.lib.format.write_array_header_2_0(stream, {**header, "shape": (len(images.labels), width)})
        for batch, _ in loader:
            stream.write(backbone(batch.to(device, non_blocking=True)).float().cpu().numpy().tobytes())
            bar.update(len(batch))
