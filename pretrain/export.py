"""The export at the end of pretraining: the online backbone and where it came from."""

import json
import zipfile
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.cli import UserError
from common.files import set_aside
from common.records import OVERWRITE, git_state

if TYPE_CHECKING:
    from torch import nn


def is_exported(path: Path, *, config_sha256: str, seed: int) -> bool:
    """Return whether `path` is a whole export of exactly these settings and seed."""
    return zipfile.is_zipfile(path) and _made_of(path) == (config_sha256, seed)


def _made_of(path: Path) -> tuple[Any, Any] | None:
    """Return (config_sha256, seed) of the export at `path`, as its `.json` says; None if that is missing or damaged."""
    try:
        meta = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return (meta.get("config_sha256"), meta.get("seed")) if isinstance(meta, dict) else None


def check_replaceable(path: Path, *, config_sha256: str, seed: int, overwrite: bool) -> None:
    """Raise UserError if `path` is an export of other settings, unless it is to be overwritten."""
    of = _made_of(path)
    if path.is_file() and of is not None and of != (config_sha256, seed) and not overwrite:
        raise UserError(
            f"{path} is an export of other settings; {OVERWRITE} to replace it (it is kept beside the new one), or "
            "choose other folders by --checkpoints and --runs"
        )


def export_backbone(path: Path, backbone: "nn.Module", **meta: Any) -> None:
    """Write the backbone to `path` as `common.checkpoint` fixes it.

    `meta`: name, method, profile, arch, epochs, seed, dataset, config_sha256. An export of other settings in its
    place is kept beside it.
    """
    from common.backbones import feature_dim
    from common.checkpoint import SCHEMA, save_checkpoint

    meta |= {
        "schema": SCHEMA,
        "feature_dim": feature_dim(backbone),
        "git_commit": git_state()[0],
        "created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    if path.is_file() and _made_of(path) != (meta["config_sha256"], meta["seed"]):
        print(f"replacing an export of other settings, which is kept: {set_aside(path)}", flush=True)
    save_checkpoint(path, backbone.state_dict(), meta)
