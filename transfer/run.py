"""Evaluate checkpoints on image recognition data sets.

Several data sets or checkpoints are a suite, which any number of processes and machines may share by running the same
command on the same results folder.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from common import cli
from common.errors import UserError, last_line
from common.files import sha256_of_file, sha256_of_text
from common.records import RecordKey
from common.run import Subject
from common.sources import SOURCES, NotPublishedError, add_folder, known, own_data, suite
from transfer.datasets import load, read_split
from transfer.job import Transfer
from transfer.settings import SETTINGS
from transfer.suite import ANY_SIZE, MODULE, conclude, in_turn, submit

EXAMPLES = """
make transfer DATASET=digits
make transfer-all METHOD=all PROFILE=imagenet DATA=/data
make transfer DATASET='dtd pets' CHECKPOINT=resnet50.pth NAME=mine PROFILE=imagenet ARGS='--amp bf16'
"""


def main(argv: list[str] | None = None) -> None:
    """Run the command line. Raises UserError, after trying all, naming what is missing or failed."""
    argv = sys.argv[1:] if argv is None else argv
    parser = cli.parser(MODULE, __doc__ or "", EXAMPLES, reads_checkpoint=True)
    parser.add_argument("--dataset", default="all", help="one or several data sets of the profile, or all")
    parser.add_argument("--data-root", type=cli.path, help="this folder instead: train/ and val/, a folder per class")
    parser.add_argument(
        "--split-file", type=cli.path, help="JSON lists of caltech101's train and test images, to use instead"
    )
    parser.add_argument("--amp", nargs="?", const="fp16", choices=("fp16", "bf16"), help="mixed precision features")
    parser.add_argument(
        "--workers",
        type=cli.whole("--workers", 0),
        help="processes that read images (by default the cores, at most 16; for few images none)",
    )
    parser.add_argument(
        "--launcher", default="none", choices=("none", "slurm"), help="slurm: an array job, a task a run"
    )
    parser.add_argument("--sbatch-args", default="", help="more options of sbatch, as one word")
    parser.add_argument("--job", type=int, help="do this one alone, by its number (an array job's tasks)")
    args = parser.parse_args(argv)
    if args.data_root is None:
        names = _dataset_list(args.dataset, args.profile)
    else:
        names = [add_folder(args.data_root, args.profile)]
    if args.split_file is not None:
        _check_split_file(args.split_file, names)
    pairs = [(subject, name) for subject in cli.subjects(args) for name in names]
    if args.job is not None:
        if not 0 <= args.job < len(pairs):
            raise UserError(f"--job {args.job} is not one of the {len(pairs)} jobs, 0 to {len(pairs) - 1}")
        pairs = [pairs[args.job]]
    cli.announce(MODULE, args, runs=args.runs)
    own = own_data(args.data_root)
    jobs = _with_sizes_told([resolve(args, subject, name, own) for subject, name in pairs])
    if args.launcher == "slurm":
        submit(jobs, argv, args.sbatch_args)
    elif len(jobs) == 1:
        in_turn(jobs, alone=True)
    else:
        conclude(jobs, in_turn(jobs))


def resolve(args: argparse.Namespace, subject: Subject, dataset: str, own: Sequence[str]) -> Transfer:
    """Return the run of a checkpoint on a data set as the arguments want it; `own` is of `own_data`.

    The variant of its record keeps it from being mistaken for, or tabled with, the protocol's own.
    """
    amp = [args.amp] if args.amp else []
    split = [] if args.split_file is None else [sha256_of_file(args.split_file)]
    return Transfer(
        key=RecordKey(
            args.profile, "recognition", subject.name, dataset, args.seed, _variant(args.split_file, args.amp)
        ),
        subject=subject,
        settings=sha256_of_text(SETTINGS, SOURCES[dataset].settings, *split, *amp, *own),
        folders=cli.folders(args),
        split_file=args.split_file,
        amp=args.amp,
        workers=args.workers,
    )


def _variant(split_file: Path | None, amp: str | None, any_size: bool = False) -> str | None:
    split = None if split_file is None else f"split-{sha256_of_file(split_file)[:8]}"
    words = [split, ANY_SIZE if any_size else None, amp]
    return "-".join(word for word in words if word) or None


def _with_sizes_told(jobs: Sequence[Transfer]) -> list[Transfer]:
    """Return the jobs, those of a data set without records that is there, but not the published one, as `any_size`."""
    other = {
        name
        for name in dict.fromkeys(job.key.dataset for job in jobs)
        if _is_of_other_size([job for job in jobs if job.key.dataset == name])
    }
    return [
        replace(job, any_size=True, key=replace(job.key, variant=_variant(job.split_file, job.amp, any_size=True)))
        if job.key.dataset in other
        else job
        for job in jobs
    ]


def _is_of_other_size(jobs: Sequence[Transfer]) -> bool:
    """Return whether the jobs' data set is there, but not the published one, after saying so."""
    if all(job.place.is_file() for job in jobs):
        return False
    try:
        load(jobs[0].key.dataset, jobs[0].folders.data, jobs[0].split_file)
    except NotPublishedError as error:
        print(f"warning: {last_line(error)}; until then its records are of the variant {ANY_SIZE}", flush=True)
        return True
    except Exception:  # which its job will meet and report, and the other jobs need not
        return False
    return False


def _check_split_file(path: Path, names: list[str]) -> None:
    if names != ["caltech101"]:
        raise UserError(f"--split-file {path} lists images of caltech101: use it with DATASET=caltech101 alone")
    read_split(path)


def _dataset_list(text: str, profile: str) -> list[str]:
    words = suite(profile) if text == "all" else text.replace(",", " ").split()
    for source in (SOURCES[word] for word in words if word in SOURCES and word not in known(profile)):
        if source.profiles:
            raise UserError(
                f"DATASET {source.title} is not in the profile {profile}; add PROFILE={' or '.join(source.profiles)}"
            )
    check = cli.one_of("DATASET", (*known(profile), "all"))
    return [check(word) for word in words] or [check("")]


if __name__ == "__main__":
    cli.run(main, interrupted="the same command continues")
