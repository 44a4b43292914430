"""Checkpoints in the formats of other libraries, each with a model card: `python -m common.export --format timm`.

`exports/<profile>/<name>/<format>/` holds the weights as float32 and README.md: what they are, how to load them, every
metric that was recorded of them, licence and citation. Names of detectron2's are in PROTOCOLS 8; those of transformers
are of huggingface/transformers 00cbbe5, src/transformers/models/resnet/modeling_resnet.py.
"""

import io
import json
import pickle
import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import timm
import torch
from torch import Tensor

from common import cli
from common.backbones import RESNETS
from common.checkpoint import META_KEYS, SOURCE, Checkpoint
from common.errors import UserError
from common.files import atomic_write
from common.images import IMAGENET_MEAN, IMAGENET_STD
from common.names import PROFILES
from common.records import read_records
from common.run import Subject

CARD = "README.md"
CITATION = """\
@inproceedings{lee2023implicit,
  title = {Implicit Contrastive Representation Learning with Guided Stop-gradient},
  author = {Lee, Byeongchan and Lee, Sehyun},
  booktitle = {Advances in Neural Information Processing Systems},
  volume = {36},
  year = {2023}
}
"""
CARD_TEXT = """\
---
license: {licence}
library_name: {library}
tags: [self-supervised-learning, image-feature-extraction]
---

# {name}

A {arch} without classifier, {origin}.

{facts}
## Loading

{load}
## Results

{results}
## Licence

{terms}.

## Citation

```bibtex
{citation}```
"""


EXAMPLES = """
make export METHOD=simsiam_gsg FORMAT=torchvision
make export CHECKPOINT=resnet50.pth NAME=mine PROFILE=imagenet FORMAT=huggingface
"""


class Format(NamedTuple):
    """A format: the library it is for, which architectures that can build, its files, and how to load them.

    `files` takes the architecture and name -> tensor, and returns name -> content, where {name} in a file's name stands
    for the checkpoint's label. `load` is Markdown with {file} for the first file's name, {arch} and {depth}.
    """

    library: str
    has: Callable[[str], bool]
    files: Callable[[str, dict[str, Tensor]], dict[str, bytes]]
    load: str


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    parser = cli.parser(
        "common.export", "write checkpoints for other libraries", EXAMPLES, reads_checkpoint=True, unused="data runs"
    )
    known = ", ".join(FORMATS)
    parser.add_argument("--format", required=True, type=cli.one_of("FORMAT", FORMATS), help=f"one of {known}")
    parser.add_argument("--exports", default="exports", type=cli.path, help="where the files go")
    args = parser.parse_args(argv)
    cli.announce("common.export", args, exports=args.exports)
    if args.name and args.checkpoint is None:
        cli.check_label(args.name)
        path = args.checkpoints / args.profile / f"{args.name}.pth"
        subjects = [Subject(args.name, path, f"make pretrain PROFILE={args.profile}")]
    else:
        subjects = cli.subjects(args)
    for subject in subjects:
        checkpoint = subject.load()
        name = subject.name if args.checkpoint else subject.path.stem
        folder = args.exports / args.profile / name / args.format
        for path in export(checkpoint, name, args.format, folder, records_of(checkpoint, args.results)):
            print(f"written: {path}", flush=True)


def export(
    checkpoint: Checkpoint, name: str, form: str, folder: Path, records: Iterable[dict[str, Any]] = ()
) -> list[Path]:
    """Write the checkpoint into `folder` in a format of FORMATS, with a card of its records; return the files.

    Raises UserError for an architecture that the library does not have.
    """
    to = FORMATS[form]
    if not to.has(checkpoint.arch):
        raise UserError(f"FORMAT={form} has no {checkpoint.arch} ({checkpoint.path}); choose FORMAT=safetensors")
    tensors = {key: t.float() if t.is_floating_point() else t for key, t in checkpoint.state_dict.items()}
    contents = to.files(checkpoint.arch, {key: t.contiguous() for key, t in tensors.items()})
    written = {folder / file.format(name=name): content for file, content in contents.items()}
    load = to.load.format(file=repr(next(iter(written)).name), arch=checkpoint.arch, depth=checkpoint.arch[6:])
    written[folder / CARD] = model_card(checkpoint, name, to.library, load, records).encode()
    for path, content in written.items():
        atomic_write(path, partial(Path.write_bytes, data=content))
    return list(written)


