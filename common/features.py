"""Frozen features: one pass over a data set gives an (N, D) float32 array, cached on disk.

kNN, the linear probe, the transfer suite and t-SNE all read it. A cached array is an .npy file followed by its SHA-256.
"""

import hashlib
import io
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import transforms
from tqdm import tqdm

from common.backbones import feature_dim
from common.checkpoint import Checkpoint
from common.errors import UserError
from common.files import alone, naming, publish, sha256_of_text
from common.images import IMAGENET_MEAN, IMAGENET_STD, LabelledImages

DIGEST = 32  # bytes of a SHA-256
FEW = 2000  # images: fewer are read in less time than it takes to start processes
BATCH = {"cpu": 64, "cuda": 256}  # images; it changes features only by rounding, at most 1e-5 of the largest
# Pixels that a CPU forwards at a time, eight images of 224x224, to the same features within that bound. glibc returns
# an activation of more than 32 MiB to the system, and the pages of the next one are faulted in again: with 64 images
# at a time that took a third of a ResNet-50's CPU time.
PIECE = 8 * 224 * 224
AMP = {"fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Features:
    """Pooled backbone outputs `x` (N, D) float32, memory-mapped copy-on-write, and the labels `y` of the images.

    `y` is (N,), or (N, K) of 0 and 1; `fingerprint` is the data set's.
    """

    x: np.ndarray
    y: np.ndarray
    fingerprint: str = ""


def extract_features(
    checkpoint: Checkpoint,
    images: LabelledImages,
    transform: Callable[[Image.Image], Any],
    cache: Path,
    *,
    batch_size: int | None = None,
    workers: int = 0,
    amp: str | None = None,
) -> Features:
    """Return the features of `images`, from the cache if the same pass was made before.

    The cache's key is the checkpoint's hash, the data set's fingerprint and files, the preprocessing (the transform's
    `repr`) and `amp`: a key of AMP, or None for float32 (see `forward`). Features are neither L2-normalised nor
    standardised (PROTOCOLS 4.4). Each image is forwarded once and its row is written at once, so memory does not grow
    with the data set. The array appears under its name only when it is complete. The next pass continues an
    interrupted one; of several processes that ask for the same array one makes it while the others wait. A
    `batch_size` of None means BATCH's for the device. An array that does not fit its checksum is named on stderr and
    made again. Raises UserError naming the checkpoint if its features are not finite.
    """
    state = getattr(images, "state", "")  # of files: also a change that leaves names and sizes as they were
    key = sha256_of_text(checkpoint.sha256, checkpoint.arch, images.fingerprint, state, repr(transform), amp or "")
    path = cache / f"{images.name}-{key[:16]}.npy"
    if not _is_intact(path, key):
        with alone(path):
            if not _is_intact(path, key):
                if path.exists():
                    why = "does not fit its checksum: it is damaged or from an earlier version, and is made again"
                    print(f"note: {path} {why}", file=sys.stderr, flush=True)
                _extract(checkpoint, images, transform, path, key, batch_size, workers, amp)
    return Features(np.load(path, mmap_mode="c"), images.labels, images.fingerprint)


def pick_device() -> torch.device:
    """Return the GPU when there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pick_workers(images: int) -> int:
    """Return how many processes should read so many images: none for few, else one per core, at most 16."""
    return 0 if images < FEW else min(16, cores())


def cores() -> int:
    """Return the number of cores that this process may use."""
    has_affinity = hasattr(os, "sched_getaffinity")  # not on macOS
    return len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1


def pick_devices() -> list[torch.device]:
    """Return every GPU that this process sees (CUDA_VISIBLE_DEVICES), else the CPU."""
    return [torch.device("cuda", k) for k in range(torch.cuda.device_count())] or [torch.device("cpu")]


def _extract(
    checkpoint: Checkpoint,
    images: LabelledImages,
    transform: Callable[[Image.Image], Any],
    path: Path,
    key: str,
    batch_size: int | None,
    workers: int,
    amp: str | None,
) -> None:
    networks = [(_network(checkpoint, device), device) for device in pick_devices()]
    batch_size = batch_size or BATCH[networks[0][1].type]
    width, total = feature_dim(networks[0][0]), len(images.labels)
    part = path.with_name(f".{path.stem}.part")
    sums = part.with_suffix(".sums")
    done, digest = _resume(part, sums, key, total, width, batch_size)
    batches = forward(networks, images, transform, range(done, total), batch_size=batch_size, workers=workers, amp=amp)
    bar = tqdm(total=total, initial=done, desc=f"features {images.name}", unit="img", leave=False)
    # Written as a stream, batch after batch: on a full disk a memory map would end the process by SIGBUS.
    with naming(path), bar, open(part, "ab") as stream, open(sums, "ab") as checksums:
        for rows in batches:
            check_lengths(rows, f"{checkpoint.path} ({images.name})", amp)
            content = rows.tobytes()
            stream.write(content)
            stream.flush()
            digest.update(content)
            done += len(rows)
            checksums.write(f"{done} {digest.hexdigest()}\n".encode())
            checksums.flush()
            bar.update(len(rows))
        stream.write(digest.digest())
    publish(part, path)
    sums.unlink(missing_ok=True)


def check_lengths(rows: np.ndarray, of: str, amp: str | None = None) -> None:
    """Raise UserError unless all features (n, D) have finite lengths, as distances and angles need; `of` whose."""
    with np.errstate(over="ignore"):
        lengths = np.square(rows).sum(1)
    if not np.isfinite(lengths).all():
        what = "too large" if np.isfinite(rows).all() else "not finite"
        cause = f"its training diverged, or {amp} overflowed; leave --amp out, or" if amp else "its training diverged;"
        raise UserError(f"the features of {of} are {what}: {cause} pretrain again")


def _network(checkpoint: Checkpoint, device: torch.device) -> nn.Module:
    # Channels-last is 1.4 times as fast on a CPU, and at least as fast on GPUs.
    return checkpoint.backbone().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]


@torch.inference_mode()
def forward(
    networks: Sequence[tuple[nn.Module, torch.device]],
    images: LabelledImages,
    transform: Callable[[Image.Image], Any],
    rows: Sequence[int],
    *,
    batch_size: int,
    workers: int = 0,
    amp: str | None = None,
    start_worker: Callable[[int], None] | None = None,
) -> Iterator[np.ndarray]:
    """Yield the features (n, D) float32 of the images `rows`, in order, from `networks` in eval mode.

    The devices take turns, one whole batch each. The host waits only for the batch that it yields, while a GPU computes
    the next one. Without `amp` everything is float32 by torch's settings: a GPU's convolutions use TF32 unless
    `torch.backends.cudnn.allow_tf32` is off. The caller's autocast has no effect.
    """
    on_gpu = networks[0][1].type == "cuda"
    transform, normalise = _as_bytes(transform)
    loader = DataLoader(
        Subset(Transformed(images, transform), rows),
        batch_size,
        num_workers=workers,
        pin_memory=on_gpu,
        worker_init_fn=start_worker,
    )
    prepare = [_preparation(device, normalise) for _, device in networks]
    streams = [torch.cuda.Stream(device) if on_gpu else None for _, device in networks]
    pending: deque[tuple[Tensor, torch.cuda.Event | None]] = deque()
    ahead = len(networks) if on_gpu else len(networks) - 1
    for number, (batch, _) in enumerate(loader):
        turn = number % len(networks)
        network, device = networks[turn]
        batch = _sent(batch, device, streams[turn])
        with torch.autocast(device.type, AMP.get(amp or ""), enabled=amp is not None):
            features = torch.cat([network(prepare[turn](piece)).float() for piece in batch.split(_piece(batch))])
        # A copy that does not block goes to pinned memory; the event marks its arrival.
        host = features.to("cpu", non_blocking=True)
        pending.append((host, torch.cuda.current_stream(device).record_event() if on_gpu else None))
        if len(pending) > ahead:
            yield _arrived(*pending.popleft())
    for host, event in pending:
        yield _arrived(host, event)


def _sent(batch: Tensor, device: torch.device, stream: "torch.cuda.Stream | None") -> Tensor:
    """Return the batch on the device; a GPU receives it in `stream` while it computes the one before."""
    if stream is None:
        return batch.to(device)
    with torch.cuda.stream(stream):
        there = batch.to(device, non_blocking=True)
    computing = torch.cuda.current_stream(device)
    computing.wait_stream(stream)
    there.record_stream(computing)  # its memory is not reused before that stream has read it
    return there


def _arrived(host: Tensor, event: torch.cuda.Event | None) -> np.ndarray:
    if event is not None:
        event.synchronize()
    return host.numpy()


def _piece(batch: Tensor) -> int:
    """Return how many images to forward at a time: all on a GPU, on a CPU few enough for memory to be reused."""
    return len(batch) if batch.is_cuda else max(1, 3 * PIECE // batch[0].numel())


def _as_bytes(transform: Callable[[Image.Image], Any]) -> tuple[Callable[[Image.Image], Any], Any]:
    """Split a transform that ends with ToTensor and Normalize into one to bytes, and the Normalize (or None).

    Bytes pass from the workers to the device in a quarter of the memory and are normalised there in batches. They stay
    in the image's order, (H, W, 3), which already is channels-last.
    """
    steps = transform.transforms if isinstance(transform, transforms.Compose) else []
    if [type(step) for step in steps[-2:]] != [transforms.ToTensor, transforms.Normalize]:
        return transform, None
    return transforms.Compose([*steps[:-2], _bytes]), steps[-1]


def _bytes(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image))


def _preparation(device: torch.device, normalise: Any) -> Callable[[Tensor], Tensor]:
    """Return the function that prepares a batch on `device` for a network, to the bits of ToTensor and Normalize."""
    if normalise is None:
        return lambda batch: batch.contiguous(memory_format=torch.channels_last)
    # As tensors on the device: torchvision would copy them for each batch, and dividing by a number rounds differently.
    values = (255.0, normalise.mean, normalise.std)
    most, mean, std = (torch.tensor(value, dtype=torch.float32, device=device).view(-1, 1, 1) for value in values)

    def prepare(batch: Tensor) -> Tensor:
        return batch.permute(0, 3, 1, 2).float().div_(most).sub_(mean).div_(std)

    return prepare


def _is_intact(path: Path, key: str) -> bool:
    """Return whether the array is there and ends with the SHA-256 of its key and its content."""
    try:
        left = path.stat().st_size - DIGEST
        with open(path, "rb") as stream:
            digest = hashlib.sha256(key.encode())
            while left > 0 and (chunk := stream.read(min(left, 2**20))):
                digest.update(chunk)
                left -= len(chunk)
            return left == 0 and stream.read() == digest.digest()
    except FileNotFoundError:
        return False


def _resume(part: Path, sums: Path, key: str, total: int, width: int, batch_size: int) -> tuple[int, Any]:
    """Prepare `part` for appending; return the number of rows that it holds and its running SHA-256.

    Only whole batches are kept, so that the borders of batches stay the same, and only as far as they fit `sums`, which
    has one line per batch: the number of rows so far and the running SHA-256. The file is an .npy whose header
    announces all rows.
    """
    content = io.BytesIO()
    kind = np.lib.format.dtype_to_descr(np.dtype(np.float32))
    np.lib.format.write_array_header_2_0(content, {"descr": kind, "fortran_order": False, "shape": (total, width)})
    header = content.getvalue()
    done, digest = 0, hashlib.sha256(key.encode() + header)
    lines = sums.read_bytes().splitlines() if sums.is_file() else []
    known = dict(line.rsplit(b" ", 1) for line in lines if b" " in line)
    if part.is_file():
        with open(part, "rb") as stream:
            intact = stream.read(len(header)) == header
            rows, running = 0, digest.copy()
            while intact and rows < total:
                batch = min(batch_size, total - rows)
                chunk = stream.read(4 * width * batch)
                rows += batch
                running.update(chunk)
                recorded = known.get(str(rows).encode())  # None where another batch size had no border
                intact = len(chunk) == 4 * width * batch and recorded in (None, running.hexdigest().encode())
                if not intact and recorded is not None:
                    print(f"note: {part} is damaged after image {done}; the rest is made again", file=sys.stderr)
                if intact and recorded is not None:
                    done, digest = rows, running.copy()
    if done:
        os.truncate(part, len(header) + 4 * width * done)
    else:
        part.write_bytes(header)
    sums.write_bytes(f"{done} {digest.hexdigest()}\n".encode())
    return done, digest


class Transformed(Dataset[tuple[Any, int]]):
    """The images of a `LabelledImages`, each through `transform`, with their indices."""

    def __init__(self, images: LabelledImages, transform: Callable[[Image.Image], Any]) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(self.images.image(index)), index


def evaluation_transform(
    size: int, *, resize: int | tuple[int, int] | None = None, interpolation: str = "bicubic"
) -> Callable[[Image.Image], Tensor]:
    """Return a transform: resize, crop the centre of side `size`, normalise by ImageNet's mean and deviation.

    It gives tensors (3, size, size). `resize` is the shorter side, or (height, width) at the cost of the aspect ratio,
    or None for the image's own scale; lengths are in pixels.
    """
    steps: list[Callable[[Any], Any]] = []
    if resize is not None:
        target = resize if isinstance(resize, int) else tuple(resize)
        steps.append(transforms.Resize(target, transforms.InterpolationMode(interpolation)))
    steps += [transforms.CenterCrop(size), transforms.ToTensor(), transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
    return transforms.Compose(steps)
