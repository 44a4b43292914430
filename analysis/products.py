"""What the commands of this room share: their arguments, and products made once for the same inputs."""

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from common import cli
from common.files import sha256_of_file, sha256_of_text, write_json
from common.names import METHODS

_DIGESTS = ".inputs.json"
_STYLE = Path(__file__).with_name("style.py")


def arguments(
    module: str,
    description: str,
    argv: list[str] | None,
    *,
    reads_checkpoint: bool = False,
    more: Callable[[argparse.ArgumentParser], None] = lambda parser: None,
) -> argparse.Namespace:
    """Parse the command line, print the first line, and return the arguments. METHOD is `all` by default.

    `more` adds arguments of the command's own.
    """
    parser = cli.parser(module, description, reads_checkpoint=reads_checkpoint)
    parser.set_defaults(method=list(METHODS))
    parser.add_argument("--reports", default="reports", type=cli.path, help="where tables, figures and pages live")
    more(parser)
    args = parser.parse_args(argv)
    cli.announce(module, args, reports=args.reports)
    return args


def folder(args: argparse.Namespace) -> Path:
    """Return the profile's folder of products."""
    return args.reports / args.profile


def not_comparable(profile: str) -> str:
    """Return the warning that a product of this profile carries, or nothing."""
    return "demo numbers are not comparable with the paper" if profile == "demo" else ""


def figure_files(stem: Path) -> tuple[Path, Path]:
    """Return the files of a figure: PNG for the page, PDF for print."""
    return stem.with_suffix(".png"), stem.with_suffix(".pdf")


def digest_of_files(files: Iterable[Path]) -> str:
    """Return a digest over names and contents."""
    return sha256_of_text(*(f"{file.name}:{sha256_of_file(file)}" for file in files))


def make_once(
    where: Path, name: str, inputs: Sequence[str], outputs: Sequence[Path], make: Callable[[], object]
) -> None:
    """Call `make()`, which writes `outputs`, unless they are there and were made of the same inputs.

    The digests of the inputs are kept in `<where>/.inputs.json`, by the product's name. The style of figures is
    always among them.
    """
    store = where / _DIGESTS
    digests = _read(store)
    digest = sha256_of_text(sha256_of_file(_STYLE), *inputs)
    fresh = digests.get(name) == digest and all(path.is_file() for path in outputs)
    if not fresh:
        make()
        write_json(store, {**_read(store), name: digest})
    more = f" and {len(outputs) - 2} more" if len(outputs) > 2 else ""
    print(f"{'up to date' if fresh else 'written'}: {', '.join(map(str, outputs[:2]))}{more}", flush=True)


def _read(store: Path) -> dict[str, str]:
    try:
        content = json.loads(store.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # not there, or spoilt: then everything is made again
        return {}
    return content if isinstance(content, dict) else {}
