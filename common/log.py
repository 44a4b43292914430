"""`log.jsonl`, the JSON lines of a training run."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from common.files import atomic_path

LOG = "log.jsonl"
LARGEST = 1e15  # of a log's numbers; whatever is beyond is damage


def read_log(path: Path, numbers: Iterable[str]) -> tuple[list[dict[str, Any]], str]:
    """Return the lines of a `log.jsonl` and, in words, what is wrong with those that are left out ("" for nothing).

    A line is an object with a `step`; `step` and what else it has of `numbers` are finite numbers. A last line that a
    kill cut short is left out without a word. Raises OSError when the file cannot be read.
    """
    content = path.read_bytes()
    texts = content.splitlines()
    lines: list[dict[str, Any]] = []
    wrong = []
    for number, text in enumerate(texts, 1):
        try:
            lines.append(_line(text, numbers))
        except (ValueError, RecursionError) as error:
            is_cut_short = lines and number == len(texts) and not content.endswith(b"\n")
            wrong += [] if is_cut_short else [f"line {number}: {error}"]
    if not texts:
        return lines, "it is empty"
    return lines, f"{len(wrong)} of its {len(texts)} lines are damaged, first {wrong[0]}" if wrong else ""


def truncate_log(path: Path, step: int, epoch: int | None = None) -> float:
    """Drop the lines of `log.jsonl` beyond `step` and beyond `epoch`, and those that are damaged or cut short.

    Returns the seconds that the run had taken up to the last line kept.

    A checkpoint of an epoch's last step is older than that epoch's line, which the resumed run writes again.
    """
    if not path.is_file():
        return 0.0
    last = float("inf") if epoch is None else epoch
    lines, _ = read_log(path, ("epoch", "seconds"))
    kept = [line for line in lines if line["step"] <= step and line.get("epoch", 0) <= last]
    with atomic_path(path) as temporary:
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
    return max((line.get("seconds", 0.0) for line in kept), default=0.0)


def _line(text: bytes, numbers: Iterable[str]) -> dict[str, Any]:
    line = json.loads(text)
    if not isinstance(line, dict) or "step" not in line:
        raise ValueError("not an object with a step")
    for name in ("step", *numbers):
        value = line.get(name, 0)
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < LARGEST:
            raise ValueError(f"{name} is {value!r:.40}, not a number that a run logs")
    return line
