"""The errors that a user can act on, and which process says them."""

import errno
import os

UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS)  # no fault of the code's


class UserError(Exception):
    """A mistake that the user can mend: one line that names the thing and the remedy."""


class Stopped(Exception):  # noqa: N818  (it is no error)
    """A run that a signal ended, in a state to be resumed: the signal's number, and what happened."""

    def __init__(self, signal: int, message: str) -> None:
        super().__init__(message)
        self.signal = signal


def rank() -> int:
    """Return this process's number among those that torchrun or Slurm started, from 0."""
    return int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0)


def last_line(message: object) -> str:
    """Return the user's line of an error: a DataLoader worker re-raises with its traceback before it."""
    return str(message).strip().splitlines()[-1].removeprefix("common.errors.UserError: ")
