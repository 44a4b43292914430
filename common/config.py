"""mmengine config files: loading, overriding, checking and hashing, without importing torch."""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine.config import Config

from common.errors import UserError
from common.files import sha256_of_text
from common.keys import PLAIN, Register, check_keys

# What an option cannot change, and what does: names that config files give to values of several entries, which nothing
# reads once the file is loaded, and entries that the commands set.
SHARED_VALUES = {
    "data_root": "set train_dataloader.dataset.data_root and test_dataloader.dataset.data_root",
    "metainfo": "set train_dataloader.dataset.metainfo and test_dataloader.dataset.metainfo",
    "norm_cfg": "set model.backbone.norm_cfg and model.decode_head.norm_cfg",
    "scales": "set train_dataloader.batch_sampler.scales and test_dataloader.dataset.pipeline",
    "train_pipeline": "set train_dataloader.dataset.pipeline",
    "test_pipeline": "set test_dataloader.dataset.pipeline",
}
SET_BY_COMMANDS = {
    "experiment_name": "choose another folder by --runs",
    "launcher": "choose it by LAUNCHER=torchrun or slurm (--launcher)",
    "load_from": "choose other weights by CHECKPOINT=path NAME=label (--checkpoint, --name)",
    "randomness.seed": "choose it by SEED=n (--seed n)",
    "resume": "add RESUME=1 (--resume)",
    "work_dir": "choose another folder by --runs",
}

# What the values of these keys must be, wherever in a config they stand: without it they would still give numbers, or
# fail late.
_COUNTS = """accumulate base_batch_size batch_size channels crop_size dim end every fc_out_channels feat_channels first
    hidden_dim interval k layers max_epochs max_iters max_per_img num num_classes num_outs num_views out_channels
    prefetch_factor resize resource_limit size stride T_max total val_interval window_size"""
_FROM_0 = "begin min_size num_workers save_begin seg_pad_val timeout workers"
_LEAST = {**dict.fromkeys(_COUNTS.split(), 1), **dict.fromkeys(_FROM_0.split(), 0)}
_NUMBERS: dict[str, tuple[str, Callable[[float], bool]]] = {
    "temperature": ("a number above 0", lambda value: value > 0),
    "lr": ("a number from 0 to 1e38", lambda value: 0 <= value <= 1e38),
    "weight_decay": ("a number from 0 on", lambda value: value >= 0),
    "max_norm": ("a number above 0", lambda value: value > 0),
    "frozen_stages": ("a whole number from -1 to 4", range(-1, 5).__contains__),
    "max_keep_ckpts": ("a whole number from 1 on, or -1 for all", lambda value: value == -1 or value >= 1),
    **dict.fromkeys(
        ("lr_mult", "decay_mult", "norm_decay_mult", "bias_lr_mult", "bias_decay_mult", "eta_min"),
        ("a number from 0 on", lambda value: value >= 0),
    ),
    **dict.fromkeys(
        "momentum p prob pos_fraction score_thr iou_threshold pos_iou_thr neg_iou_thr dropout_ratio".split(),
        ("a number from 0 to 1", lambda value: 0 <= value <= 1),
    ),
}
_BOOLEANS = """channels_last chosen_only compile deterministic device_views drop_last enable find_unused_parameters
    last_affine last_bias nesterov persistent_workers pin_memory save_last shuffle skip_corrupt stop"""
_CHOICES: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(_BOOLEANS.split(), (True, False)),
    "compile.mode": ("default", "reduce-overhead", "max-autotune"),
    "dtype": (None, "float16", "bfloat16"),
    "interpolation": ("bilinear", "bicubic"),
    "log_level": ("DEBUG", "INFO", "WARNING", "ERROR"),
    "mp_start_method": ("fork", "forkserver", "spawn"),
    "priority": tuple("HIGHEST VERY_HIGH HIGH ABOVE_NORMAL NORMAL BELOW_NORMAL LOW VERY_LOW LOWEST".split()),
    "split": ("train", "test"),
    "sync_bn": (None, "torch"),
    "test_cfg.mode": ("whole", "slide"),
}
_DICTS = frozenset("auto_scale_lr clip_grad env_cfg mp_cfg paramwise_cfg randomness test_cfg val_cfg".split())
# Dicts for which None may stand.
_OPTIONAL = re.compile(r"default_hooks\.(checkpoint|logger)|.*\b(predictor|init_cfg|filter_cfg|clip_grad)").fullmatch


