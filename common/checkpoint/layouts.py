"""Where the ResNet is in anybody's tensors: by evidence, which keys complete one under one prefix (PROTOCOLS 8).

Projects differ in three ways. They name a network's tensors in one of a few forms (FORMS); they put other things, and
often a second network, beside it (LAYOUTS); and they wrap it in dicts and modules, whose names make its prefix.
"""

import re
import sys
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from common.backbones import architecture_of, shapes_of
from common.checkpoint.archive import DTYPES
from common.errors import UserError

_PREFIX, _TENSOR = r"(?P<prefix>|.*?\.)", r"\.(?P<tensor>weight|bias|running_mean|running_var|num_batches_tracked)"
_BLOCK = r"(?P<part>conv[123]|bn[123]|(?:downsample|shortcut)\.[01])"
_STEM = r"(?P<stem>conv1|bn1)"
_COMPILED = r"(?:\._orig_mod)?"  # of a part of the network


class Form(NamedTuple):
    """How a family of projects names a ResNet's tensors: what a key looks like, and what else would be part of it."""

    name: str
    key: re.Pattern[str]
    inside: re.Pattern[str]  # what begins so after the prefix belongs to the network, whether `key` knows it or not


FORMS = (
    Form(
        "torchvision's names",
        re.compile(
            rf"{_PREFIX}(?:layer(?P<stage>[1-4]){_COMPILED}\.(?P<block>\d+){_COMPILED}\.{_BLOCK}|{_STEM}){_TENSOR}"
        ),
        re.compile(r"layer[1-9]\.|conv\d\.|bn\d\."),
    ),
    Form(
        "numbered layers",
        re.compile(rf"{_PREFIX}(?P<number>\d+)(?:\.(?P<block>\d+)\.{_BLOCK}|\.(?P<stem>Conv|bn))?{_TENSOR}"),
        re.compile(r"(?P<number>\d+)\.\d+\."),
    ),
    Form(
        "detectron2's names",
        re.compile(
            rf"{_PREFIX}(?:res(?P<stage>[2-5])\.(?P<block>\d+)\.(?P<part>conv[123]|shortcut)|stem\.(?P<stem>conv1))"
            rf"(?P<norm>\.norm)?{_TENSOR}"
        ),
        re.compile(r"res[1-9]\.|stem\.conv"),
    ),
    Form(
        "Hugging Face transformers' names",
        re.compile(
            rf"{_PREFIX}(?:encoder\.stages\.(?P<stage>[0-3])\.layers\.(?P<block>\d+)\.(?P<part>layer\.[012]|shortcut)"
            rf"|(?P<stem>embedder\.embedder))\.(?:convolution|(?P<norm>normalization)){_TENSOR}"
        ),
        re.compile(r"encoder\.stages\.|embedder\."),
    ),
)


class Layout(NamedTuple):
    """A project's file. Prefixes are matched without the words of WRAPPERS, and without the dot at their end."""

    name: str
    network: str  # pattern of the prefix of the network that the authors evaluate
    others: str = "-"  # ... of the networks beside it, which they do not
    beside: str = ""  # pattern of the start of a key that must also be there


