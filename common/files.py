"""Files that are either complete or absent: atomic writes, locks between processes and content hashes."""

import errno
import fcntl
import hashlib
import itertools
import json
import os
import platform
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common.errors import UserError

LOCKLESS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # what a file system without locks answers
LEASE = 60.0  # seconds without a sign of life after which another process takes a claim over
POLL = 0.2  # seconds between looks at what another process holds


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`, and move it there when the block ends without an error.

    The data is on disk (fsync) before the name changes, so a kill or a full disk leaves either the old file or the new
    one. When the block raises, the temporary file is removed and `path` stays as it was. An error of the
    system names `path`.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        with naming(target):
            yield temporary
            # mkstemp creates 0600; give the file the permissions an ordinary open() would have given.
            umask = os.umask(0)
            os.umask(umask)
            temporary.chmod(0o666 & ~umask)
            publish(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def publish(whole: Path, path: Path) -> None:
    """Move a complete file to `path`, in the same folder, after its data is on disk."""
    _fsync(whole)
    os.replace(whole, path)
    _fsync(path.parent)


def atomic_write(path: str | os.PathLike[str], write: Callable[[Path], Any]) -> None:
    """Call `write(temporary)` and move the file that it wrote to `path`, atomically."""
    with atomic_path(path) as temporary:
        write(temporary)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an OSError that names no file, as a full disk's does, name `path`."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def existing(folder: Path) -> Path:
    """Return the folder, or the nearest one above it that exists."""
    return next(place for place in (folder, *folder.absolute().parents) if place.exists())


def require_writable(folder: Path) -> None:
    """Raise UserError unless a file without a name can be opened in the folder, or in the nearest one above."""
    place = existing(folder)
    try:
        tempfile.TemporaryFile(dir=place).close()
    except OSError as error:
        raise UserError(f"{place} cannot be written ({error.strerror}); correct it or its permissions") from None


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Hold the lock of `path`, which the system releases when its holder dies; wait while another process has it.

    Where the file system has no locks, hold a claim instead.
    """
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    lock: FileLock | Claim = FileLock(path.with_name(f".{path.stem}.lock"), fallback_to_soft=False)
    waiting = False
    while True:
        try:
            lock.acquire(blocking=False)
            break
        except Timeout:
            if not waiting:
                print(f"waiting for another process that makes {path}", flush=True)
            waiting = True
            time.sleep(POLL)
        except OSError as error:
            if isinstance(lock, Claim) or error.errno not in LOCKLESS:
                raise
            lock = Claim(path.with_name(f".{path.stem}.claim"))
    try:
        yield
    finally:
        lock.release()


class Claim:
    """A file whose creation, which succeeds once, claims what it stands for; its holder touches it now and then.

    It needs no locks of the file system, and holds among machines. Another process takes it over when its holder is
    dead, or gave no sign of life for LEASE.
    """

    def __init__(self, path: Path) -> None:
        from filelock import SoftFileLease

        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self._lease = path, SoftFileLease(path, lease_duration=LEASE)
        self._empty: tuple[int, int] | None = None  # which file was empty, and when it was first seen so
        self._since = 0.0

    def acquire(self, *, blocking: bool = False) -> None:
        """Take the claim. Raises filelock.Timeout while another process has it."""
        self._remove_empty()
        self._lease.acquire(blocking=blocking)

    def release(self) -> None:
        """Give the claim back."""
        self._lease.release()

    def _remove_empty(self) -> None:
        """Remove a file that stays empty for LEASE: filelock takes it for held for ever.

        A claim appears with its content; only a crash of the machine leaves it without.
        """
        try:
            found = self.path.lstat()
        except FileNotFoundError:
            return
        empty = None if found.st_size else (found.st_ino, found.st_ctime_ns)
        if empty is None or empty != self._empty:
            self._empty, self._since = empty, time.monotonic()
        elif time.monotonic() - self._since >= LEASE:
            print(f"{self.path} is empty, as a crash of its machine leaves it, and is removed", flush=True)
            self.path.unlink(missing_ok=True)


def set_aside(path: Path) -> Path:
    """Rename `path` to the first free `<name>.replaced-<n>` beside it, and return the new path."""
    numbers = itertools.count(1)
    kept = next(p for n in numbers if not (p := path.with_name(f"{path.name}.replaced-{n}")).exists())
    os.replace(path, kept)
    return kept


@contextmanager
def only_here(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which the system releases when its holder dies, in whatever way.

    Raises UserError if another process holds it. A POSIX lock is not inherited, so processes that outlive its holder,
    as a loader's workers do for some seconds, do not keep it. On a file system without locks nothing is locked.
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
                    f"{folder}: another process ({holder}) is working on this run; wait until it ends, or stop it"
                ) from None
            if error.errno not in LOCKLESS:
                raise
        file.truncate(0)
        file.write(f"{os.getpid()} on {platform.node()}")
        file.flush()
        yield


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Write `content` as indented JSON, atomically."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    atomic_write(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def require_file(path: Path, what: str, remedy: str) -> None:
    """Raise UserError naming a file, with `what` it is, that is missing or is no file."""
    if not path.is_file():
        fault = "a folder, not a file" if path.is_dir() else "not a file" if path.exists() else "missing"
        raise UserError(f"{what} {path} is {fault}; {remedy}")


def read_bytes(path: Path, what: str, remedy: str) -> bytes:
    """Return the file's bytes. Raises UserError naming a file, with `what` it is, that is missing or unreadable."""
    try:
        require_file(path, what, remedy)
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{what} {path} cannot be read ({error.strerror}); {remedy}") from None


def is_whole_zip(path: str | os.PathLike[str]) -> bool:
    """Return whether the file is a zip, as torch.save writes it, whose entries all fit their checksums."""
    try:
        with zipfile.ZipFile(path) as content:
            return content.testzip() is None
    except Exception:  # a damaged zip may raise anything
        return False


def is_whole(path: Path) -> bool:
    """Return whether the file is there and is not empty; of torch's files, also whether their checksums hold."""
    return is_whole_zip(path) if path.suffix == ".pth" else path.is_file() and path.stat().st_size > 0


def sha256_of_file(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of the file's bytes as 64 hexadecimal digits."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_of_network(path: str | os.PathLike[str], key: str | None) -> str:
    """Return what identifies a network in a checkpoint: the file's SHA-256, or with a KEY= that of both."""
    return sha256_of_file(path) if key is None else sha256_of_text(sha256_of_file(path), key)


def sha256_of_text(*parts: str) -> str:
    """Return the SHA-256 of the parts, each followed by a zero byte so that their borders count."""
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
