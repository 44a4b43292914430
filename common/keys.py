"""Which keys a config may have, at any depth: mmengine and the libraries on it ignore most that they do not know.

A dict with a `type` may have the parameters of what the type names; PLAIN says it for the others.
"""

import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from difflib import get_close_matches
from itertools import takewhile, zip_longest
from pkgutil import resolve_name
from typing import Any

from mmengine.config import Config
from mmengine.registry import Registry, root

from common.errors import UserError

# Place -> what a dict there may hold, besides the parameters of its `type`: names, or `module:function`, whose
# parameters are meant (and whose dict needs no `type`). A place is the end of a dotted key without the numbers of list
# entries; the longest that fits counts. `*` stands for any one name, as a value for any keys.
PLAIN: dict[str, str] = {
    # The top of a config: what mmengine's Runner takes, then what this project reads.
    "": "model work_dir train_dataloader val_dataloader test_dataloader train_cfg val_cfg test_cfg auto_scale_lr "
    "optim_wrapper param_scheduler val_evaluator test_evaluator default_hooks custom_hooks data_preprocessor load_from "
    "resume launcher env_cfg log_processor log_level visualizer default_scope randomness experiment_name compile "
    "find_unused_parameters sync_bn model_wrapper_cfg "
    "evaluation channels_last device_views",
    "augmentation": "p",
    "auto_scale_lr": "enable base_batch_size",
    "clip_grad": "type torch.nn.utils:clip_grad_norm_ torch.nn.utils:clip_grad_value_",
    "compile": "torch:compile",
    "compile.options": "*",
    "custom_hooks": "priority",
    "default_hooks": "runtime_info timer sampler_seed param_scheduler checkpoint logger progress collapse",
    "default_hooks.*": "priority",
    "env_cfg": "cudnn_benchmark mp_cfg dist_cfg resource_limit",
    "env_cfg.dist_cfg": "mmengine.dist:init_dist",
    "env_cfg.mp_cfg": "mp_start_method opencv_num_threads",
    "log_processor": "type mmengine.runner:LogProcessor",
    "optim_wrapper": "constructor paramwise_cfg",
    "param_scheduler": "convert_to_iter_based",
    "paramwise_cfg": "norm_decay_mult bias_lr_mult bias_decay_mult dwconv_decay_mult dcn_offset_lr_mult "
    "bypass_duplicate flat_decay_mult custom_keys",
    "paramwise_cfg.custom_keys": "*",
    "paramwise_cfg.custom_keys.*": "lr_mult decay_mult",
    "randomness": "seed deterministic diff_rank_seed",
    "test_cfg": "fp16",
    "test_dataloader": "torch.utils.data:DataLoader",
    "train_dataloader": "torch.utils.data:DataLoader",
    "val_cfg": "fp16",
    "val_dataloader": "torch.utils.data:DataLoader",
    # Pretraining and its evaluation
    "evaluation": "images size resize interpolation k temperature batch_size workers",
    "images": "name root split first labelled",
    "model.backbone": "common.backbones:build_backbone",
    "model.predictor": "hidden_dim",
    "model.projector": "layers dim last_affine last_bias",
    # mmdet and mmseg
    "data_prefix": "img img_path seg_map_path sub_data_root",
    "filter_cfg": "filter_empty_gt min_size",
    "init_cfg": "override",
    "init_cfg.override": "name mean std bias gain distribution",
    "metainfo": "classes palette",
    "model.test_cfg": "rpn rcnn mode crop_size stride",
    "model.test_cfg.rcnn": "score_thr nms max_per_img",
    "model.test_cfg.rpn": "nms_pre max_per_img nms min_bbox_size",
    "model.train_cfg": "rpn rpn_proposal rcnn",
    "model.train_cfg.rcnn": "assigner sampler pos_weight debug",
    "model.train_cfg.rpn": "assigner sampler allowed_border pos_weight debug",
    "model.train_cfg.rpn_proposal": "nms_pre max_per_img nms min_bbox_size",
    "nms": "class_agnostic split_thr",
    "norm_cfg": "requires_grad",
    "pipeline": "keep_ratio backend interpolation",  # RandomChoiceResize hands them on to Resize
    "upsample_cfg": "torch.nn.functional:interpolate",
}

# Registers what a config's types name, and returns those that are in no registry of mmengine's.
Register = Callable[[], Mapping[str, Any] | None]


def check_keys(config: Config, *, name: str, register: Register, known: dict[str, Any] | None = None) -> None:
    """Raise UserError for a key of `config` that nothing reads or a `type` that does not exist, with the nearest known.

    Where a `type` or a function decides, the keys of the config `known` are taken as sound: nothing is then registered
    or imported if `config` has no others. `name` is what the error calls the config.
    """
    entries = config.to_dict()
    for key, readable in _unread(entries, known, "", _Types(name, config.get("default_scope"), register)):
        *_, last = key.split(".")
        if near := _nearest(last, readable):
            near = key.removesuffix(last) + near
        else:  # perhaps it belongs elsewhere: of the keys most like it, the one that begins most like it
            others = sorted(_keys(entries), key=lambda other: _common(other, key))
            keys = {other.rpartition(".")[2]: other for other in others if not other.startswith(key)}
            near = keys.get(_nearest(last, keys, cutoff=0.8) or "")
        raise UserError(f"config {name}: nothing reads the key '{key}'; {_hint(near, 'remove it')}")