WRAPPERS = ("module", "_orig_mod")  # of DistributedDataParallel and torch.compile
COUNTERS = (".total_ops", ".total_params")  # of thop, which counts a network's operations
_IN = r"(state_dict\.|model\.)?(module\.)?"
# The first that fits names the file and chooses its network. PROTOCOLS 8 has where each was read.
LAYOUTS = (
    Layout("OpenMMLab, averaged weights", r"state_dict(\.backbone)?", r"ema_state_dict(\.backbone)?", r"ema_.*\.steps"),
    Layout("MoCo v1, MoCo v2 or PCL", _IN + "encoder_q", _IN + "encoder_k"),
    Layout("MoCo v3", _IN + "base_encoder", _IN + "momentum_encoder"),
    Layout("solo-learn, old", _IN + "encoder", _IN + "momentum_encoder", _IN + r"classifier\."),
    Layout("InfoMin or PIRL (PyContrast)", r"model\.encoder", r"model_ema\.encoder", r"contrast\."),
    Layout("SupContrast, InfoMin or PIRL", r"model\.encoder", r"model_ema\.encoder", r"model\.(module\.)?head"),
    Layout(
        "SimSiam or the GSG authors' BYOL", _IN + "encoder", _IN + "encoder_momentum", _IN + "(predictor|encoder_m)"
    ),
    Layout("DINO", _IN + r"teacher(\.backbone)?", _IN + r"student(\.backbone)?"),
    Layout("lightly's DINO", _IN + "backbone", _IN + "student_backbone", _IN + "student_projection_head"),
    Layout("lightly's DINO", _IN + "teacher_backbone", _IN + "student_backbone"),
    Layout("solo-learn", _IN + "backbone", _IN + "momentum_backbone", _IN + r"classifier\.weight"),
    Layout("lightly", _IN + "backbone", _IN + "(backbone_momentum|teacher_backbone)", _IN + "projection_head"),
    Layout(
        "OpenMMLab or OpenSelfSup",
        _IN + "backbone",
        _IN + r"(encoder_[qk]|online_net|target_net|momentum_encoder)(\.0)?",
        _IN + r"(neck|head|encoder_q\.1)\.",
    ),
    Layout("Barlow Twins or VICReg", r"model\.backbone", beside=r"model\.(module\.)?projector\."),
    Layout("backbone and projector", _IN + "backbone", _IN + r"target\.0", _IN + r"projector\."),
    Layout("OBoW", r"(.*\.)?feature_extractor\._feature_blocks", r".*feature_extractor_teacher\._feature_blocks"),
    Layout("VISSL", r"(?!.*moco_encoder)(.*\.)?_feature_blocks", r".*moco_encoder.*"),
    Layout("model_state_dict, as VISSL's converted files", "model_state_dict"),
    Layout("byol-pytorch", _IN + r"online_encoder\.net", _IN + r"(target_encoder\.)?net"),
    Layout("timm or torchvision, averaged weights", "state_dict_ema|model_ema", "state_dict|model"),
    Layout("SwAV or DeepCluster-v2", "(state_dict)?", beside=".*prototypes"),
)
# A prefix of such a word is a network that the authors do not evaluate: alone in a file, it needs KEY.
SECOND = re.compile(r".*(momentum|target|student|teacher|moco_encoder).*|(.*[._])?(k|key|t)([._].*)?")


@dataclass
class Network:
    """What is known of a network: under `prefix`, with the dot, its tensors by torchvision's names.

    `problem` says why it is not complete, if it is not. `taken` are its keys in the file.
    """

    prefix: str
    form: Form
    tensors: dict[str, Tensor] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)
    arch: str | None = None
    problem: str | None = None

    @property
    def key(self) -> str:
        """The word of KEY= that chooses it."""
        return self.prefix.removesuffix(".") or "."

    def __str__(self) -> str:
        what = [self.arch or "no known ResNet", *([self.problem] if self.problem else [])]
        return f"{self.key if self.prefix else 'bare names'} ({', '.join(what)})"


class Recognised(NamedTuple):
    """The network that is taken out of a file, the layout's name, and what is left with the reason."""

    network: Network
    layout: str
    left_out: tuple[str, ...]


def recognise(tensors: dict[str, Tensor], key: str | None = None, *, arch: str | None = None) -> Recognised:
    """Return the one network of a file to take: the one that the method's authors evaluate, or that `key` names.

    `tensors` are all of the file's, by dotted name; `arch` is what `named_architecture` says of it. Raises UserError, a
    sentence that begins with the file, when no network is complete, when several are and none is known to be the one,
    and when `key` names none or several.
    """
    found = candidates(tensors, arch)
    complete = [network for network in found if network.problem is None]
    listed = "; ".join(map(str, found[:6]))
    if key is not None:
        layout, network = "chosen by KEY", _named(key, found, listed)
    elif not found:
        raise UserError(f"belongs to no known architecture: no ResNet in its {len(tensors)} tensors{_first(tensors)}")
    elif not complete:
        raise UserError(f"holds no complete ResNet: {listed}")
    else:
        layout, chosen = _chosen(complete, tensors)
        if chosen is None:
            raise UserError(f"does not show which network its authors evaluate; choose by KEY= from: {listed}")
        network = chosen
    return Recognised(network, layout, tuple(_left_out(network, found, tensors)))


def named_architecture(content: Any) -> str | None:
    """Return the ResNet that a file names: in the config of a run of ours, or as `arch`, as timm and our exports do.

    It decides between networks of the same names and shapes alone: with a ReLU or without, with blurred pooling.
    """
    if not isinstance(content, dict):
        return None
    meta, arch = content.get("meta"), content.get("arch")
    config = meta.get("cfg") if isinstance(meta, dict) else None
    if isinstance(config, str) and (found := re.search(r"backbone=dict\(\s*name='(\w+)'", config)):
        arch = found[1]
    return arch if isinstance(arch, str) and "resnet" in arch else None


