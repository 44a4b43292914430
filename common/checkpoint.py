"""The checkpoint that pretraining exports and every benchmark reads.

It is a file `{"state_dict": ..., "meta": ...}` of tensors and plain Python types: `torch.load(weights_only=True)`
reads it, and nothing in it can run code. Its keys are torchvision's ResNet names without `fc.`, so mmdet, mmseg, timm
and torchvision load it unchanged. `<name>.json` beside it repeats the metadata.
"""

import errno
import io
import pickle
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.backbones import architecture_of, build_backbone, shapes_of
from common.errors import UserError
from common.files import atomic_write, sha256_of_file, write_json

SCHEMA = 1
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
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
# The online encoder in files of facebookresearch/simsiam and of the GSG authors. The dot at the end excludes the target
# network of their BYOL, `module.encoder_momentum.` (PROTOCOLS 8).
PREFIX = "module.encoder."
# How keys of other projects' files start, to name the layout of a refused file (PROTOCOLS 8).
LAYOUTS = {
    "module.encoder_q.": "MoCo",
    "backbone.0.": "lightly (numbered layers)",
    "backbone.": "solo-learn, lightly or OpenMMLab (backbone.*)",
    "encoder.": "solo-learn (encoder.*)",
    "_feature_blocks.": "VISSL",
    "classy_state_dict": "VISSL",
    "model_state_dict": "VISSL, converted",
    "stem.": "detectron2 or a ResNet-C/D",
    "conv1.0.": "a ResNet-C/D (deep stem)",
    "module.": "DistributedDataParallel (module.*)",
    "model": "detectron2",
}


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint: it has every tensor of `arch` with its shape, and nothing else.

    `left_out` names the parts of the file that do not belong to the backbone.
    """

    path: Path
    sha256: str
    state_dict: dict[str, Tensor]
    meta: dict[str, Any]
    left_out: tuple[str, ...] = ()

    @property
    def arch(self) -> str:
        """The backbone's name, as `common.backbones.build_backbone` takes it."""
        return self.meta["arch"]

    @property
    def loaded(self) -> str:
        """A line for the log: the number of tensors loaded (all of them, or the file was refused), and what was not."""
        total = len(self.state_dict)
        others = ", ".join(self.left_out) or "none"
        return f"loaded {total} of {total} backbone tensors from {self.path}; not loaded: {others}"

    def backbone(self) -> nn.Module:
        """Return the frozen backbone in eval mode: (N, 3, H, W) float32 to (N, D) float32 features."""
        network = build_backbone(self.arch)
        network.load_state_dict(self.state_dict, strict=True)
        return network.eval().requires_grad_(False)