def records_of(checkpoint: Checkpoint, results: Path) -> list[dict[str, Any]]:
    """Return the valid records of exactly these weights, of all profiles."""
    records = [record for profile in PROFILES for record in read_records(results, profile)[0]]
    return [record for record in records if record["provenance"]["checkpoint_sha256"] == checkpoint.sha256]


def model_card(
    checkpoint: Checkpoint, name: str, library: str, load: str, records: Iterable[dict[str, Any]] = ()
) -> str:
    """Return the card in Markdown, with front matter for the Hugging Face Hub; `load` says how to load the files."""
    meta = checkpoint.meta
    ours = set(META_KEYS) <= set(meta) and SOURCE not in meta
    facts: dict[str, object] = {"architecture": checkpoint.arch}
    if ours:
        facts |= {word: meta[word] for word in ("feature_dim", "method", "profile", "dataset", "epochs", "seed")}
        facts |= {"settings (SHA-256)": meta["config_sha256"], "commit": meta["git_commit"], "date": meta["created"]}
    for word, value in meta.get(SOURCE, {}).items():
        facts[f"imported: {word}"] = value
    facts["input"] = f"RGB in 0-1, minus {list(IMAGENET_MEAN)}, divided by {list(IMAGENET_STD)}"
    facts["checkpoint (SHA-256)"] = checkpoint.sha256
    numbers = [
        (r["profile"], r["task"], r["dataset"], r["variant"] or "", r["seed"], metric, f"{value:.2f}", _settings(r))
        for r in records
        for metric, value in r["metrics"].items()
    ]
    heads = ("profile", "task", "data set", "variant", "seed", "metric", "%", "settings")
    results = _table(heads, numbers) if numbers else "No result of these weights is recorded.\n"
    if any(profile == "demo" for profile, *_ in numbers):
        results = f"Numbers of the profile demo are of embedded images, and comparable with no others.\n\n{results}"
    return CARD_TEXT.format(
        licence="apache-2.0" if ours else "other",
        library=library,
        name=name,
        arch=checkpoint.arch,
        origin=f"pretrained by gsg with the method {meta['method']}" if ours else "not pretrained by gsg",
        facts=_table(("what", "value"), facts.items()),
        load=load,
        results=results,
        terms="Apache-2.0" if ours else "The terms of whoever trained these weights apply",
        citation=CITATION,
    )


def _settings(record: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in record["protocol"].items())


