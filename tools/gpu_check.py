"""Run the tests marked `gpu` and then the benchmarks `gpu_*` on this GPU, and save each result as soon as it is there.

make gpu-check, or a part: make gpu-check ONLY=tests (or bench, or the id of a benchmark)
"""

import importlib
import json
import multiprocessing
import os
import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from common import cli
from common.bench import measure, met, table
from common.errors import UserError
from common.files import write_json
from common.records import git_state, versions

ROOMS = ("pretrain.bench", "transfer.bench", "detection.bench")
PARTS = ("all", "tests", "bench")
TESTS = Path(__file__).parent.parent / "tests"


class Report:
    """The file of results of one card, driver, set of versions and commit.

    Results of another card or commit are dropped; a part that runs again replaces its own results.
    """

    def __init__(self, path: Path, about: dict[str, Any]) -> None:
        self.path = path
        old = json.loads(path.read_text()) if path.is_file() else {}
        same = all(old.get(key) == value for key, value in about.items())
        self.content: dict[str, Any] = {**about, **{part: old[part] if same else {} for part in ("tests", "bench")}}

    def add(self, part: str, name: str, result: dict[str, Any]) -> None:
        """Add a result and write the file."""
        self.content[part][name] = result
        write_json(self.path, self.content)


def about_machine(device: str) -> dict[str, Any]:
    """Return card, driver, versions and commit."""
    import torch

    card, driver = platform.processor() or platform.machine(), None
    if device == "cuda":
        card = torch.cuda.get_device_name()
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        drivers = subprocess.run(query, capture_output=True, text=True, check=False).stdout.split()
        driver = drivers[0] if drivers else None
    commit, dirty = git_state()
    cuda = {"cuda": torch.version.cuda, "python": platform.python_version()}
    return {"device": device, "card": card, "driver": driver, "commit": commit, "dirty": dirty} | {
        "versions": versions() | cuda
    }


class KeepOutcomes:
    """A pytest plugin that adds every test's outcome and seconds to a report."""

    def __init__(self, report: Report) -> None:
        self.report = report

    def pytest_collectreport(self, report: Any) -> None:
        """Keep the error of a file that could not be collected."""
        if report.failed:
            error = str(report.longrepr).strip().splitlines()[-1]
            self.report.add("tests", report.nodeid, {"outcome": "failed", "error": error})

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Keep the outcome of a test, or of a set-up or teardown that did not pass."""
        if report.when == "call" or report.outcome != "passed":
            result = {"outcome": report.outcome, "seconds": round(report.duration, 2)}
            if report.failed:
                result["error"] = str(report.longrepr).strip().splitlines()[-1]
            self.report.add("tests", report.nodeid, result)


def run_tests(path: Path, about: dict[str, Any], folder: Path = TESTS) -> None:
    """Run the tests in `folder` marked `gpu`, and exit, which frees what they leave on the device."""
    import pytest

    os.environ["GSG_TEST_DEVICE"] = about["device"]
    report = Report(path, about)
    report.content["tests"] = {}
    files = [str(file) for file in sorted(folder.rglob("test_*.py")) if "pytest.mark.gpu" in file.read_text()]
    options = ["-v", "-m", "gpu", "-p", "no:cacheprovider", "--durations=5", "--tb=short"]
    options += ["--continue-on-collection-errors", *files]
    sys.exit(pytest.main(options, plugins=[KeepOutcomes(report)]))


def run_benchmarks(path: Path, about: dict[str, Any], module: str, names: Sequence[str]) -> None:
    """Measure a room's rows one by one, and exit; a row that fails is named, and the others are still measured."""
    report, failed = Report(path, about), False
    rows = importlib.import_module(module).DEVICE_BENCHMARKS
    for name in names:
        started = time.monotonic()
        try:
            for entry in measure(module, {name: rows[name].on(about["device"])}, about["device"]):
                report.add("bench", name, {**entry, "seconds": round(time.monotonic() - started, 1)})
        except Exception as error:
            traceback.print_exc()
            failed = True
            report.add("bench", name, {"error": f"{type(error).__name__}: {error}".splitlines()[0]})
    sys.exit(int(failed))


def in_process(start: str, target: Callable[..., Any], *args: Any) -> bool:
    """Run `target` in its own process, started by "fork" or "spawn", and return whether it succeeded."""
    context: Any = multiprocessing.get_context(start)
    process = context.Process(target=target, args=args)
    process.start()
    process.join()
    return process.exitcode == 0


def try_fork(device: str) -> tuple[str, dict[str, Any]]:
    """Return how to start processes, and the result of `about_machine`.

    A fork already has the libraries that a new process takes half a minute to import. But it can use the GPU only if
    no library has started CUDA in this process.
    """
    try:
        with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
            return "fork", pool.submit(about_machine, device).result()
    except RuntimeError:  # CUDA's
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            return "spawn", pool.submit(about_machine, device).result()


def summary(content: dict[str, Any]) -> str:
    """Return the short table: the tests' counts and the benchmarks."""
    tests = content["tests"].values()
    counts = {word: sum(t["outcome"] == word for t in tests) for word in ("passed", "failed", "skipped")}
    rows = [entry for entry in content["bench"].values() if "value" in entry]
    lines = [f"{content['card']}, driver {content['driver']}, commit {content['commit'][:12]}"]
    if tests:
        lines.append(", ".join(f"{count} tests {word}" for word, count in counts.items() if count))
    if rows:
        lines.append(table(rows))
    lines += [f"{name}: {entry['error']}" for name, entry in content["bench"].items() if "error" in entry]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the part that --only names, print the table, and raise UserError if a test or a benchmark failed."""
    parser = cli.Parser("tools.gpu_check", __doc__ or "", "make gpu-check\nmake gpu-check ONLY=tests DEVICE=cpu")
    parser.add_argument("--only", default="all", help=f"{', '.join(PARTS)}, or the id of a benchmark")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="cpu rehearses at tiny sizes")
    parser.add_argument(
        "--reports", default=Path("reports"), type=cli.path, help="where gpu.json goes, or gpu-rehearsal.json"
    )
    args = parser.parse_args(argv)
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # else asking for a GPU starts CUDA, which a fork cannot use
    import torch

    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("torch sees no CUDA device here; DEVICE=cpu (--device cpu) rehearses the check")
    rows = {module: list(importlib.import_module(module).DEVICE_BENCHMARKS) for module in ROOMS}
    if args.only not in PARTS:
        cli.one_of("part", [*PARTS, *(name for names in rows.values() for name in names)])(args.only)
        rows = {module: [name for name in names if name == args.only] for module, names in rows.items()}
    path = args.reports / ("gpu.json" if args.device == "cuda" else "gpu-rehearsal.json")
    start, about = try_fork(args.device)
    print(f"[tools.gpu_check] {about['card']} -> {path.resolve()}; leave the machine alone meanwhile", flush=True)
    started, well = time.monotonic(), True
    if args.only in ("all", "tests"):
        well &= in_process(start, run_tests, path, about)
    for module, names in rows.items():
        if names and args.only != "tests":
            well &= in_process(start, run_benchmarks, path, about, module, names)
    content = Report(path, about).content
    print(summary(content), flush=True)
    measured = [e for e in content["bench"].values() if "value" in e and not e.get("rehearsal")]
    missed = [entry["id"] for entry in measured if not met(entry)]
    said = f"; missed: {', '.join(missed)}" if missed else ""
    print(f"{time.monotonic() - started:.0f} s{said}  {path}", flush=True)
    if not well:
        raise UserError("a test or a benchmark failed; what it printed says why")


if __name__ == "__main__":
    cli.run(main)
