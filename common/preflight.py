"""Check a whole data set once before hours of training; the outcome is kept under `runs/checked/`."""

import codecs
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from common.errors import UserError
from common.files import alone, read_bytes, sha256_of_text, write_json
from common.images import SIDEWAYS, check_utf8, open_image, readable, top_level, turn_of

T = TypeVar("T")
R = TypeVar("R")
LONGEST = 200  # characters of an image's name; file systems allow 255 bytes
THREADS = 8  # which mostly wait for files


def check_once(
    name: str,
    items: Callable[[], Sequence[T]],
    check: Callable[[T], R],
    *,
    files: Iterable[Path],
    settings: str,
    cache: Path,
) -> list[R]:
    """Return what `check` returns for each item; it returns plain JSON, and raises UserError for a faulty item.

    The items are checked, with a progress bar, unless all have passed before. That counts while `files` have the same
    names, sizes and times of change and `settings`, whatever else the outcome depends on, is the same. Of several
    processes one checks while the others wait. Raises UserError naming a file that is missing.
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
                outcomes = list(tqdm(pool.map(check, todo), f"checking {name}", len(todo), unit="img", mininterval=1))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        write_json(done, {"name": name, "found": outcomes})
        return outcomes


def _kept(done: Path) -> list | None:
    """Return the outcome of an earlier check, or None if there is none or its file is damaged or in an older format."""
    try:
        return json.loads(done.read_text(encoding="utf-8"))["found"]
    except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
        return None


def image_size(path: Path) -> tuple[int, int]:
    """Return (width, height) from an image's header. Raises UserError for a file that is missing or not an image."""
    with readable(path, remedy="restore it"), open_image(path) as image:
        return image.size


def decoded_size(path: Path, *, upright: bool = False) -> tuple[int, int]:
    """Decode an image to its end and return (width, height), with `upright` after the rotation that EXIF asks for.

    Raises UserError naming an image that `common.images.read_image` does not read.
    """
    with readable(path, remedy="restore it"), open_image(path) as image:
        size = image.size
        image.draft("L", (1, 1))  # a JPEG at an eighth of its size: reads all bytes, makes few pixels
        image.load()
        top_level(image, path)
        turned = upright and turn_of(image) in SIDEWAYS
    return size[::-1] if turned else size


def read_lines(path: Path, what: str, remedy: str) -> list[str]:
    """Return the lines of a text without blank ones and without blanks around them.

    The text is UTF-8, with or without a byte order mark, or UTF-16 with one. Raises UserError naming the file, and
    `what` it is, where it is missing or not such text.
    """
    content = read_bytes(path, what, remedy)
    try:
        text = content.decode("utf-16" if content[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{what} {path} is not text in UTF-8 ({error.reason}); {remedy}") from None
    return [stripped for line in text.splitlines() if (stripped := line.strip())]


def read_list(path: Path) -> list[str]:
    """Return the names in a list of images, one per line.

    Raises UserError naming a list that is missing, empty or not text, or that has a name twice or one that cannot be a
    file's.
    """
    names = read_lines(path, "list", "restore the data set")
    if not names:
        raise UserError(f"{path} lists no image; restore the data set")
    for name, count in Counter(names).items():
        if not name.isprintable() or "/" in name or len(name) > LONGEST:
            raise UserError(f"list {path} names {name!r}, which cannot be an image's name; restore the data set")
        if count > 1:
            raise UserError(f"list {path} names {name} {count} times; leave one")
    return names


def read_json(path: Path) -> dict:
    """Return the JSON object in a file. Raises UserError naming a file that is missing or holds no object."""
    text = read_bytes(path, "annotation", "restore the data set")
    try:
        content = json.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise UserError(f"annotation {path} is truncated or corrupt ({error}); restore it") from None
    if not isinstance(content, dict):
        raise UserError(f"annotation {path} holds no JSON object; restore it")
    return content


def _state(file: Path) -> str:
    try:
        status = file.stat()
    except OSError as error:
        fault = "missing" if isinstance(error, FileNotFoundError) else f"not readable ({error.strerror})"
        raise UserError(f"{file} is listed but {fault}; restore the data set") from None
    check_utf8(file)
    return f"{file}:{status.st_size}:{status.st_mtime_ns}"
