"""`log.jsonl`, the JSON lines of a training run."""

import json
from pathlib import Path
from typing import Any

from common.files import atomic_path

LOG = "log.jsonl"


def truncate_log(path: Path, step: int, epoch: int | None = None) -> float:
    """Drop the lines of `log.jsonl` beyond `step` and beyond `epoch`, and a last line that a kill cut short.

    Returns the seconds that the run had taken up to the last line kept.

    A checkpoint of an epoch's last step is older than that epoch's line, which the resumed run writes again.
    """
    if not path.is_file():
        return 0.0
    last = float("inf") if epoch is None else epoch
    kept = [line for line in _lines(path) if line["step"] <= step and line.get("epoch", 0) <= last]
    with atomic_path(path) as temporary:
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
    return max((line.get("seconds", 0.0) for line in kept), default=0.0)


def _lines(path: Path) -> list[dict[str, Any]]:
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            break
        if not isinstance(line, dict) or "step" not in line:
            break
        lines.append(line)
    return lines
