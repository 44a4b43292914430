"""Products made once for the same inputs, and what they are called."""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

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
    """Call `make()`, which writes `outputs`, unless they exist and were made from the same inputs.

    `<where>/.inputs.json` keeps a digest of the inputs by the product's name. The code that draws figures always
    counts as an input.
    """
    store = where / _DIGESTS
    digests = _read(store)
    digest = sha256_of_text(digest_of_code("drawing"), *inputs)
    fresh = digests.get(name) == digest and all(path.is_file() for path in outputs)
    if not fresh:
        make()
        write_json(store, {**_read(store), name: digest})
    more = f" and {len(outputs) - 2} more" if len(outputs) > 2 else ""
    print(f"{'up to date' if fresh else 'written'}: {', '.join(map(str, outputs[:2]))}{more}", flush=True)


def _read(store: Path) -> dict[str, str]:
    try:
        content = json.loads(store.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # missing or damaged: make everything again
        return {}
    return content if isinstance(content, dict) else {}