def candidates(tensors: dict[str, Tensor], arch: str | None = None) -> list[Network]:
    """Return what may be a network, the complete ones first: a stem and blocks under one prefix, in one form."""
    found: dict[tuple[str, Form], dict[tuple[str, ...], str]] = {}
    for key in tensors:
        for form in FORMS:
            if match := form.key.fullmatch(key):
                parts = {name: value or "" for name, value in match.groupdict().items()}
                prefix = parts.pop("prefix")
                found.setdefault((prefix, form), {})[_place(parts)] = key
    keys = sorted(tensors)
    made = (_network(prefix, form, places, tensors, keys, arch) for (prefix, form), places in found.items())
    networks = [network for network in made if network is not None]
    return sorted(networks, key=lambda network: (network.problem is not None, -len(network.tensors)))


def _place(parts: dict[str, str]) -> tuple[str, ...]:
    """Return (stage, block, layer, tensor) of a key's parts, in whatever form; stage and block are "" in a stem."""
    stem, stage = parts.get("stem", ""), parts.get("number") or parts.get("stage", "")
    layer = parts.get("part") or {"": "", "bn1": "bn1", "bn": "bn1"}.get(stem, "conv1")
    if "norm" in parts:  # detectron2 and Hugging Face keep a convolution and its normalisation together
        layer = re.sub(r"layer\.([012])", lambda found: f"conv{int(found[1]) + 1}", layer)
        if layer == "shortcut":
            layer = f"downsample.{int(bool(parts['norm']))}"
        elif parts["norm"]:
            layer = layer.replace("conv", "bn")
    return stage, parts.get("block", ""), layer.replace("shortcut", "downsample"), parts["tensor"]


def _network(
    prefix: str,
    form: Form,
    places: dict[tuple[str, ...], str],
    tensors: dict[str, Tensor],
    keys: list[str],
    arch: str | None,
) -> Network | None:
    """Return the network of these places, or None if they have not four stages. `keys` are the tensors', sorted."""
    stages = sorted({int(stage) for stage, block, _, _ in places if block})
    if len(stages) != 4 or stages[3] - stages[0] != 3:
        return None
    network = Network(prefix, form)
    for (stage, block, layer, tensor), key in places.items():
        if block:
            name = f"layer{int(stage) - stages[0] + 1}.{int(block)}.{layer}.{tensor}"
        elif stage in ("", "0", "1"):  # of numbered layers, 0 is the stem's convolution and 1 its normalisation
            name = f"{layer or ('conv1', 'bn1')[int(stage)]}.{tensor}"
        else:
            continue
        network.tensors[name] = tensors[key]
        network.taken.add(key)
    # Nothing reads this counter in eval mode. Files older than PyTorch 0.4.1 and frozen normalisation lack it, and
    # some converters give it an axis, or make a floating-point number of it, in which it may overflow.
    for name in [name for name in network.tensors if name.endswith(".running_mean")]:
        counter = name.replace("running_mean", "num_batches_tracked")
        count = network.tensors.get(counter, torch.tensor(0))
        plain = count.numel() == 1 and not count.is_floating_point()
        network.tensors[counter] = count.reshape(()) if plain else torch.tensor(0)
    shapes = {name: tuple(tensor.shape) for name, tensor in network.tensors.items()}
    network.arch = arch if _fits(arch, shapes) else architecture_of(shapes, cifar=_cifar(network, stages[0], tensors))
    network.problem = _problem(shapes, network.arch) or _foreign(network, keys, stages[3])
    stem = shapes.get("conv1.weight", ())[2:]
    # 1: the stem's layers are named within number 0.
    if form.name == "numbered layers" and not (stages[0] in (1, 4) or (stages[0] in (2, 3) and stem == (3, 3))):
        network.problem = f"its blocks begin at {stages[0]}, behind a stem that no ResNet has"
    return network


def _fits(arch: str | None, shapes: dict[str, tuple[int, ...]]) -> bool:
    try:
        return arch is not None and shapes_of(arch) == shapes
    except ValueError:  # nobody knows it
        return False


def _cifar(network: Network, first_stage: int, tensors: dict[str, Tensor]) -> str:
    """Return the ending of CIFAR for a network with a 3x3 stem: what its file shows of its ReLU and its padding."""
    if network.form.name == "numbered layers" and first_stage == 2:
        return "_cifar"  # blocks right after the normalisation: there is no ReLU
    beside = network.prefix.rpartition(".")[0].rpartition(".")[0]
    if network.form.name == "torchvision's names" and f"{beside}.classifier.weight".lstrip(".") in tensors:
        return "_cifar_pad2"  # solo-learn's
    return "_cifar_stemrelu"


