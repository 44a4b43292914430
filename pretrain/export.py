"""The export at the end of pretraining: the online backbone and where it came from."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import UserError
from common.files import is_whole_zip, set_aside, write_json
from common.names import OVERWRITE
from common.records import git_state

if TYPE_CHECKING:
    from torch import nn


FIRST = "export.json"  # in a run's work_dir: the metadata of its export


def is_exported(path: Path, *, config_sha256: str, seed: int) -> bool:
    """Return whether `path` is a whole export of exactly these settings and seed."""
    return is_whole_zip(path) and _made_of(path) == (config_sha256, seed)


def _made_of(path: Path) -> tuple[Any, Any] | None:
    """Return (config_sha256, seed) from the `.json` of the export at `path`; None if that is missing or damaged."""
    meta = _read(path.with_suffix(".json"))
    return (meta.get("config_sha256"), meta.get("seed")) if meta else None


def _read(path: Path) -> dict[str, Any]:
    """Return the metadata in a file; nothing if it is missing or damaged."""
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return meta if isinstance(meta, dict) else {}


def check_replaceable(path: Path, *, config_sha256: str, seed: int, overwrite: bool) -> None:
    """Raise UserError if `path` is an export of other settings, unless `overwrite`."""
    of = _made_of(path)
    if path.is_file() and of is not None and of != (config_sha256, seed) and not overwrite:
        raise UserError(
            f"{path} is an export of other settings; {OVERWRITE} to replace it (it is kept beside the new one), or "
            "choose other folders by --checkpoints and --runs; files of DATA_ROOT count as settings, too"
        )


def export_backbone(path: Path, backbone: "nn.Module", *, work_dir: Path, resumed: bool, **meta: Any) -> None:
    """Write the backbone to `path` in the format of `common.checkpoint`.

    `meta`: name, method, profile, arch, epochs, seed, dataset, config_sha256. An export of other settings at `path` is
    kept beside the new one. The run's `work_dir` keeps time and commit of its first export. So a finished run that is
    `resumed` because its export was lost writes the same bytes again, and records of the old file stay valid.
    """
    from common.backbones import feature_dim
    from common.checkpoint import SCHEMA, save_checkpoint

    meta |= {
        "schema": SCHEMA,
        "feature_dim": feature_dim(backbone),
        "git_commit": git_state()[0],
        "created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    first = _read(work_dir / FIRST) if resumed else {}
    if first.get("config_sha256") == meta["config_sha256"]:
        meta |= {key: first[key] for key in ("git_commit", "created") if key in first}
    write_json(work_dir / FIRST, meta)
    if path.is_file() and _made_of(path) != (meta["config_sha256"], meta["seed"]):
        print(f"replacing an export of other settings, which is kept: {set_aside(path)}", flush=True)
    save_checkpoint(path, backbone.state_dict(), meta)
