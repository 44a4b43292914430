"""Errors of Pillow as one line, for every reader of pictures, also those that do without torch."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from common.cli import UserError


@contextmanager
def readable(path: Path, what: str = "image", *, remedy: str, missing: str = "restore the data set") -> Iterator[None]:
    """Turn whatever Pillow raises in the block into a UserError that names the file and `remedy`, or `missing`.

    A damaged file makes its decoders fail in any way: OSError, SyntaxError, struct.error, MemoryError and others.
    """
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{what} {path} is missing; {missing}") from None
    except Exception as error:
        reason = " ".join(str(error).split()).split(str(path))[0].strip(" '") or type(error).__name__
        if isinstance(error, Image.DecompressionBombError):
            raise UserError(f"{what} {path} is too large ({reason}); make it smaller, or {remedy}") from None
        kind = ", or of a kind that Pillow does not read" if isinstance(error, UnidentifiedImageError) else ""
        raise UserError(f"{what} {path} is truncated or corrupt{kind} ({reason}); {remedy}") from None
