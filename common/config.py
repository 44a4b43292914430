"""mmengine config files: loading, overriding, checking and hashing, without importing torch."""

import argparse
import difflib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine.config import Config, DictAction
from mmengine.config import config as parser_module

from common.cli import UserError
from common.files import sha256_of_text

RUNNER_KEYS = frozenset(
    """model work_dir train_dataloader val_dataloader test_dataloader train_cfg val_cfg test_cfg auto_scale_lr
    optim_wrapper param_scheduler val_evaluator test_evaluator default_hooks custom_hooks data_preprocessor
    load_from resume launcher env_cfg log_processor log_level visualizer default_scope randomness
    experiment_name compile find_unused_parameters""".split()
)
# Keys that this project reads, and names that the base configs of mmdet and mmseg give to shared values.
OUR_KEYS = frozenset("evaluation dataset_name arch".split())
SHARED_VALUES = frozenset(
    "data_root dataset_type norm_cfg crop_size classes metainfo scales resize train_pipeline test_pipeline".split()
)
_DATA = "GSG_DATA"  # configs write the data root as "{{$GSG_DATA:data}}"


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --cfg-options, --resume and --launcher, which every trainer has."""
    parser.add_argument(
        "--cfg-options", nargs="+", action=DictAction, default={}, metavar="KEY=VALUE", help="override config entries"
    )
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint of this run")
    parser.add_argument("--launcher", default="none", choices=("none", "pytorch", "slurm"), help="how ranks start")


def load_config(path: Path, *, data: Path, options: dict[str, Any] | None = None) -> Config:
    """Return the config file with `options` (dotted key -> value) merged in.

    Raises UserError for a file that is missing or does not parse, and for a key that nothing reads.
    """
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in path.parent.glob("*.py"))) or "none"
        raise UserError(f"config {path} does not exist; {path.parent} holds: {known}")
    os.environ[_DATA] = str(data)
    try:
        with _no_notices():
            config = Config.fromfile(path)
        config.merge_from_dict(options or {})
    except (SyntaxError, KeyError, TypeError, NameError) as error:
        raise UserError(f"config {path}: {type(error).__name__}: {_first_line(error)}") from None
    readable = RUNNER_KEYS | OUR_KEYS | SHARED_VALUES
    for key in config:
        if key not in readable:
            close = difflib.get_close_matches(key, readable, n=1)
            hint = f"did you mean '{close[0]}'?" if close else "remove it"
            raise UserError(f"config {path.name}: nothing reads the key '{key}'; {hint}")
    return config


def config_sha256(config: Config, *, data: Path) -> str:
    """Return the hash of the settings; where the data lies on this machine does not count."""
    text = config.pretty_text.replace(str(data), "data")
    return sha256_of_text(text)


def mistake_in(error: Exception) -> str | None:
    """Return one line for an error that a wrong config entry caused while the Runner was built, else None."""
    text = _first_line(error)
    if isinstance(error, TypeError) and (
        found := re.search(r"(\w+)\.__init__\(\).*unexpected.*argument '(\w+)'", text)
    ):
        return f"config: {found[1]} has no option '{found[2]}'; correct its name"
    if isinstance(error, KeyError) and "is not in the" in text:
        return f"config: {text.strip(chr(34))}".split(". Please")[0] + "; correct the `type`"
    return None


@contextmanager
def _no_notices() -> Iterator[None]:
    """Silence the parser: it announces each use of the variable, through a logger that imports torch."""
    announce = parser_module.print_log
    parser_module.print_log = lambda *args, **kwargs: None
    try:
        yield
    finally:
        parser_module.print_log = announce


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
