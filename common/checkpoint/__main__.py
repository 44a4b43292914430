"""What a file of weights holds, and anybody's checkpoint made ours."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from torch import Tensor

from common import cli
from common.backbones import build_backbone, feature_dim
from common.checkpoint import SCHEMA, SOURCE, Checkpoint, load_checkpoint, read_tensors, save_checkpoint
from common.checkpoint.archive import word
from common.checkpoint.layouts import candidates, named_architecture
from common.errors import UserError
from common.files import set_aside, sha256_of_file
from common.names import OVERWRITE
from common.records import git_state

EXAMPLES = """
python -m common.checkpoint inspect moco.pth.tar
make import-checkpoint CHECKPOINT=moco.pth.tar NAME=moco PROFILE=imagenet
"""


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    parser = cli.parser(
        "common.checkpoint",
        __doc__ or "",
        EXAMPLES,
        reads_checkpoint=True,
        unused="method data results runs",
    )
    parser.add_argument("command", choices=("inspect", "import"), help="show a file's contents, or make it ours")
    parser.add_argument("file", nargs="?", type=cli.path, help="the file to inspect")
    parser.add_argument("--overwrite", action="store_true", help="replace an export of the same name")
    args = parser.parse_args(argv)
    if args.command == "inspect":
        if (file := args.file or args.checkpoint) is None:
            raise UserError("inspect needs a file: python -m common.checkpoint inspect FILE")
        print("\n".join(table(file, args.key)))
        return
    if args.checkpoint is None:
        raise UserError("import needs CHECKPOINT=path NAME=label (--checkpoint path --name label)")
    (subject,) = cli.subjects(args)
    place = args.checkpoints / args.profile / f"{subject.name}.pth"
    cli.announce("common.checkpoint", args, checkpoint=place)
    found = subject.load()
    print(found.loaded)
    if place.is_file():
        if not args.overwrite:
            raise UserError(f"{place} exists; choose another NAME, or {OVERWRITE} (it is kept beside the new one)")
        print(f"replacing an export, which is kept: {set_aside(place)}")
    export(found, place, args.profile)
    print(f"wrote {place}")


def export(found: Checkpoint, place: Path, profile: str) -> None:
    """Write the network as one of ours: float32, with `source` in its metadata saying where it comes from."""
    counter = "num_batches_tracked"
    tensors = {key: t.long() if key.endswith(counter) else t.float() for key, t in found.state_dict.items()}
    source = {"file": found.path.name, "sha256": sha256_of_file(found.path)}
    source |= {"layout": found.layout, "prefix": found.prefix}
    meta = {
        **{"schema": SCHEMA, "name": place.stem, "method": "imported", "profile": profile, "arch": found.arch},
        **{"feature_dim": feature_dim(build_backbone(found.arch)), "epochs": None, "seed": None, "dataset": None},
        **{"config_sha256": None, "git_commit": git_state()[0]},
        **{"created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), SOURCE: source},
    }
    save_checkpoint(place, tensors, meta)


def table(path: Path, key: str | None) -> Iterator[str]:
    """Yield the lines of a table of a file's parts: its networks, and what else it holds tensors of."""
    content, tensors = read_tensors(path, None)
    networks = candidates(tensors, named_architecture(content))
    part_of = {name: network.key for network in networks for name in network.taken}
    parts: dict[str, list[Tensor]] = {}
    for name, tensor in tensors.items():
        parts.setdefault(part_of.get(name) or ".".join(name.split(".")[:2]), []).append(tensor)
    known = {network.key: str(network).removeprefix(f"{network.key} ") for network in networks}
    rows = [("part", "tensors", "numbers", "types", "network")]
    for part, inside in parts.items():
        types = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in inside})
        total = sum(tensor.numel() for tensor in inside)
        rows.append((part, str(len(inside)), f"{total:,}", " ".join(types), known.get(part, "")))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
    names = map(word, content if isinstance(content, dict) else ())
    if empty := [name for name in names if not any(tensor.startswith(name) for tensor in tensors)]:
        yield f"without tensors of their own: {', '.join(empty)}"
    try:
        found = load_checkpoint(path, make_it=None, key=key)
        prefix = found.prefix.removesuffix(".") or "bare names"
        yield f"an evaluation takes {prefix} ({found.arch}); layout: {found.layout}"
    except UserError as error:
        yield f"an evaluation refuses it: {error}"


if __name__ == "__main__":
    cli.run(main, interrupted="the same command starts again")