def _table(heads: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    lines = [list(heads), *([str(cell).replace("|", "\\|") for cell in row] for row in rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _torch_file(content: object) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


def _safetensors(arch: str, tensors: dict[str, Tensor]) -> bytes:
    return safetensors.torch.save(tensors, metadata={"format": "pt", "arch": arch})


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()


def _timm(arch: str, tensors: dict[str, Tensor]) -> dict[str, bytes]:
    pretrained = {"num_classes": 0, "mean": IMAGENET_MEAN, "std": IMAGENET_STD, "input_size": (3, 224, 224)}
    config = {"architecture": arch, "num_classes": 0, "pretrained_cfg": pretrained}
    return {"model.safetensors": _safetensors(arch, tensors), "config.json": _json(config)}


def _detectron2(arch: str, tensors: dict[str, Tensor]) -> dict[str, bytes]:
    arrays = {detectron2_name(key): t.numpy() for key, t in tensors.items()}
    return {"{name}.pkl": pickle.dumps({"model": arrays, "__author__": "gsg", "matching_heuristics": True})}


def _huggingface(arch: str, tensors: dict[str, Tensor]) -> dict[str, bytes]:
    renamed = {huggingface_name(key): t for key, t in tensors.items()}
    return {"model.safetensors": _safetensors(arch, renamed), "config.json": _json(huggingface_config(tensors))}


def huggingface_config(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the config with which transformers' ResNetModel has tensors of these shapes, under torchvision's names."""
    last = "conv3" if "layer1.0.conv3.weight" in tensors else "conv2"
    blocks = [sum(bool(re.fullmatch(rf"layer{k}\.\d+\.conv1\.weight", key)) for key in tensors) for k in (1, 2, 3, 4)]
    return {
        "architectures": ["ResNetModel"],
        "model_type": "resnet",
        "layer_type": "bottleneck" if last == "conv3" else "basic",
        "num_channels": 3,
        "embedding_size": len(tensors["conv1.weight"]),
        "hidden_sizes": [len(tensors[f"layer{k}.0.{last}.weight"]) for k in (1, 2, 3, 4)],
        "depths": blocks,
        "hidden_act": "relu",
        "downsample_in_first_stage": False,
        "torch_dtype": "float32",
    }


def detectron2_name(key: str) -> str:
    """Return detectron2's name of a tensor of a ResNet."""
    for name, new in (("downsample.0", "shortcut"), ("downsample.1", "shortcut.norm")):
        key = key.replace(name, new)
    key = re.sub(r"\bbn(\d)\.", r"conv\1.norm.", key)
    return re.sub(r"^layer(\d)", lambda stage: f"res{int(stage[1]) + 1}", key if key[:5] == "layer" else f"stem.{key}")


def huggingface_name(key: str) -> str:
    """Return the name that transformers' ResNetModel gives a tensor of a ResNet."""
    key = re.sub(r"downsample\.([01])", lambda part: f"shortcut.{('convolution', 'normalization')[int(part[1])]}", key)
    if not key.startswith("layer"):
        return key.replace("conv1", "embedder.embedder.convolution").replace("bn1", "embedder.embedder.normalization")
    kinds = {"conv": "convolution", "bn": "normalization"}
    key = re.sub(r"\.(conv|bn)(\d)\.", lambda part: f".layer.{int(part[2]) - 1}.{kinds[part[1]]}.", key)
    return re.sub(r"^layer(\d)\.", lambda stage: f"encoder.stages.{int(stage[1]) - 1}.layers.", key)


_PLAIN = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
FORMATS: Mapping[str, Format] = {
    "torchvision": Format(
        "torchvision",
        RESNETS.__contains__,
        lambda arch, tensors: {"{name}.pth": _torch_file(tensors)},
        """\
```python
import torch
import torchvision

network = torchvision.models.get_model("{arch}")
network.fc = torch.nn.Identity()
network.load_state_dict(torch.load({file}, weights_only=True))
```
""",
    ),
    "timm": Format(
        "timm",
        timm.is_model,
        _timm,
        """\
```python
import timm

network = timm.create_model("local-dir:.", pretrained=True)  # . is this folder
```
""",
    ),
    "safetensors": Format(
        "safetensors",
        lambda arch: True,
        lambda arch, tensors: {"{name}.safetensors": _safetensors(arch, tensors)},
        """\
```python
from safetensors.torch import load_file

tensors = load_file({file})  # under torchvision's names
```
""",
    ),
    "detectron2": Format(
        "detectron2",
        _PLAIN.__contains__,
        _detectron2,
        """\
```yaml
MODEL:
  WEIGHTS: {file}
  PIXEL_MEAN: [123.675, 116.28, 103.53]
  PIXEL_STD: [58.395, 57.12, 57.375]
  RESNETS: {{DEPTH: {depth}, STRIDE_IN_1X1: False}}  # of depth 18 and 34 also RES2_OUT_CHANNELS: 64
INPUT:
  FORMAT: RGB
```
""",
    ),
    "mmlab": Format(
        "mmdetection",
        _PLAIN.__contains__,
        lambda arch, tensors: {"{name}.pth": _torch_file({"meta": {}, "state_dict": tensors})},
        """\
```python
backbone = dict(type="ResNet", depth={depth}, style="pytorch", init_cfg=dict(type="Pretrained", checkpoint={file}))
```
""",
    ),
    "huggingface": Format(
        "transformers",
        _PLAIN.__contains__,
        _huggingface,
        """\
```python
from transformers import ResNetModel

network = ResNetModel.from_pretrained(".")  # . is this folder
```
""",
    ),
}


if __name__ == "__main__":
    cli.run(main)
