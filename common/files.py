"""Files that are either whole or absent: atomic writes, locks among processes and content hashes."""

import errno
import fcntl
import hashlib
import itertools
import json
import os
import platform
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common.errors import UserError


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; move it there when the block ends well.

    The data is on disk (fsync) before the name changes, so a kill or a full disk leaves either the old
    file or the new one. When the block raises, the temporary file is removed and `path` is untouched.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp creates 0600; give the file the permissions an ordinary open() would have given.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        publish(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def publish(whole: Path, path: Path) -> None:
    """Move a file that is whole to `path`, in the same folder, after its data is on disk."""
    _fsync(whole)
    os.replace(whole, path)
    _fsync(path.parent)


def atomic_write(path: str | os.PathLike[str], write: Callable[[Path], Any]) -> None:
    """Call `write(temporary)` and move the file it wrote to `path`, atomically."""
    with atomic_path(path) as temporary:
        write(temporary)


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Hold the lock of `path`, which the system releases when its holder dies; wait while another process has it."""
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f".{path.stem}.lock"))
    try:
        lock.acquire(blocking=False)
    except Timeout:
        print(f"waiting for another process that makes {path}", flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def set_aside(path: Path) -> Path:
    """Rename `path` to the first free `<name>.replaced-<n>` beside it, and return that."""
    numbers = itertools.count(1)
    kept = next(p for n in numbers if not (p := path.with_name(f"{path.name}.replaced-{n}")).exists())
    os.replace(path, kept)
    return kept


@contextmanager
def only_here(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which the system releases when its holder dies, however that ends.

    Raises UserError if another process holds it. A POSIX lock is not inherited: processes that outlive its holder, as
    a loader's workers do for some seconds, do not hold it. A file system that has no locks is used without.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "a+", encoding="utf-8") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                file.seek(0)
                holder = file.read(100).strip() or "unknown"
                raise UserError(
                    f"{folder}: another process ({holder}) is at this run; wait for its end, or stop it"
                ) from None
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
        file.truncate(0)
        file.write(f"{os.getpid()} on {platform.node()}")
        file.flush()
        yield


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Write `content` as indented JSON, atomically."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    atomic_write(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def is_whole_zip(path: str | os.PathLike[str]) -> bool:
    """Return whether the file is a zip, as torch.save writes, in which every entry has its checksum."""
    try:
        with zipfile.ZipFile(path) as content:
            return content.testzip() is None
    except Exception:  # a damaged zip raises nearly anything
        return False


def is_whole(path: Path) -> bool:
    """Return whether the file is there and is not empty; of torch's files, also whether their checksums hold."""
    return is_whole_zip(path) if path.suffix == ".pth" else path.is_file() and path.stat().st_size > 0


def sha256_of_file(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of the file's bytes as 64 hexadecimal digits."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_of_text(*parts: str) -> str:
    """Return the SHA-256 of the parts, each ended by a zero byte so that their borders count."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
