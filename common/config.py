"""mmengine config files: loading, overriding, checking and hashing, without importing torch."""

import difflib
import math
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.config import config as parser_module

from common.errors import UserError
from common.files import sha256_of_text

RUNNER_KEYS = frozenset(
    """model work_dir train_dataloader val_dataloader test_dataloader train_cfg val_cfg test_cfg auto_scale_lr
    optim_wrapper param_scheduler val_evaluator test_evaluator default_hooks custom_hooks data_preprocessor
    load_from resume launcher env_cfg log_processor log_level visualizer default_scope randomness
    experiment_name compile find_unused_parameters sync_bn model_wrapper_cfg""".split()
)

# Keys that this project reads, and names that the base configs of mmdet and mmseg give to shared values.
OUR_KEYS = frozenset("evaluation dataset_name arch channels_last device_views".split())

SHARED_VALUES = frozenset(
    "data_root dataset_type norm_cfg crop_size classes metainfo scales resize train_pipeline test_pipeline".split()
)

# What the values of these keys must be, wherever in a config they stand: without it they would still give numbers.
_LEAST = {  # of whole numbers
    **dict.fromkeys(("batch_size", "base_batch_size", "max_epochs", "max_iters", "accumulate", "k"), 1),
    **dict.fromkeys(("num_views", "num_classes", "layers", "dim", "hidden_dim"), 1),
    **dict.fromkeys(("num_workers", "workers"), 0),
}

_NUMBERS: dict[str, tuple[str, Callable[[float], bool]]] = {
    "temperature": ("a number above 0", lambda value: value > 0),
    "lr": ("a number from 0 on", lambda value: value >= 0),
    "weight_decay": ("a number from 0 on", lambda value: value >= 0),
    "max_norm": ("a number above 0", lambda value: value > 0),
    "momentum": ("a number from 0 to 1", lambda value: 0 <= value <= 1),
}

_DATA = "GSG_DATA"  # configs write the data root as "{{$GSG_DATA:data}}"


def load_config(path: Path, *, data: Path, options: dict[str, Any] | None = None) -> Config:
    """Return the config file with `options` (dotted key -> value) merged in.

    Raises UserError for a file that is missing or does not parse, for a key that nothing reads, and for a value that
    makes no sense.
    """
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in path.parent.glob("*.py"))) or "none"
        raise UserError(f"config {path} does not exist; {path.parent} holds: {known}")
    os.environ[_DATA] = str(data)
    try:
        with _no_notices():
            config = Config.fromfile(path, format_python_code=False)  # yapf takes 0.2 s a time
        config.merge_from_dict(options or {})
    except Exception as error:  # a config is a program: it fails in any way
        raise UserError(f"config {path}: {type(error).__name__}: {_first_line(error)}") from None
    readable = RUNNER_KEYS | OUR_KEYS | SHARED_VALUES
    for key in config:
        if key not in readable:
            close = difflib.get_close_matches(key, readable, n=1)
            hint = f"did you mean '{close[0]}'?" if close else "remove it"
            raise UserError(f"config {path.name}: nothing reads the key '{key}'; {hint}")
    for key, value in _entries(config.to_dict()):
        if wanted := _wanted(key.rpartition(".")[2], value):
            raise UserError(f"config {path.name}: {key} is {value!r}; choose {wanted}")
    return config


def _entries(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every entry of nested dicts and lists that holds neither, with its dotted key."""
    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for name, item in items:
            yield from _entries(item, f"{key}.{name}" if key else str(name))
    else:
        yield key, value


def _wanted(name: str, value: Any) -> str | None:
    """Return in words what the value of a key must be, if it is not that."""
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if name in _LEAST and not (number and isinstance(value, int) and value >= _LEAST[name]):
        return f"a whole number from {_LEAST[name]} on"
    if name in _NUMBERS and value is not None and not (number and _NUMBERS[name][1](value)):
        return _NUMBERS[name][0]
    return None


def config_sha256(config: Config, *, data: Path) -> str:
    """Return the hash of the settings; where the data lies on this machine does not count."""
    return sha256_of_text(Config(_rooted(config.to_dict(), str(data)), format_python_code=False).pretty_text)


def _rooted(value: Any, root: str) -> Any:
    """Return the settings with every path under `root` as if the root were `data`."""
    if isinstance(value, dict):
        return {key: _rooted(item, root) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_rooted(item, root) for item in value)
    if isinstance(value, str) and (value == root or value.startswith(f"{root}/")):
        return f"data{value.removeprefix(root)}"
    return value


def mistake_in(error: Exception) -> str | None:
    """Return one line for an error that a wrong config entry caused while the Runner was built, else None."""
    text = _first_line(error)
    if isinstance(error, TypeError) and (
        found := re.search(r"(\w+)\.__init__\(\).*unexpected.*argument '(\w+)'", text)
    ):
        return f"config: {found[1]} has no option '{found[2]}'; correct its name"
    if isinstance(error, TypeError) and text == "None is not a callable object":
        # What mmengine's optimiser constructor says of a name that it does not find.
        return "config: optim_wrapper.optimizer is of an unknown `type`; correct it"
    if "No working C++ compiler" in text:
        return "torch.compile finds no working C++ compiler; install g++, or leave --compile out"
    if found := re.search(r"(\S+) does not have a deterministic implementation", text):
        return f"--deterministic: torch's {found[1]} has no deterministic form on this device; leave the option out"
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
