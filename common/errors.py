"""The errors that a user can act on, and this process's rank, which decides who prints them."""

import errno
import os

UNWRITABLE = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EACCES,
    errno.EROFS,
)  # not the code's fault


class UserError(Exception):
    """A mistake that the user can correct: one line that names the thing and the remedy."""


class Stopped(Exception):  # noqa: N818  (it is not an error)
    """A signal ended the run, which can be resumed: the signal's number, and a line for the user."""

    def __init__(self, signal: int, message: str) -> None:
        super().__init__(message)
        self.signal = signal


def rank() -> int:
    """Return this process's number, from 0, among those that torchrun or Slurm started; alone, 0."""
    return int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0)


def last_line(message: object) -> str:
    """Return an error's line for the user: a DataLoader worker puts its traceback before it."""
    return str(message).strip().splitlines()[-1].removeprefix("common.errors.UserError: ")