def load_config(
    path: Path,
    *,
    options: Mapping[str, Any] | None = None,
    register: Register = dict,
    set_by_command: Mapping[str, str] | None = None,
) -> Config:
    """Return the config file with `options` (dotted key -> value) merged in; its data paths start from the data root.

    `register` is called only if an option adds a key to an entry with a `type`. `set_by_command` adds to
    SET_BY_COMMANDS. Raises UserError for a file that is missing or does not parse, for a key that nothing reads, for an
    option without effect and for a value that makes no sense.
    """
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in path.parent.glob("*.py"))) or "none"
        raise UserError(f"config {path} does not exist; {path.parent} holds: {known}")
    try:
        config = Config.fromfile(path, format_python_code=False)  # yapf takes 0.2 s a time
    except Exception as error:  # a config is a program: it fails in any way
        raise UserError(f"config {path}: {type(error).__name__}: {_first_line(error)}") from None
    options = dict(options or {})
    _refuse_idle(path.name, config, options, set_by_command or {})
    for name in SHARED_VALUES.keys() & config.keys():
        config.pop(name)
    before = config.to_dict()
    try:
        config.merge_from_dict(options)
    except Exception as error:  # mmengine raises KeyError for the number of a list entry, many others for its kind
        said = str(error).strip("'\"") if isinstance(error, KeyError) else "an entry on its way is not a dict"
        raise UserError(f"config {path.name}: {', '.join(options)}: {said}; correct --cfg-options") from None
    after = config.to_dict()
    check_keys(config, name=path.name, register=register, known=before)
    _check_values(path.name, before, after)
    return config


def _refuse_idle(name: str, config: Config, options: dict[str, Any], set_by_command: Mapping[str, str]) -> None:
    """Raise UserError for an option that cannot change what the command does with `config`."""
    # Only mmengine's Runner reads more than the file says, and it knows no evaluation.
    unread = {"evaluation"} if "model" in config else set(PLAIN[""].split())
    remedies = {**dict.fromkeys(unread - config.keys(), "remove it"), **SHARED_VALUES, **SET_BY_COMMANDS}
    if any("_delete_" in key.split(".") for key in options):
        raise UserError(f"config {name}: _delete_ is for config files; set the entries themselves")
    for entry, remedy in {**remedies, **set_by_command}.items():
        for key in options:
            if f"{key}.".startswith(f"{entry}."):
                raise UserError(f"config {name}: the option {key} has no effect; {remedy}")


def _check_values(name: str, before: dict[str, Any], after: dict[str, Any]) -> None:
    """Raise UserError for a value of `after` that makes no sense, or is of another kind than in `before`."""
    for key, value in _entries(after):
        if wanted := _wanted(key, value):
            raise UserError(f"config {name}: {key} is {value!r}; choose {wanted}")
    for key, old, new in _changes_of_kind(before, after):
        example = f", as {old!r} is" if not isinstance(old, dict | list) else ""
        raise UserError(f"config {name}: {key} is {new!r}; choose {_kind(old)}{example}")


