"""The performance table: every room's benchmarks in one run, printed and kept in reports/bench.json.

make bench
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypedDict

from common import cli
from common.files import write_json

ROOMS = ("pretrain.bench", "transfer.bench", "detection.bench")  # modules that write their entries to `--json FILE`


class Entry(TypedDict):
    """One measurement: a ratio of medians within one run, its target, and the command that repeats it."""

    id: str
    what: str
    value: float
    target: float
    better: str  # "lower" or "higher"
    command: str


class Benchmark(NamedTuple):
    """What is measured, its target, which is better, and the measurement: its value, or that and more in words."""

    what: str
    target: float
    better: str
    run: Callable[[], float | tuple[float, str]]


class Skipped(Exception):  # noqa: N818  (it is no error)
    """Why a benchmark cannot be measured on this machine."""


def met(entry: Entry) -> bool:
    """Tell whether the value reaches its target."""
    lower, value, target = entry["better"] == "lower", entry["value"], entry["target"]
    return value <= target if lower else value >= target


def table(entries: Sequence[Entry]) -> str:
    """Return the entries as aligned text: value, target, whether it is met, what was measured, and the command."""
    rows = [("value", "target", "", "what", "command")]
    for entry in entries:
        sign = "<=" if entry["better"] == "lower" else ">="
        verdict = "met" if met(entry) else "MISSED"
        rows.append((f"{entry['value']:.3f}", f"{sign} {entry['target']:g}", verdict, entry["what"], entry["command"]))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    cells = [[cell.ljust(width) for cell, width in zip(row, [*widths, 0], strict=True)] for row in rows]
    return "\n".join("  ".join(line).rstrip() for line in cells)


def peak_memory() -> int:
    """Return the most KiB that this process ever had in memory (Linux)."""
    # Not getrusage: its maximum is inherited from the process that started this one.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1])  # type: ignore[index]


def write_photos(folder: Path, count: int) -> None:
    """Write `count` JPEGs, 500x375 in quality 95, each a crop of one of scikit-learn's two photographs."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_sample_images

    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    photos = [Image.fromarray(photo) for photo in load_sample_images().images]  # 640x427
    for k in range(count):
        photo, width = photos[k % len(photos)], int(rng.integers(400, 560))
        height = width * 3 // 4
        left, top = (int(rng.integers(0, room + 1)) for room in (photo.width - width, photo.height - height))
        crop = photo.resize((500, 375), Image.Resampling.BICUBIC, (left, top, left + width, top + height))
        crop.save(folder / f"{k:05d}.jpg", quality=95)


def run_room(module: str, description: str, benchmarks: Mapping[str, Benchmark], argv: Sequence[str] | None) -> None:
    """Run a room's command line: measure what --only ID ... names, print the table, write it to --json FILE."""
    parser = cli.Parser(module, description=description)
    known = cli.one_of("benchmark", benchmarks)
    parser.add_argument("--only", nargs="+", type=known, default=list(benchmarks), metavar="ID", help="not all of them")
    parser.add_argument("--json", type=Path, help="write the entries to this file")
    args = parser.parse_args(argv)
    entries = measure(module, {name: benchmarks[name] for name in benchmarks if name in args.only})
    print(table(entries), flush=True)
    if args.json is not None:
        write_json(args.json, list(entries))


def measure(module: str, benchmarks: Mapping[str, Benchmark]) -> list[Entry]:
    """Measure, printing each benchmark as it comes, and say which cannot be."""
    entries: list[Entry] = []
    for name, (what, target, better, run) in benchmarks.items():
        print(f"measuring {name}: {what}", flush=True)
        try:
            found = run()
        except Skipped as reason:
            print(f"skipped {name}: {reason}", flush=True)
            continue
        value, said = found if isinstance(found, tuple) else (found, "")
        what = f"{what}; {said}" if said else what
        command = f"python -m {module} --only {name}"
        entries.append(Entry(id=name, what=what, value=value, target=target, better=better, command=command))
    return entries


def main(argv: Sequence[str] | None = None) -> None:
    """Run every room's benchmarks, one process after another, and write the whole table."""
    parser = cli.Parser("common.bench", description=__doc__)
    parser.add_argument("--reports", default=Path("reports"), type=Path, help="where bench.json goes")
    args = parser.parse_args(argv)
    path = args.reports / "bench.json"
    print(f"[common.bench] {', '.join(ROOMS)} -> {path.resolve()}; leave the machine alone meanwhile", flush=True)
    entries: list[Entry] = []
    with tempfile.TemporaryDirectory() as folder:
        for module in ROOMS:
            part = Path(folder) / f"{module}.json"
            done = subprocess.run([sys.executable, "-m", module, "--json", str(part)], check=False)
            if done.returncode:
                raise cli.UserError(f"{module} failed; what it printed says why")
            entries += json.loads(part.read_text())
            write_json(path, entries)  # what is measured is kept, whatever comes
    if len(ROOMS) > 1:
        print(table(entries), flush=True)
    missed = [entry["id"] for entry in entries if not met(entry)]
    print(
        f"{len(entries)} measured, {len(missed)} missed their target{': ' if missed else ''}{', '.join(missed)}  {path}"
    )


if __name__ == "__main__":
    cli.run(main)
