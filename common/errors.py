"""The errors that a user can act on, and this process's rank, which decides who prints them."""

import errno
import os
import re

# Errors of the system that are not the code's fault: nothing more can be written, or a path cannot be used at all.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
UNUSABLE = (
    *(errno.EACCES, errno.EPERM, errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP),
    *(errno.EIO, errno.ESTALE),
)

LONGEST = 4000  # characters of a user's line


class UserError(Exception):
    """A mistake that the user can correct: one line that names the thing and the remedy.

    What it quotes from a file may be anything: line breaks become blanks, other characters that are not to be printed
    are escaped, and the middle of a long line is left out. Of what torch makes of an error in a DataLoader's worker, a
    traceback, the error's own line is kept.
    """

    def __init__(self, line: str) -> None:
        line = last_line(line) if line.startswith("Caught ") else " ".join(line.splitlines())
        line = printable(line)
        super().__init__(line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} ... {line[-LONGEST // 2 :]}")


def printable(text: str) -> str:
    """Return the text with an escape for each character that a terminal would obey or could not show."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class Diverged(UserError):  # noqa: N818  (as it is said)
    """A training whose loss or weights are no longer finite."""


class Stopped(Exception):  # noqa: N818  (it is not an error)
    """A signal ended the run, which can be resumed: the signal's number, and a line for the user."""

    def __init__(self, signal: int, message: str) -> None:
        super().__init__(message)
        self.signal = signal


def lost_worker(error: BaseException) -> str | None:
    """Return the user's line of a torch DataLoader's error, if one of its processes was killed or got no memory."""
    said = f"{error.__cause__ or ''}\n{error}"
    if not isinstance(error, RuntimeError) or not (found := _LOST_WORKER.search(said)):
        return None
    return (
        f"{found[0].rstrip(' .')}; its memory or /dev/shm ran out: use fewer workers (--workers 2, or --cfg-options "
        "train_dataloader.num_workers=2), or give a container more (docker run --shm-size=16g)"
    )


_LOST_WORKER = re.compile(
    r"DataLoader worker \(pid.*?\) (is killed by signal: [^.\n]*|exited unexpectedly)|unable to [^\n']*\bshm\b[^\n']*"
)


def blamed(error: BaseException) -> str | None:
    """Return what an error says of a path, if it is one of FULL or UNUSABLE."""
    if not isinstance(error, OSError) or error.errno not in (*FULL, *UNUSABLE):
        return None
    path = os.fsdecode(error.filename2 or error.filename or "a file")
    return f"cannot {'write' if error.errno in FULL else 'access'} {path}: {error.strerror}"


def rank() -> int:
    """Return this process's number, from 0, among those that torchrun or Slurm started; alone, 0."""
    return int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0)


def last_line(message: object) -> str:
    """Return an error's line for the user: a DataLoader worker puts its traceback before it."""
    return str(message).strip().splitlines()[-1].removeprefix("common.errors.UserError: ")