def _entries(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every entry of nested dicts and lists that holds neither, with its dotted key."""
    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for name, item in items:
            yield from _entries(item, f"{key}.{name}" if key else str(name))
    else:
        yield key, value


def _wanted(key: str, value: Any) -> str | None:
    """Return in words what the value of a key must be, if it is not that."""
    *before, name = [part for part in key.split(".") if not part.isdecimal()] or [key]
    if (name, value) == ("resize", None) or (name == "priority" and value in range(101)):
        return None
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if name in _LEAST and not (number and isinstance(value, int) and value >= _LEAST[name]):
        return f"a whole number from {_LEAST[name]} on"
    if name in _NUMBERS and not (number and _NUMBERS[name][1](value)):
        return _NUMBERS[name][0]
    if name in _DICTS and value is not None:
        return "a dict"
    choices = _CHOICES.get(".".join([*before[-1:], name])) or _CHOICES.get(name)
    if choices and not any(type(value) is type(choice) and value == choice for choice in choices):
        return " or ".join(map(str, choices))
    return None


def _changes_of_kind(old: Any, new: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield (dotted key, old, new) of every value of another kind than before. None is of any kind but a dict's."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in old.keys() & new.keys():
            yield from _changes_of_kind(old[name], new[name], f"{key}.{name}" if key else name)
    elif new is None:
        if isinstance(old, dict) and not _OPTIONAL(key):
            yield key, old, new
    elif _kind(old) not in (None, _kind(new)):
        # Many options take one number or several.
        if not (_kind(old) == "a number" and _kind(new) == "a list") and not key.endswith("resize"):
            yield key, old, new
    elif _kind(old) == "a list":
        for number, (one, other) in enumerate(zip(old, new, strict=False)):
            yield from _changes_of_kind(one, other, f"{key}.{number}")


def _kind(value: Any) -> str | None:
    """Return the kind of a value in words."""
    words = {"True or False": bool, "a dict": dict, "a word": str, "a number": int | float, "a list": list | tuple}
    return next((kind for kind, types in words.items() if isinstance(value, types)), None)


@contextmanager
def keeping(options: Iterable[str], config: Config) -> Iterator[None]:
    """Raise UserError for an option whose entry the block changes, which fits `config` to a data set of the user's."""
    before = config.to_dict()
    yield
    for key in options:
        if _at(before, key) != _at(config.to_dict(), key):
            raise UserError(f"config: the option {key} has no effect: DATA_ROOT (--data-root) sets it; leave it out")


def _at(value: Any, key: str) -> Any:
    """Return the entry with a dotted key of nested dicts and lists, None if there is none."""
    for name in key.split("."):
        inside = dict(enumerate(value)) if isinstance(value, list | tuple) else value
        value = inside.get(int(name) if name.isdecimal() else name) if isinstance(inside, dict) else None
    return value


def config_sha256(config: Config, *own: str) -> str:
    """Return the hash of the settings, before `join_data`: where the data lies on this machine does not count.

    Of a folder of the user's, `own` is `common.sources.own_data`'s hash: it is another data set when its files change.
    """
    return sha256_of_text(Config(config.to_dict(), format_python_code=False).pretty_text, *own)


def join_data(config: Config, data: Path) -> Config:
    """Return a copy of `config` whose data paths, which are relative to the data root, start with `data`.

    They are the values of `root` and `data_root`, and of an evaluator's `ann_file`; an absolute path stays as it is.
    """
    return Config(_joined(config.to_dict(), data), filename=config.filename, format_python_code=False)


def _joined(value: Any, data: Path) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(_joined(item, data) for item in value)
    if not isinstance(value, dict):
        return value
    paths = {"root", "data_root"} | ({"ann_file"} if "data_root" not in value else set())
    return {
        key: str(data / item) if key in paths and isinstance(item, str) else _joined(item, data)
        for key, item in value.items()
    }


def mistake_in(error: Exception) -> str | None:
    """Return one line for an error that a wrong config entry caused in the Runner, else None."""
    text = _first_line(error)
    if isinstance(error, TypeError) and (
        found := re.search(r"(\w+)\.__init__\(\).*unexpected.*argument '(\w+)'", text)
    ):
        return f"config: {found[1]} has no option '{found[2]}'; correct its name"
    if isinstance(error, TypeError) and text == "None is not a callable object":
        # What mmengine's optimiser constructor says of a name that it does not find.
        return "config: optim_wrapper.optimizer is of an unknown `type`; correct it"
    if isinstance(error, TypeError) and (found := re.match(r"clip_grad_\w+\(\) missing .* argument: '(\w+)'", text)):
        return f"config: optim_wrapper.clip_grad lacks '{found[1]}'; set it"
    if isinstance(error, ValueError) and re.match(r"\w+ option (could|should)", text):  # of torch's DataLoader
        return f"config: {text.rstrip('.')}; correct it"
    if "No working C++ compiler" in text:
        return "torch.compile finds no working C++ compiler; install g++, or leave --compile out"
    if found := re.search(r"(\S+) does not have a deterministic implementation", text):
        return f"--deterministic: torch's {found[1]} has no deterministic form on this device; leave the option out"
    if isinstance(error, KeyError) and "is not in the" in text:
        return f"config: {text.strip(chr(34))}".split(". Please")[0] + "; correct the `type`"
    return None


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
