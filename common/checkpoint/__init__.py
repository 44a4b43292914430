"""The checkpoint that pretraining exports and every benchmark reads.

It is a file `{"state_dict": ..., "meta": ...}` of tensors and plain Python types: `torch.load(weights_only=True)`
reads it, and nothing in it can run code. Its keys are torchvision's ResNet names without `fc.`, so mmdet, mmseg, timm
and torchvision load it unchanged. `<name>.json` beside it repeats the metadata.
"""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.backbones import build_backbone, shapes_of
from common.checkpoint.archive import UnreadableError, flatten, read
from common.checkpoint.layouts import named_architecture, recognise
from common.errors import UserError
from common.files import atomic_write, require_file, sha256_of_network, write_json

SCHEMA = 1
SHOWN = 20  # parts of a file that were not taken
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
SOURCE = "source"  # metadata that only imported checkpoints have: where they come from
META_KEYS = (
    "schema",
    "name",
    "method",
    "profile",
    "arch",
    "feature_dim",
    "epochs",
    "seed",
    "dataset",
    "config_sha256",
    "git_commit",
    "created",
)


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint: it has every tensor of `arch` with its shape, and nothing else.

    `layout` names the project whose file it is, `prefix` is what stood before the tensors' names in it, and `left_out`
    names the parts of the file that were not taken, and why. `sha256` is `common.files.sha256_of_network`'s.
    """

    path: Path
    sha256: str
    state_dict: dict[str, Tensor]
    meta: dict[str, Any]
    left_out: tuple[str, ...] = ()
    layout: str = "ours"
    prefix: str = "state_dict."

    @property
    def arch(self) -> str:
        """The backbone's name, as `common.backbones.build_backbone` takes it."""
        return self.meta["arch"]

    @property
    def loaded(self) -> str:
        """A line for the log: the tensors loaded (all of them, or the file was refused), whence, and what was not."""
        total = len(self.state_dict)
        others = ", ".join(self.left_out[:SHOWN]) or "none"
        if len(self.left_out) > SHOWN:
            others += f" and {len(self.left_out) - SHOWN} more"
        what = f"{self.arch}; layout: {self.layout}; prefix: {self.prefix or 'none'}"
        return f"loaded {total} of {total} backbone tensors from {self.path} ({what}); not loaded: {others}"

    def backbone(self) -> nn.Module:
        """Return the frozen backbone in eval mode: (N, 3, H, W) float32 to (N, D) float32 features."""
        network = build_backbone(self.arch)
        network.load_state_dict(self.state_dict, strict=True)
        return network.eval().requires_grad_(False)


