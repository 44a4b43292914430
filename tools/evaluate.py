"""Every benchmark that the data at hand allow, for one checkpoint or several methods; ends with a table and the page.

It says first what it will run, what is missing and how long it will take. What is done already is not done again, so
the same command continues after any interruption.
"""

import argparse
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from datetime import timedelta
from multiprocessing import get_context
from typing import Any, NamedTuple

from analysis.names import METRIC_NAMES, benchmark_name
from common import cli
from common.errors import UserError
from common.records import METRICS, RecordKey, read_record
from common.run import Subject
from tools.plan import Benchmark, Survey, benchmarks
from tools.stages import peak_memory, run
from transfer.suite import ANY_SIZE

Records = dict[tuple[str, Benchmark], dict[str, Any]]  # by the checkpoint's name
EXAMPLES = """
make evaluate METHOD=all
make evaluate CHECKPOINT=resnet50.pth NAME=mine PROFILE=imagenet DATA=/data GPUS=8
make evaluate CHECKPOINT=resnet50.pth NAME=mine PROFILE=imagenet DATA_ROOT=/fruit ONLY='knn recognition'
"""


class Command(NamedTuple):
    """A command as `python -m` takes it, and what it measures for which checkpoint, if it leaves records."""

    title: str
    words: list[str]
    name: str = ""
    measures: Sequence[Benchmark] = ()


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line. Raises UserError naming what failed, after trying everything."""
    parser = cli.parser("tools.evaluate", (__doc__ or "").splitlines()[0], EXAMPLES, reads_checkpoint=True)
    parser.add_argument("--reports", default="reports", type=cli.path, help="where tables, figures and pages live")
    parser.add_argument("--data-root", type=cli.path, help="a data set of your own, on which alone to evaluate")
    parser.add_argument("--classes", help="the names of its classes, for detection and segmentation")
    parser.add_argument("--only", default="", help="run these alone: tasks or data sets, as in 'knn recognition voc'")
    parser.add_argument("--gpus", default=0, type=cli.whole("--gpus", 0), help="processes of each trainer")
    parser.add_argument("--overwrite", action="store_true", help="replace runs and results of other settings")
    args = parser.parse_args(argv)
    cli.announce("tools.evaluate", args, checkpoints=args.checkpoints, runs=args.runs, reports=args.reports)
    subjects, wanted = cli.subjects(args), _only(args.only, benchmarks(args.profile, args.data_root))
    found = _surveyed(subjects, wanted, args.profile, args.data, args.data_root, max(1, args.gpus))
    good = [subject for subject in subjects if subject.name not in found.refused]
    if not good:
        raise UserError("; ".join(found.refused.values()))
    chosen = [benchmark for benchmark in wanted if benchmark not in found.left_out]
    _say_plan(good, chosen, found, _records(args, good, chosen))
    commands = [*_measuring(args, good, chosen), *_closing(args, good, chosen)]
    failed = [Command(f"checkpoint of {name}", []) for name in found.refused]
    for number, command in enumerate(commands, start=1):
        if run(f"{number}/{len(commands)} {command.title}", command.words).code:
            failed.append(command)
    _print_table(good, wanted, chosen, _records(args, good, chosen), failed)
    print(f"\n{peak_memory()}\nthe page: {(args.reports / args.profile / 'index.html').resolve()}", flush=True)
    if failed:
        titles = ", ".join(command.title for command in failed)
        raise UserError(f"failed: {titles}; what they printed says why, and the same command tries them again")


def _surveyed(*arguments: Any) -> Survey:
    """Return `tools.warmup.survey`, made in a process of its own, which takes its memory with it."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(_survey, *arguments).result()
        except BrokenProcessPool:
            raise UserError(
                "the warm-up was killed, perhaps for its memory; leave out what is too large by ONLY"
            ) from None


def _survey(*arguments: Any) -> Survey:
    from tools.warmup import survey

    return survey(*arguments)


def _only(text: str, every: Sequence[Benchmark]) -> list[Benchmark]:
    """Return the benchmarks whose task or data set the text names; all if it names none."""
    known = dict.fromkeys(word for benchmark in every for word in benchmark[:2])
    words = [cli.one_of("ONLY", known)(word) for word in text.replace(",", " ").split()]
    return [benchmark for benchmark in every if not words or {*benchmark[:2]} & {*words}]


def _records(args: argparse.Namespace, subjects: Sequence[Subject], wanted: Sequence[Benchmark]) -> Records:
    """Return the records that are there of these checkpoints."""
    found = {}
    for subject in subjects:
        sha256 = subject.sha256
        for benchmark in wanted:
            for variant in (None, ANY_SIZE):
                key = RecordKey(args.profile, benchmark.task, subject.name, benchmark.dataset, args.seed, variant)
                try:
                    record = read_record(key.path(args.results))
                except UserError:  # there is none, or it is damaged and its command says so
                    continue
                if record["provenance"]["checkpoint_sha256"] == sha256:
                    found[subject.name, benchmark] = record
    return found