def save_checkpoint(path: Path, state_dict: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Write the checkpoint and its `.json`, each atomically. Raises ValueError for a wrong `meta`."""
    if set(meta) != set(META_KEYS):
        wrong = sorted(set(meta) ^ set(META_KEYS))
        raise ValueError(f"checkpoint metadata must have exactly {META_KEYS}; missing or extra: {wrong}")
    tensors = {key: value.detach().cpu().contiguous() for key, value in state_dict.items()}
    save_tensors(path, {"state_dict": tensors, "meta": meta})
    write_json(path.with_suffix(".json"), meta)


def save_tensors(path: Path, content: dict[str, Any]) -> None:
    """Write a file of torch's atomically. Raises the system's OSError where it cannot be written."""
    # Into memory first: on a full disk torch.save raises an "unexpected pos" that hides the system's error.
    stream = io.BytesIO()
    torch.save(content, stream)
    atomic_write(path, lambda file: file.write_bytes(stream.getbuffer()))


def load_checkpoint(path: Path, *, make_it: str = "make pretrain", sha256: str | None = None) -> Checkpoint:
    """Read and verify a checkpoint: ours, or any ResNet's state dict under torchvision's names.

    The names may be bare, or under `module.encoder.` as facebookresearch/simsiam and the GSG authors save them; the
    classifier or projector `fc` and everything outside the online encoder are left out. Only tensors are read
    (`weights_only=True`). Raises UserError when the file is missing (naming `make_it`, the command that makes it),
    truncated, damaged, not a checkpoint, in another layout, or holds pickled objects, other tensors than those of its
    architecture, or weights that are not finite. `sha256` is the file's, if it is known.
    """
    content = _read_tensors(path, make_it)
    meta, tensors = content.get("meta"), content.get("state_dict", content)
    left_out: tuple[str, ...] = ()
    if isinstance(tensors, dict) and all(isinstance(key, str) for key in tensors):
        tensors, left_out = _backbone_of(tensors)
    if not tensors or not _is_state_dict(tensors):
        layout = _layout_of(content)
        if layout is not None:
            raise UserError(f"{path} has the layout of {layout}: its contents {_ASKED}")
        raise UserError(
            f"{path} is not a checkpoint: it holds no state dict of tensors; make it again with `{make_it}`"
        )
    if isinstance(meta, dict) and "arch" in meta:
        arch = str(meta["arch"])
    else:
        known = architecture_of(tensors)
        if known is None:
            layout, first = _layout_of(tensors), next(iter(tensors))
            what = f"has the layout of {layout}" if layout is not None else "belongs to no known architecture"
            raise UserError(f"{path} {what}: its {len(tensors)} tensors (first: {first}) {_ASKED}")
        arch, meta = known, {"arch": known, "name": path.stem}
    _check_fit(path, tensors, arch)
    _check_values(path, tensors, make_it)
    return Checkpoint(path, sha256 or sha256_of_file(path), tensors, meta, left_out)


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


def _read_tensors(path: Path, make_it: str) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"checkpoint {path} is missing; make it with `{make_it}`")
    if (entry := damaged_entry(path)) is not None:
        raise UserError(
            f"checkpoint {path} is damaged: entry {entry!a} does not fit its checksum; make it again with `{make_it}`"
        )
    try:
        with warnings.catch_warnings(action="ignore"):  # about pickle protocols; real problems raise
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if _is_zip(path) or "unsupported global" in str(error).lower():
            raise UserError(
                f"checkpoint {path} carries pickled objects, which could run code, and is refused; "
                f"save its state dict alone, as tensors, or make it again with `{make_it}`"
            ) from None
        raise UserError(f"{path} is not a checkpoint; make it again with `{make_it}`") from None
    except Exception as error:  # a damaged stream may raise anything
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # a seek beyond a cut file's end
            raise
        raise UserError(f"checkpoint {path} is truncated or damaged; make it again with `{make_it}`") from None
    if not isinstance(content, dict):
        raise UserError(
            f"{path} is not a checkpoint: it holds a {type(content).__name__}; make it again with `{make_it}`"
        )
    return content


_ASKED = (
    "do not fit a ResNet of torchvision's names, bare or under `module.encoder.`; export the backbone under those names"
)


def _backbone_of(tensors: dict[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the tensors under torchvision's names, without prefix and `fc`, and the names of what was left out."""
    prefix = PREFIX if any(key.startswith(PREFIX) for key in tensors) else ""
    own = {}
    left_out: dict[str, None] = {}
    for key, value in tensors.items():
        name = key.removeprefix(prefix)
        if key.startswith(prefix) and not name.startswith("fc."):
            own[name] = value
        else:
            left_out[f"{prefix}fc" if key.startswith(prefix) else ".".join(key.split(".")[:2])] = None
    for key in [key for key in own if key.endswith(".running_mean")]:
        # Files older than PyTorch 0.4.1 lack this counter, which nothing reads in eval mode.
        own.setdefault(key.replace("running_mean", "num_batches_tracked"), torch.tensor(0))
    return own, tuple(left_out)


def _layout_of(content: dict[str, Any]) -> str | None:
    """Return the project in whose layout these keys are, or None if LAYOUTS does not know it."""
    for start, layout in LAYOUTS.items():
        if any(str(key).startswith(start) for key in content):
            return layout
    return None


def _is_state_dict(content: Any) -> bool:
    return isinstance(content, dict) and all(isinstance(k, str) and isinstance(t, Tensor) for k, t in content.items())


def damaged_entry(path: Path) -> str | None:
    """Return the first entry of a torch file (a zip) that does not fit its CRC, which torch.load does not compare.

    Return None if there is none. Legacy files have no CRC; those saved after `set_crc32_options(False)` have zeros,
    which are not compared. A zip that cannot be read is left to torch.load, which refuses it.
    """
    if not _is_zip(path):
        return None
    try:
        archive = zipfile.ZipFile(path)
    except Exception:  # a damaged table of contents may raise anything
        return None
    with archive:
        for entry in archive.infolist():
            try:
                with archive.open(entry) as stream:
                    while entry.CRC != 0 and stream.read(2**20):
                        pass
            except Exception:
                return entry.filename
    return None


def _is_zip(path: Path) -> bool:
    with open(path, "rb") as stream:
        return stream.read(4) == b"PK\x03\x04"


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


def _check_values(path: Path, tensors: dict[str, Tensor], make_it: str) -> None:
    for key, value in tensors.items():
        counter = key.endswith("num_batches_tracked")  # which nothing reads in eval mode
        plain = value.layout is torch.strided and value.device.type == "cpu"
        if not (plain and value.dtype in ((*FLOATS, *INTEGERS) if counter else FLOATS)):
            kind = str(value.dtype).removeprefix("torch.")
            raise UserError(f"{path}: {key} holds {kind}, not plain floating-point numbers; save it as float32")
        values = value.float()
        if not values.isfinite().all():
            raise UserError(
                f"the weights of {path} are not finite numbers (first: {key}): its training diverged; "
                f"make it again with `{make_it}`"
            )
        if key.endswith("running_var") and (values < 0).any():
            raise UserError(f"{path}: {key} holds negative variances; make it again with `{make_it}`")
