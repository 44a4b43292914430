"""Stages: commands of the rooms, run one after another, each in a process of its own."""

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from common import cli
from common.errors import Stopped

PASSED_ON = (signal.SIGTERM, signal.SIGUSR1)  # Ctrl-C reaches the stage by itself


class Outcome(NamedTuple):
    """A stage's exit code, 128 + n after signal n, and its seconds."""

    code: int
    seconds: float


def run(title: str, words: Sequence[str], environment: Mapping[str, str] | None = None) -> Outcome:
    """Print the title and run `python -m` with `words`; `environment` holds variables that replace those of ours.

    SIGTERM and SIGUSR1 are passed on to the stage. Raises KeyboardInterrupt or Stopped when such a signal or Ctrl-C
    ended it: then nothing else should start.
    """
    print(f"\n--- {title}", flush=True)
    started = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", *words], env={**os.environ, **(environment or {})})
    before = {number: signal.signal(number, lambda n, _: process.send_signal(n)) for number in PASSED_ON}
    try:
        code = process.wait()
    except KeyboardInterrupt:
        process.wait()  # it saves what it can first
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    code = code if code >= 0 else 128 - code
    if code == cli.INTERRUPTED:
        raise KeyboardInterrupt
    for number in PASSED_ON:
        if code == 128 + number:
            raise Stopped(number, f"{title}: stopped by {number.name}")
    return Outcome(code, time.monotonic() - started)


def peak_memory() -> str:
    """Return the peak memory of the largest stage so far, in words."""
    # Kilobytes on Linux, bytes on macOS.
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return f"peak memory of one process {peak / 2**30:.1f} GiB"