def _foreign(network: Network, keys: list[str], last: int) -> str | None:
    """Return which of the file's keys names another part within the network, up to layer `last`; None if none does."""
    prefix, inside = network.prefix, network.form.inside
    for key in keys[bisect_left(keys, prefix) : bisect_left(keys, prefix + chr(sys.maxunicode))]:
        if key in network.taken or key.endswith(COUNTERS) or not (match := inside.match(key, len(prefix))):
            continue
        if int(match.groupdict().get("number", 0)) <= last:
            return f"{key} is not part of it"
    return None


def _problem(shapes: dict[str, tuple[int, ...]], arch: str | None) -> str | None:
    """Return why these shapes are not those of `arch`, or None if they are."""
    if arch is None:
        return "a number of blocks that none has"
    expected = shapes_of(arch)
    if missing := sorted(set(expected) - set(shapes)):
        return f"{len(missing)} of {len(expected)} tensors are missing or not plain numbers: {', '.join(missing[:3])}"
    for name, shape in shapes.items():
        if name not in expected:
            return f"{name} is not part of it"
        if shape != expected[name]:
            return f"{name} has shape {shape}, not {expected[name]}"
    return None


def _plain(prefix: str) -> str:
    return ".".join(word for word in prefix.split(".") if word and word not in WRAPPERS)


def _chosen(complete: list[Network], tensors: dict[str, Tensor]) -> tuple[str, Network | None]:
    """Return the layout's name and the network of these that its authors evaluate; None where that is not known."""
    for layout in LAYOUTS:
        wanted = [n for n in complete if re.fullmatch(layout.network, _plain(n.prefix))]
        if len(wanted) != 1 or not any(re.match(layout.beside, key) for key in tensors):
            continue
        (network,) = wanted
        if _others(network, complete, layout.others):
            return layout.name, network
    first = next((n for n in complete if not SECOND.fullmatch(_plain(n.prefix))), None)
    if first is not None and _others(first, complete, SECOND):
        return first.form.name, first
    return "", None


def _others(network: Network, complete: list[Network], known: str | re.Pattern[str]) -> bool:
    """Return whether the others of these are copies of the network, or of its architecture with a `known` prefix."""
    return all(
        _same(network, other) or (other.arch == network.arch and re.fullmatch(known, _plain(other.prefix)))
        for other in complete
        if other is not network
    )


def _same(one: Network, other: Network) -> bool:
    pairs = [(tensor, other.tensors.get(name)) for name, tensor in one.tensors.items()]
    kinds = DTYPES.values()  # torch compares no others
    return all(b is not None and a.dtype == b.dtype and a.dtype in kinds and torch.equal(a, b) for a, b in pairs)


def _named(key: str, found: list[Network], listed: str) -> Network:
    """Return the network that the user's KEY names: its whole prefix, or words of it that no other has."""
    words = f".{key.strip('.')}."
    fitting = [n for n in found if n.key == key or words == f".{n.prefix}"] or [
        n for n in found if words in f".{n.prefix}" or words in f".{_plain(n.prefix)}."
    ]
    complete = [network for network in fitting if network.problem is None]
    if len(complete) != 1:
        what = f"{len(complete)} networks" if complete else "no complete ResNet"
        raise UserError(f"holds {what} under KEY={key}; it holds: {listed or 'none at all'}")
    return complete[0]


def _left_out(network: Network, found: list[Network], tensors: dict[str, Tensor]) -> Iterable[str]:
    """Yield each part of the file that is not taken, with the reason."""
    others = [other for other in found if other is not network and other.problem is None]
    reasons: dict[str, str] = {}
    for key in tensors:
        if key in network.taken:
            continue
        if other := next((n for n in others if key in n.taken), None):
            reasons[other.key] = f"another network, KEY={other.key} takes it"
        elif key.startswith(network.prefix):
            reasons[_part(key, network.prefix)] = "not part of the backbone"
        else:
            reasons.setdefault(_part(key, network.prefix), "outside the network")
    return (f"{part} ({reason})" for part, reason in reasons.items())


def _part(key: str, prefix: str) -> str:
    """Return the key up to the first word in which it differs from the prefix."""
    words, common = key.split("."), prefix.split(".")
    alike = next((k for k, (a, b) in enumerate(zip(words, common, strict=False)) if a != b), len(words))
    return ".".join(words[: alike + 1])


def _first(tensors: dict[str, Tensor]) -> str:
    return f" (first: {next(iter(tensors))})" if tensors else ""
