"""Products made once for the same inputs, and what they are called."""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from common.files import sha256_of_file, sha256_of_text, write_json

_DIGESTS = ".inputs.json"


def not_comparable(profile: str) -> str:
    """Return the warning that a product of this profile carries, or nothing."""
    return "demo numbers are not comparable with the paper" if profile == "demo" else ""


def figure_files(stem: Path) -> tuple[Path, Path]:
    """Return the files of a figure: PNG for the page, PDF for print."""
    return stem.with_suffix(".png"), stem.with_suffix(".pdf")


def digest_of_files(files: Iterable[Path]) -> str:
    """Return a digest over names and contents."""
    return sha256_of_text(*(f"{file.name}:{sha256_of_file(file)}" for file in files))


def digest_of_code(*modules: str) -> str:
    """Return a digest over modules of this room."""
    return digest_of_files(Path(__file__).with_name(f"{module}.py") for module in modules)


def make_once(
    where: Path, name: str, inputs: Sequence[str], outputs: Sequence[Path], make: Callable[[], object]
) -> None:
    """Call `make()`, which writes `outputs` into `where`, unless they are what it made from the same inputs.

    `<where>/.inputs.json` keeps digests of the inputs and of each output by the product's name. The code that draws
    figures always counts as an input.
    """
    digest = sha256_of_text(digest_of_code("drawing"), *inputs)
    entry = _read(where).get(name, {})
    fresh = is_unchanged(where, name) and entry["inputs"] == digest and {p.name for p in outputs} == set(entry["files"])
    if not fresh:
        make()
        made = {"inputs": digest, "files": {path.name: sha256_of_file(path) for path in outputs}}
        write_json(where / _DIGESTS, {**_read(where), name: made})
    more = f" and {len(outputs) - 2} more" if len(outputs) > 2 else ""
    print(f"{'up to date' if fresh else 'written'}: {', '.join(map(str, outputs[:2]))}{more}", flush=True)


def is_unchanged(where: Path, name: str) -> bool:
    """Return whether `make_once` made the product and each of its files is as it was then."""
    try:
        entry = _read(where)[name]
        return "inputs" in entry and all(sha256_of_file(where / f) == digest for f, digest in entry["files"].items())
    except (OSError, KeyError, TypeError, AttributeError):
        return False


def _read(where: Path) -> dict[str, Any]:
    try:
        content = json.loads((where / _DIGESTS).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # missing or damaged: make everything again
        return {}
    return content if isinstance(content, dict) else {}
