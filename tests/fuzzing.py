"""Damaged copies of small files, and the two ways in which a reader may answer them."""

import re
import resource
import time
from collections.abc import Callable
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import UserError

SECONDS, MEMORY = 10, 2**31  # far above what a reader needs of each, on a busy machine

# What goes into a file somewhere, or in place of one of its numbers; and how often, one after another.
PIECES = (
    *(b"1e999", b"NaN", b"-1", b"0", b"null", b'"', b"{}", b"\n", b" ", b"/", b"../", b"&a;", b"\\ud800", b"\\n"),
    *(b"\xff\xfe", b"\xed\xa0\x80", b"\xe9", b"\xff" * 8, b"\0" * 8, b"\x7f\xff\xff\xff", b"\xe2\x80\xa8"),
    b'<?xml version="1.0" encoding="x"?>',
)
LONG = (b"9", b"[", b'{"a":', b"<a>", b"x")
KINDS = ("flip", "cut", "insert", "number", "repeat", "replace")


class Repeated(bytes):
    """A piece many times over, shown once."""

    def __new__(cls, piece: bytes) -> "Repeated":
        return super().__new__(cls, piece * 100_000)

    def __repr__(self) -> str:
        return f"Repeated({self[:5]!r}...)"


damage = st.lists(
    st.tuples(
        st.sampled_from(KINDS),
        st.floats(0, 1),
        st.sampled_from(PIECES) | st.binary(min_size=1, max_size=4) | st.sampled_from(LONG).map(Repeated),
    ),
    min_size=1,
    max_size=3,
)


def fuzz(path: Path, read: Callable[[], object], examples: int, *, named: Path | None = None) -> None:
    """Assert that `read` answers damaged copies of the file, the same in every run; what it refuses names `named`."""
    content = path.read_bytes()

    @settings(max_examples=examples, derandomize=True, database=None, deadline=None)
    @given(damage)
    def check(steps: list[tuple[str, float, bytes]]) -> None:
        path.write_bytes(damaged(content, steps))
        answers(read, named or path)

    try:
        check()
    finally:
        path.write_bytes(content)


def damaged(content: bytes, steps: list[tuple[str, float, bytes]]) -> bytes:
    """Return the content after steps, each a kind, a place from 0 (the start) to 1 (the end), and a piece."""
    for kind, where, piece in steps:
        place = int(where * len(content))
        before, after = content[:place], content[place:]
        if kind == "flip" and after:
            content = before + bytes([after[0] ^ 1 << piece[0] % 8]) + after[1:]
        elif kind == "cut":
            content = before
        elif kind == "insert":
            content = before + piece + after
        elif kind == "number":
            content = before + re.sub(rb"-?\d+", lambda _, piece=piece: piece, after, count=1)
        elif kind == "repeat":
            content = before + after[:200] + after
        else:
            content = before + piece + after[len(piece) :]
    return content


def answers(read: Callable[[], object], named: Path) -> None:
    """Assert that the reader returns, or refuses the file in one printable line, in bounded time and memory."""
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    try:
        read()
    except UserError as error:
        line = str(error)
        assert len(line.splitlines()) == 1
        assert len(line) < 5000
        assert named.name in line
        line.encode()
    assert time.monotonic() - start < SECONDS
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MEMORY