def save_checkpoint(path: Path, state_dict: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Write the checkpoint and its `.json`, each atomically. Raises ValueError for a wrong `meta`."""
    if wrong := sorted((set(meta) ^ set(META_KEYS)) - {SOURCE}):
        raise ValueError(f"checkpoint metadata must have exactly {META_KEYS}; missing or extra: {wrong}")
    tensors = {key: value.detach().cpu().contiguous() for key, value in state_dict.items()}
    content = _packed({"state_dict": tensors, "meta": meta})

    def write(file: Path) -> None:
        file.write_bytes(content)
        # Before the file takes its name: a kill between the two must not leave a file of unknown settings.
        write_json(path.with_suffix(".json"), meta)

    atomic_write(path, write)


def save_tensors(path: Path, content: dict[str, Any]) -> None:
    """Write a file of torch's atomically. Raises the system's OSError where it cannot be written."""
    packed = _packed(content)
    atomic_write(path, lambda file: file.write_bytes(packed))


def _packed(content: dict[str, Any]) -> memoryview:
    # In memory: on a full disk torch.save raises an "unexpected pos" that hides the system's error.
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getbuffer()


def load_checkpoint(
    path: Path, *, make_it: str | None = "make pretrain", sha256: str | None = None, key: str | None = None
) -> Checkpoint:
    """Read and verify a checkpoint: ours, or any file that holds a ResNet (`common.checkpoint.layouts`).

    Of several networks in a file, the one that the method's authors evaluate is taken, or the one that `key` names.
    No code of the file runs (`common.checkpoint.archive`). `make_it` is the command that makes the file, None if it is
    a user's. Raises UserError when the file is missing, truncated, damaged, hostile, holds no complete ResNet or
    several of which none is known to be the one, or weights that are not finite. `sha256` is that of the result, if it
    is known.
    """
    content, tensors = read_tensors(path, make_it)
    meta = content.get("meta") if isinstance(content, dict) else None
    sha256 = sha256 or sha256_of_network(path, key)
    ours = key is None and len(tensors) > 0
    if ours and isinstance(meta, dict) and "schema" in meta and isinstance(meta.get("arch"), str):
        own = {name.removeprefix("state_dict."): tensor for name, tensor in tensors.items()}
        found = Checkpoint(path, sha256, own, meta)
        _check_fit(path, own, found.arch)
    else:
        try:
            network, layout, left_out = recognise(tensors, key, arch=named_architecture(content))
        except UserError as error:
            raise UserError(f"{path} {error}; correct CHECKPOINT or KEY, or {_again(make_it)}") from None
        meta = {"arch": network.arch, "name": path.stem}
        found = Checkpoint(path, sha256, network.tensors, meta, left_out, layout, network.prefix)
    _check_values(path, found.state_dict, make_it)
    return found


def load_backbone(path: str | Path, *, key: str | None = None) -> nn.Module:
    """Return the frozen backbone of a checkpoint, in eval mode: (N, 3, H, W) float32 to (N, D) float32 features.

    Reads and refuses files as `load_checkpoint` does.
    """
    return load_checkpoint(Path(path), key=key).backbone()


def read_tensors(path: Path, make_it: str | None = "make pretrain") -> tuple[Any, dict[str, Tensor]]:
    """Return what a file holds, and all its tensors by dotted name. Raises UserError as `load_checkpoint` does."""
    require_file(path, "checkpoint", f"correct its path, or {_again(make_it)}")
    try:
        content = read(path)
        return content, flatten(content)
    except UnreadableError as error:
        raise UserError(f"checkpoint {path} {error}; {error.remedy or _again(make_it)}") from None


def _again(make_it: str | None) -> str:
    return f"make it again with `{make_it}`" if make_it else "fetch the file again from where it comes from"


def load_into(backbone: nn.Module, checkpoint: Checkpoint) -> str:
    """Copy the checkpoint into a backbone of another library (mmdet's, mmseg's ResNet), all or nothing.

    Returns a line on how many tensors were loaded. Raises UserError, and changes nothing, unless the two have the same
    tensors with the same shapes.
    """
    own = backbone.state_dict()
    missing = sorted(set(own) - set(checkpoint.state_dict))
    extra = sorted(set(checkpoint.state_dict) - set(own))
    wrong = [k for k, v in checkpoint.state_dict.items() if k in own and own[k].shape != v.shape]
    total = len(own)
    if missing or extra or wrong:
        fit = total - len(missing) - len(wrong)
        first = (missing + extra + wrong)[0]
        raise UserError(
            f"{checkpoint.path} ({checkpoint.arch}) fits only {fit} of {total} backbone tensors "
            f"(first misfit: {first}); choose the config's backbone to be {checkpoint.arch}"
        )
    backbone.load_state_dict(checkpoint.state_dict, strict=True)
    return checkpoint.loaded


def _check_fit(path: Path, tensors: dict[str, Tensor], arch: str) -> None:
    try:
        expected = shapes_of(arch)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    for key in sorted(set(expected) | set(tensors)):
        if key not in tensors:
            raise UserError(f"{path} is not the {arch} that it says: tensor {key} is missing; export it again")
        if key not in expected:
            raise UserError(f"{path} is not the {arch} that it says: tensor {key} is not part of it; export it again")
        if tuple(tensors[key].shape) != expected[key]:
            raise UserError(
                f"{path} is not the {arch} that it says: {key} has shape {tuple(tensors[key].shape)}, "
                f"not {expected[key]}; export it again"
            )


def _check_values(path: Path, tensors: dict[str, Tensor], make_it: str | None) -> None:
    for key, value in tensors.items():
        counter = key.endswith("num_batches_tracked")  # which nothing reads in eval mode
        plain = value.layout is torch.strided and value.device.type == "cpu"
        if not (plain and value.dtype in ((*FLOATS, *INTEGERS) if counter else FLOATS)):
            kind = str(value.dtype).removeprefix("torch.")
            raise UserError(f"{path}: {key} holds {kind}, not plain floating-point numbers; save it as float32")
        values = value.float()
        if not values.isfinite().all():
            raise UserError(
                f"the weights of {path} are not finite numbers (first: {key}): its training diverged; {_again(make_it)}"
            )
        if key.endswith("running_var") and (values < 0).any():
            raise UserError(f"{path}: {key} holds negative variances; {_again(make_it)}")