def _say_plan(subjects: Sequence[Subject], chosen: Sequence[Benchmark], found: Survey, records: Records) -> None:
    """Print what will run for how long, what is recorded, and what is left out or refused and why."""
    total = 0.0
    for subject in subjects:
        print(f"\n{subject.name}: {subject.path}")
        for benchmark in chosen:
            work = found.work.get(benchmark)
            if (subject.name, benchmark) in records:
                said = "recorded"
            elif work is None:
                said = "cannot be read, see above"
            else:
                seconds = work.images / work.per_second
                total += seconds
                said = f"{work.images:>10,} images at {work.per_second:8.1f} a second: {_time(seconds)}"
            print(f"  {benchmark_name(*benchmark[:2], ''):<28} {said}")
    for benchmark, why in found.left_out.items():
        print(f"left out: {benchmark_name(*benchmark[:2], '')}: {why}")
    for name, why in found.refused.items():
        print(f"refused: {name}: {why}")
    print(f"in all about {_time(total)}, besides the fits of recognition and the start of each command", flush=True)


def _time(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def _measuring(args: argparse.Namespace, subjects: Sequence[Subject], chosen: Sequence[Benchmark]) -> Iterator[Command]:
    """Yield a command for every checkpoint and task, and for every data set of a task that trains."""
    many = ["tools.launch", "--standalone", "--nproc_per_node", str(args.gpus), "-m"] if args.gpus > 1 else []
    ranks = ["--launcher", "pytorch"] if many else []
    training = ["--resume", *(["--overwrite"] if args.overwrite else []), *ranks]
    own = _own(args)
    dense = [*training, *own, *(["--classes", args.classes] if args.classes else [])]
    for subject in subjects:
        about = [*_common(args), *_checkpoint(args, [subject])]
        groups: dict[tuple[str, str], list[Benchmark]] = {}
        for one in chosen:
            groups.setdefault((one.task, one.layout), []).append(one)
        for (task, layout), those in groups.items():
            datasets = own or ["--dataset", " ".join(one.dataset for one in those)]
            words = {
                "knn": ["pretrain.knn", *about, *own],
                "linear": [*many, "pretrain.linear", *about, *training, *own],
                "recognition": ["transfer.run", *about, *datasets],
                "detection": [*many, "detection.train", *about, "--dataset", layout, *dense],
                "segmentation": [*many, "segmentation.train", *about, *dense],
            }[task]
            name = benchmark_name(*those[0][:2], "") if len(those) == 1 else task
            yield Command(f"{subject.name}: {name}", words, subject.name, those)


def _closing(args: argparse.Namespace, subjects: Sequence[Subject], chosen: Sequence[Benchmark]) -> Iterator[Command]:
    """Yield what is done once for all checkpoints: the geometry of their features on kNN's images, tables and page."""
    reports = ["--reports", str(args.reports)]
    for view in (benchmark.view for benchmark in chosen if benchmark.task == "knn"):
        size = ["--size", str(view[0])] if view and args.data_root else []
        words = ["analysis.geometry", *_common(args), *_checkpoint(args, subjects), *_own(args), *size, *reports]
        yield Command("geometry", words)
    yield Command("tables and page", ["analysis.report", *_common(args), *reports])


def _own(args: argparse.Namespace) -> list[str]:
    return [] if args.data_root is None else ["--data-root", str(args.data_root)]


def _common(args: argparse.Namespace) -> list[str]:
    names = ("profile", "seed", "data", "checkpoints", "results", "runs")
    return [word for name in names for word in (f"--{name}", str(getattr(args, name)))]


def _checkpoint(args: argparse.Namespace, subjects: Sequence[Subject]) -> list[str]:
    """Return the words that name the checkpoints: the user's, or our methods."""
    if args.checkpoint is not None:
        [theirs] = subjects
        key = [] if theirs.key is None else ["--key", theirs.key]
        return ["--checkpoint", str(theirs.path), "--name", theirs.name, *key]
    return ["--method", " ".join(subject.name for subject in subjects)]


def _print_table(
    subjects: Sequence[Subject],
    wanted: Sequence[Benchmark],
    chosen: Sequence[Benchmark],
    records: Records,
    failed: Sequence[Command],
) -> None:
    """Print a row for every benchmark, with its metrics of every checkpoint."""
    # A record of a failed command is an old one, or of a data set that did not fail.
    lost = {(command.name, *command.measures) for command in failed}
    rows = [("", "", *(subject.name for subject in subjects))]
    for benchmark in wanted:
        mine = {name: record["metrics"] for (name, one), record in records.items() if one == benchmark}
        metrics = [metric for metric in METRICS if any(metric in numbers for numbers in mine.values())]
        cells = []
        for subject in subjects:
            if subject.name in mine and (subject.name, benchmark) not in lost:
                cells.append(" / ".join(f"{mine[subject.name][metric]:.2f}" for metric in metrics))
            else:
                cells.append("failed" if benchmark in chosen else "left out")
        names = " / ".join(METRIC_NAMES.get(metric, metric) for metric in metrics)
        rows.append((benchmark_name(*benchmark[:2], ""), names, *cells))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    print()
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


if __name__ == "__main__":
    cli.run(main, interrupted="the same command continues")