class _Types:
    """What the `type` of a config's dicts can name."""

    def __init__(self, config: str, scope: str | None, register: Register) -> None:
        self.config, self.scope, self._register = config, scope, register
        self._others: Mapping[str, Any] | None = None

    def found(self, word: str, key: str) -> list[Any]:
        """Return the classes and functions of this name. Raises UserError if there are none."""
        if self._others is None:
            from common.engine import progress, steps  # noqa: F401  (they register what every room's configs name)

            self._others = self._register() or {}
        if word in self._others:
            return [self._others[word]]
        found = [registry.module_dict[word] for registry in self._registries() if word in registry.module_dict]
        if not found and hasattr(ops := sys.modules.get("mmcv.ops"), word):
            found = [getattr(ops, word)]  # mmdet looks NMS and RoI layers up there
        if not found:
            near = _nearest(word, {*self._others, *(name for r in self._registries() for name in r.module_dict)})
            raise UserError(
                f"config {self.config}: {key}type is {word!r}, which does not exist; {_hint(near, 'correct it')}"
            )
        return found

    def _registries(self) -> Iterator[Registry]:
        for registry in vars(root).values():
            if isinstance(registry, Registry):
                registry.import_from_location()
                yield from (registry, *(r for scope, r in registry.children.items() if scope == self.scope))


def _unread(value: Any, known: Any, key: str, types: _Types) -> Iterator[tuple[str, set[str]]]:
    """Yield each unread dotted key of nested dicts and lists, and what is read in its place; `key` leads to `value`."""
    if isinstance(value, list | tuple):
        sound = list(known)[: len(value)] if isinstance(known, list | tuple) else []
        for number, (item, other) in enumerate(zip_longest(value, sound)):
            yield from _unread(item, other, f"{key}{number}.", types)
        return
    row = _row(key)
    if not isinstance(value, dict):
        return
    before = known if isinstance(known, dict) and known.get("type") == value.get("type") else {}
    cheap = row and "type" not in value and not any(":" in word for word in row)  # nothing need be imported
    if row != ["*"] and (new := [name for name in value if cheap or name not in before]):
        readable = _readable(value, row, key, types)
        yield from ((f"{key}{name}", readable) for name in new if name not in readable)
    for name, item in value.items():
        yield from _unread(item, before.get(name), f"{key}{name}.", types)


def _readable(value: dict[str, Any], row: list[str], key: str, types: _Types) -> set[str]:
    """Return the keys that a dict may have at a place with this row of PLAIN."""
    names = {word for word in row if ":" not in word}
    if "type" not in value or "type" in names:
        return names.union(*(_parameters(resolve_name(word)) for word in row if ":" in word))
    return names.union({"type"}, *map(_parameters, types.found(str(value["type"]), key)))


def _keys(value: Any, key: str = "") -> Iterator[str]:
    """Yield every dotted key of nested dicts and lists, but for list entries themselves."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    for name, item in items:
        if isinstance(name, str):
            yield f"{key}{name}"
        yield from _keys(item, f"{key}{name}.")


def _row(key: str) -> list[str]:
    """Return the words of PLAIN for a dotted key."""
    *before, last = [name for name in key.split(".")[:-1] if not name.isdecimal()] or [""]
    for start in range(len(before) + 1):
        for end in (last, "*"):
            if words := PLAIN.get(".".join([*before[start:], end])):
                return words.split()
    return []


def _parameters(target: Any) -> set[str]:
    """Return the names of the keyword arguments of a function or class; **kwargs go to the next base class."""
    calls = [target]
    if isinstance(target, type):
        calls = [vars(base)["__init__"] for base in target.__mro__ if "__init__" in vars(base)]
    names: set[str] = set()
    for call in calls:
        parameters = inspect.signature(call).parameters.values()
        names |= {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        if all(p.kind != p.VAR_KEYWORD for p in parameters):
            break
    return names - {"self"}


def _nearest(word: str, names: Iterable[str], cutoff: float = 0.6) -> str | None:
    return next(iter(get_close_matches(word, sorted(names), n=1, cutoff=cutoff)), None)


def _common(one: str, other: str) -> int:
    """Return how many names two dotted keys begin with alike."""
    alike = (a == b for a, b in zip(one.split("."), other.split("."), strict=False))
    return sum(1 for _ in takewhile(bool, alike))


def _hint(near: str | None, otherwise: str) -> str:
    return f"did you mean '{near}'?" if near else otherwise
