"""The export at the end of pretraining: the online backbone and where it came from."""

import json
import zipfile
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


def is_exported(path: Path, *, config_sha256: str, seed: int) -> bool:
    """Return whether `path` is a whole export of exactly these settings and seed."""
    meta = path.with_suffix(".json")
    if not (meta.is_file() and zipfile.is_zipfile(path)):
        return False
    content = json.loads(meta.read_text())
    return (content.get("config_sha256"), content.get("seed")) == (config_sha256, seed)


def export_backbone(path: Path, backbone: "nn.Module", **meta: Any) -> None:
    """Write the backbone to `path` as `common.checkpoint` fixes it.

    `meta`: name, method, profile, arch, epochs, seed, dataset, config_sha256.
    """
    from common.backbones import feature_dim
    from common.checkpoint import SCHEMA, save_checkpoint
    from common.records import git_state

    meta |= {
        "schema": SCHEMA,
        "feature_dim": feature_dim(backbone),
        "git_commit": git_state()[0],
        "created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    save_checkpoint(path, backbone.state_dict(), meta)
