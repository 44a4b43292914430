"""What the rooms' benchmarks share: entries with targets, their table, and what measures time and memory."""

import gc
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import NamedTuple, NotRequired, TypedDict

import numpy as np
from PIL import Image

from common import cli
from common.errors import UserError
from common.files import write_json


class Entry(TypedDict):
    """One measurement: a ratio of medians within one run, its target, and the command that repeats it."""

    id: str
    what: str
    value: float
    target: float
    better: str  # "lower" or "higher"
    command: str
    memory_mib: NotRequired[float]  # peak memory on the device, of rows measured on one
    rehearsal: NotRequired[bool]  # a row of a GPU that a CPU ran at a tiny size: the value says nothing


class Found(NamedTuple):
    """What a benchmark measured: its value, more in words, and the peak MiB on the device."""

    value: float
    said: str = ""
    memory_mib: float | None = None


class Benchmark(NamedTuple):
    """What is measured, its target, which is better, and the measurement: its value, or that and more in words."""

    what: str
    target: float
    better: str
    run: Callable[[], float | tuple[float, str] | Found]


class DeviceBenchmark(NamedTuple):
    """A benchmark of a device, "cuda"; on "cpu" the same code measures at a small size, to rehearse it."""

    what: str
    target: float
    better: str
    run: Callable[[str], Found]

    def on(self, device: str) -> Benchmark:
        """Return the benchmark on `device`."""
        return Benchmark(self.what, self.target, self.better, partial(self.run, device))


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
        verdict = "rehearsed" if entry.get("rehearsal") else "met" if met(entry) else "MISSED"
        what = entry["what"]
        if "memory_mib" in entry:
            what += f"; at most {entry['memory_mib']:.0f} MiB on the device"
        rows.append((f"{entry['value']:.3f}", f"{sign} {entry['target']:g}", verdict, what, entry["command"]))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    cells = [[cell.ljust(width) for cell, width in zip(row, [*widths, 0], strict=True)] for row in rows]
    return "\n".join("  ".join(line).rstrip() for line in cells)


def peak_memory() -> int:
    """Return the most KiB that this process ever had in memory (Linux)."""
    # Not getrusage: its maximum is inherited from the process that started this one.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1])  # type: ignore[index]


def device_peak(device: str) -> Callable[[], float | None]:
    """Return a function that tells by how many MiB tensors on the device grew at most since now; None on a CPU."""
    if device != "cuda":
        return lambda: None
    import torch

    gc.collect()
    torch.cuda.init()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    return lambda: (torch.cuda.max_memory_allocated() - before) / 2**20


@contextmanager
def silence() -> Iterator[None]:
    """Let bars be written, but not shown."""
    with open(os.devnull, "w") as nowhere, redirect_stderr(nowhere), redirect_stdout(nowhere):
        yield


def write_photos(folder: Path, count: int) -> None:
    """Write `count` JPEGs, 500x375 in quality 95, each a crop of one of scikit-learn's two photographs."""
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


def run_room(
    module: str,
    description: str,
    benchmarks: Mapping[str, Benchmark],
    argv: Sequence[str] | None,
    on_device: Mapping[str, DeviceBenchmark] | None = None,
) -> None:
    """Run a room's command line: measure what --only ID ... names, print the table, write it to --json FILE.

    Where there is a GPU, the rows of `on_device` are measured on it, elsewhere those of `benchmarks`. `--device`
    chooses the rows of `on_device`, and "cpu" rehearses them at tiny sizes.
    """
    parser = cli.Parser(module, description, f"python -m {module} --only {next(iter(benchmarks))}")
    known = cli.one_of("benchmark", [*benchmarks, *(on_device or {})])
    parser.add_argument("--only", nargs="+", type=known, metavar="ID", help="not all of them")
    parser.add_argument("--json", type=cli.path, help="write the entries to this file")
    parser.set_defaults(device=None)
    if on_device:
        parser.add_argument("--device", choices=("cuda", "cpu"), help="measure the gpu_* rows here; cpu rehearses them")
    args = parser.parse_args(argv)
    device = args.device or (pick_bench_device() if on_device else None)
    if device is not None:
        benchmarks = {name: benchmark.on(device) for name, benchmark in (on_device or {}).items()}
    missing = [name for name in args.only or () if name not in benchmarks]
    if missing:
        raise UserError(
            f"{missing[0]} is measured on a GPU, and there is none; add --device cpu to rehearse it"
            if device is None
            else f"{missing[0]} is measured on the CPU; set CUDA_VISIBLE_DEVICES= to nothing, and leave --device out"
        )
    chosen = {name: benchmarks[name] for name in benchmarks if not args.only or name in args.only}
    entries = list(measure(module, chosen, device))
    print(table(entries), flush=True)
    if args.json is not None:
        write_json(args.json, entries)


def pick_bench_device() -> str | None:
    """Return "cuda" where there is a GPU, else None."""
    import torch

    return "cuda" if torch.cuda.is_available() else None


def measure(module: str, benchmarks: Mapping[str, Benchmark], device: str | None = None) -> Iterator[Entry]:
    """Measure, yielding each entry as it comes, and say which cannot be; `device` is what the commands name."""
    for name, (what, target, better, run) in benchmarks.items():
        print(f"measuring {name}: {what}", flush=True)
        try:
            result = run()
        except Skipped as reason:
            print(f"skipped {name}: {reason}", flush=True)
            continue
        found = Found(*result) if isinstance(result, tuple) else Found(result)
        what = f"{what}; {found.said}" if found.said else what
        command = f"python -m {module} --only {name}" + (f" --device {device}" if device else "")
        entry = Entry(id=name, what=what, value=found.value, target=target, better=better, command=command)
        if device == "cpu":
            entry["rehearsal"] = True
        if found.memory_mib is not None:
            entry["memory_mib"] = round(found.memory_mib, 1)
        yield entry
