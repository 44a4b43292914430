"""The check of a whole data set before hours of training, done once: its outcome is kept under `runs/checked/`."""

import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from PIL import Image
from tqdm import tqdm

from common.cli import UserError
from common.files import alone, sha256_of_text, write_json

T = TypeVar("T")
R = TypeVar("R")
THREADS = 8  # most of the time goes into waiting for files


def check_once(
    name: str,
    items: Callable[[], Sequence[T]],
    check: Callable[[T], R],
    *,
    files: Iterable[Path],
    settings: str,
    cache: Path,
) -> list[R]:
    """Return what `check` returns of each item, which must be plain JSON; it raises UserError for a faulty one.

    It is called, with a progress bar, unless all have passed before. They count as passed as long as `files` have the
    names, sizes and times of change that they had then, and `settings`, what else the outcome depends on, is the same.
    Of several processes, one checks and the others wait. Raises UserError naming a file that is missing.
    """
    key = sha256_of_text(name, settings, *(_state(file) for file in files))
    done = cache / f"{name}-{key[:16]}.json"
    if (kept := _kept(done)) is not None:
        return kept
    with alone(done):
        if (kept := _kept(done)) is not None:
            return kept
        todo = items()
        with ThreadPoolExecutor(THREADS) as pool:
            try:
                found = list(tqdm(pool.map(check, todo), f"checking {name}", len(todo), unit="img", mininterval=1))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        write_json(done, {"name": name, "found": found})
        return found


def _kept(done: Path) -> list | None:
    """Return what an earlier check found; None if there was none, or its file is damaged or of an older kind."""
    try:
        return json.loads(done.read_text(encoding="utf-8"))["found"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def image_size(path: Path) -> tuple[int, int]:
    """Return (width, height) from an image's header. Raises UserError naming a file that is missing or no image."""
    try:
        with Image.open(path) as image:
            return image.size
    except FileNotFoundError:
        raise UserError(f"image {path} is missing; restore the data set") from None
    except (OSError, SyntaxError, ValueError) as error:
        reason = " ".join(str(error).split()).split(str(path))[0].strip(" '") or type(error).__name__
        raise UserError(f"image {path} is truncated or corrupt ({reason}); restore it") from None


def read_json(path: Path) -> dict:
    """Return a JSON object. Raises UserError naming a file that holds none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"annotation {path} is missing; restore the data set") from None
    except ValueError as error:
        raise UserError(f"annotation {path} is truncated or corrupt ({error}); restore it") from None
    if not isinstance(content, dict):
        raise UserError(f"annotation {path} holds no JSON object; restore it")
    return content


def _state(file: Path) -> str:
    try:
        status = file.stat()
    except FileNotFoundError:
        raise UserError(f"{file} is listed but missing; restore the data set") from None
    return f"{file}:{status.st_size}:{status.st_mtime_ns}"
