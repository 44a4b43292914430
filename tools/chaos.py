"""Every stage of the demo under faults: each is resumed, and what it leaves is compared with an undisturbed run.

make chaos SEED=0 FAULTS=224; a run that was stopped goes on where it was. Linux only.
"""

import argparse
import ctypes
import hashlib
import importlib
import json
import multiprocessing
import os
import pkgutil
import random
import re
import resource
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from common import cli
from common.errors import UserError
from common.files import only_here, sha256_of_file, sha256_of_text, write_json

FAULTS = ("kill", "term", "full", "unreadable", "truncate", "flip", "twice")
METHODS = ("--method", "simsiam simsiam_gsg")
DENSE = ("--method", "byol")  # a ResNet-18, where the others are as small as they get
EPOCHS = ("train_cfg.max_epochs=2", "train_dataloader.batch_size=16", "default_hooks.progress.interval=1")
ITERATIONS = ("train_cfg.max_iters=3", "train_dataloader.batch_size=2", "default_hooks.progress.interval=1")
TINY = ("model.backbone.name=test_resnet", "model.projector.dim=16", "model.predictor.hidden_dim=8")
SAVING = "default_hooks.checkpoint.interval={}"  # steps


class Stage(NamedTuple):
    """A command, its arguments, the changes of its config, and whether it takes --resume."""

    name: str
    module: str
    arguments: tuple[str, ...]
    options: tuple[str, ...] = ()
    resumes: bool = False


STAGES = (
    Stage("pretrain", "pretrain.train", METHODS, (*EPOCHS, *TINY, SAVING.format(2)), resumes=True),
    # In batches as the transfer suite's, which shares the features: they depend on the batch in their last bits.
    Stage("knn", "pretrain.knn", METHODS, ("evaluation.batch_size=64",)),
    Stage("linear", "pretrain.linear", METHODS, (*EPOCHS, SAVING.format(2)), resumes=True),
    Stage("transfer", "transfer.run", ("--method", "simsiam_gsg", "--dataset", "all")),
    Stage(
        "detection",
        "detection.train",
        (*DENSE, "--dataset", "voc"),
        (
            *ITERATIONS,
            SAVING.format(1),
            "train_dataloader.dataset.pipeline.2.scale=(64,64)",
            "test_dataloader.dataset.pipeline.1.scale=(64,64)",
        ),
        resumes=True,
    ),
    Stage(
        "segmentation",
        "segmentation.train",
        DENSE,
        (*ITERATIONS, SAVING.format(1), "model.decode_head.channels=16"),
        resumes=True,
    ),
    Stage("tables", "analysis.tables", ()),
    Stage("report", "analysis.report", ()),
)
# What the dense stages evaluate.
PREPARATION = Stage(
    "preparation", "pretrain.train", DENSE, ("train_cfg.max_epochs=1", "train_dataloader.batch_size=35")
)
SCENES = {"train": 20, "val": 10, "test": 10}  # with every class, as the transfer suite wants
DIGITS = {"train": 7, "test": 4}  # of each class

DISK = 2**30  # bytes of the tmpfs that a stage runs on
ROOM_LEFT = (0, 2**14, 2**21)  # bytes, on a disk that is filled
LIMIT = 150.0  # seconds after which a stage hangs; a damaged claim is waited for for 60
FILE_LIMIT = 2**13  # bytes of a file where no tmpfs can be mounted
# What a run may leave in another way than an undisturbed one: logs for people, hidden files, TensorBoard's events,
# mmengine's absolute path of the last checkpoint.
INCOMPARABLE = re.compile(r"(^|/)(\.|events\.out|vis_data/|last_checkpoint$)|\.log$|(^|/)\d{8}_\d{6}/")
RESUME_FILE = re.compile(r"(iter|epoch)_\d+\.pth$")
TIMES = ("images_per_s", "seconds", "time", "data_time", "created", "started", "git_commit", "git_dirty", "host")
OPERATIONS = ("open", "os.rename", "os.remove", "os.truncate", "os.mkdir")
CONTEXT: Any = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Fault:
    """What happens to a stage, and when: at a share of its operations on files, or of its seconds."""

    index: int
    stage: Stage
    kind: str
    by_file: bool
    share: float
    draw: str  # the seed of all else

    def __str__(self) -> str:
        return f"{self.kind} at {self.share:.0%} of its {'file operations' if self.by_file else 'seconds'}"


class Ended(NamedTuple):
    """How a process of a stage ended: its exit code (None: it had to be stopped), and what it printed."""

    code: int | None
    said: str
    operations: int
    seconds: float

    @property
    def last(self) -> str:
        """The last line that it printed."""
        return (self.said.strip().splitlines() or [""])[-1]


class Undisturbed(NamedTuple):
    """What a stage leaves undisturbed, what it touches, how many operations on files that took, and seconds."""

    products: dict[str, str]
    touched: list[str]
    operations: int
    seconds: float


def plan(seed: int, count: int, stages: Sequence[Stage]) -> list[Fault]:
    """Return `count` faults: every stage meets every kind; then all but the slowest, the page, meet them again."""
    draw = random.Random(f"plan {seed}")  # noqa: S311  (no secret)
    pairs: list[tuple[Stage, str]] = []
    while len(pairs) < count:
        fresh = [(stage, kind) for stage in stages for kind in FAULTS if not (pairs and stage.name == "report")]
        draw.shuffle(fresh)
        pairs += fresh
    return [
        Fault(index, stage, kind, kind != "twice" and draw.random() < 0.6, draw.random(), f"{seed}-{index}")
        for index, (stage, kind) in enumerate(pairs[:count])
    ]


# The fault itself


class Disk:
    """The folder that a stage runs in, and how it is filled."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.root = folder / "space"
        self.root.mkdir(exist_ok=True)
        self.mounted = mount_tmpfs(self.root)

    @property
    def filler(self) -> Path:
        """The file that fills it."""
        return self.root / ".filler"

    def start(self, snapshot: Path) -> None:
        """Make it a copy of `snapshot`, times of files included."""
        for path in self.root.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        shutil.copytree(snapshot, self.root, dirs_exist_ok=True)

    def fill(self, process: int, draw: random.Random) -> None:
        """Leave the process next to no room."""
        if not self.mounted:
            resource.prlimit(process, resource.RLIMIT_FSIZE, (FILE_LIMIT, resource.RLIM_INFINITY))
            return
        kept, full = draw.choice(ROOM_LEFT), False
        with open(self.filler, "wb") as stream:
            while not full:  # the process may write meanwhile
                left = os.statvfs(self.root)
                with suppress(OSError):
                    os.posix_fallocate(stream.fileno(), 0, max(left.f_bavail * left.f_frsize - kept, 1))
                    full = True

    def mend(self) -> None:
        """Empty a disk that was filled and make every file readable again."""
        self.filler.unlink(missing_ok=True)
        for path in self.files():
            if path.stat().st_mode & 0o777 == 0:
                path.chmod(0o644)

    def files(self) -> Iterator[Path]:
        """Yield all files, hidden ones too, in order."""
        return (path for path in sorted(self.root.rglob("*")) if path.is_file() and path != self.filler)


def mount_tmpfs(folder: Path) -> bool:
    """Mount a small file system that ends with this process; return whether this user may."""
    new_namespace = 0x00020000
    if ctypes.CDLL(None).unshare(new_namespace) != 0:
        return False
    commands = (["--make-rprivate", "/"], ["-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(folder)])
    return all(subprocess.run(["mount", *c], check=False, capture_output=True).returncode == 0 for c in commands)


def end_with_parent() -> None:
    """Let the system kill this process when the one that started it ends: nothing of a stopped run goes on."""
    die_with_parent = 1
    ctypes.CDLL(None).prctl(die_with_parent, signal.SIGKILL)


def obey_permissions() -> None:
    """Give up root's right to read and write every file."""
    if os.geteuid() == 0:
        header = (ctypes.c_uint32 * 2)(0x20080522, 0)
        data = (ctypes.c_uint32 * 6)()
        libc = ctypes.CDLL(None)
        libc.capget(header, data)
        data[0] &= ~0b110  # of the effective capabilities, DAC_OVERRIDE and DAC_READ_SEARCH
        if libc.capset(header, data) != 0:
            raise UserError("cannot give up root's rights, so that no file is unreadable; run as another user")


def strike(kind: str, disk: Disk, process: int, draw: random.Random, path: Path | None = None) -> bool:
    """Let the fault happen to the process, which is about to touch `path`; return whether it could."""
    if kind == "term":
        os.kill(process, signal.SIGTERM)
    elif kind == "full":
        disk.fill(process, draw)
    elif kind == "unreadable":
        victim = path or draw.choice([*disk.files()])
        if not victim.is_file():
            return False
        victim.chmod(0)
    else:  # what is damaged is damaged after a kill
        os.killpg(process, signal.SIGKILL)
    return True


def newest(disk: Disk, snapshot: Path, touched: Sequence[str], draw: random.Random) -> tuple[Path | None, bool]:
    """Return the newest file of a kind that can be damaged, and whether the stage wrote it, or else reads it."""
    kinds = {
        "checkpoint": lambda name: name.endswith(".pth"),
        "cache": lambda name: "/features/" in name and not name.endswith(".lock"),
        "claim": lambda name: name.endswith(".claim"),
        "record": lambda name: name.startswith("results/") and name.endswith(".json"),
    }

    def written(path: Path) -> bool:
        before = snapshot / path.relative_to(disk.root)
        return not before.is_file() or before.stat().st_mtime_ns != path.stat().st_mtime_ns

    files = [path for path in disk.files() if path.stat().st_size]
    for mine in (True, False):
        found = []
        for fits in kinds.values():
            those = [f for f in files if fits(str(f.relative_to(disk.root))) and written(f) == mine]
            those = [f for f in those if mine or str(f.relative_to(disk.root)) in touched]
            if those:
                found.append(max(those, key=lambda f: (f.stat().st_mtime_ns, f)))
        if found:
            return draw.choice(found), mine
    return None, False


def damage(path: Path, kind: str, draw: random.Random) -> None:
    """Cut the file at a random byte, or flip one of its bits."""
    size = path.stat().st_size
    if kind == "truncate":
        os.truncate(path, draw.randrange(size))
        return
    with open(path, "r+b") as stream:
        place = draw.randrange(size)
        stream.seek(place)
        byte = stream.read(1)[0]
        stream.seek(place)
        stream.write(bytes([byte ^ 1 << draw.randrange(8)]))


# A stage


def _stage(
    stage: Stage, words: list[str], root: Path, output: Path, operations: Any, at: Callable[[int, Path], None]
) -> None:
    """Be the process of a stage, as `python -m` makes it; call `at` before each of its operations on files."""
    end_with_parent()
    os.setsid()
    os.chdir(root)
    with open(output, "wb") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115  (for as long as the process lives)
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    obey_permissions()

    def watch(event: str, args: tuple[Any, ...]) -> None:
        if event in OPERATIONS and isinstance(args[0], str | bytes | os.PathLike) and os.getpid() == me:
            path = os.path.abspath(os.fsdecode(args[0]))
            if path.startswith(f"{root}/"):
                operations.value += 1
                at(operations.value, Path(path))

    me = os.getpid()
    sys.addaudithook(watch)
    sys.argv = [stage.module, *words]
    sys.modules.pop(stage.module, None)
    runpy.run_module(stage.module, run_name="__main__", alter_sys=True)


def _nothing(number: int, path: Path) -> None:
    """Let no fault happen."""


class Running:
    """A process of a stage."""

    def __init__(
        self,
        stage: Stage,
        disk: Disk,
        output: Path,
        *,
        resume: bool = False,
        at: Callable[[int, Path], None] = _nothing,
    ) -> None:
        words = ["--profile", "demo", *stage.arguments, *(["--resume"] if resume and stage.resumes else [])]
        words += ["--cfg-options", *stage.options] if stage.options else []
        self.output, self._started, self._operations = output, time.monotonic(), CONTEXT.RawValue("l", 0)
        self._process = CONTEXT.Process(target=_stage, args=(stage, words, disk.root, output, self._operations, at))
        self._process.start()
        self.number: int = self._process.pid

    def wait(self, seconds: float) -> bool:
        """Wait so long, or until it ends; return whether it has."""
        self._process.join(max(seconds, 0))
        return self._process.exitcode is not None

    def end(self) -> Ended:
        """Return how it ended; one that takes longer than LIMIT is stopped."""
        try:
            self.wait(LIMIT)
        finally:
            code = self._process.exitcode
            if code is None:
                os.killpg(self.number, signal.SIGKILL)
                self._process.join()
        said = self.output.read_text(errors="replace") if self.output.is_file() else ""
        return Ended(code, said, self._operations.value, time.monotonic() - self._started)


def products(root: Path) -> dict[str, str]:
    """Return a digest of every file that must be the same after a fault; of resume files how many there are."""
    found: dict[str, str] = {}
    resumable: Counter[str] = Counter()
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if not path.is_file() or name.startswith("data/") or INCOMPARABLE.search(name):
            continue
        if RESUME_FILE.search(name):
            resumable[str(Path(name).parent)] += 1
        else:
            found[name] = digest(path)
    return found | {f"{folder}: resume files": str(count) for folder, count in resumable.items()}


def digest(path: Path) -> str:
    """Return a digest of the contents, times and hosts aside; of the bytes if they cannot be read."""
    try:
        return digest_of_content(path)
    except Exception:  # a damaged file raises nearly anything
        return f"damaged, {sha256_of_file(path)}"


def digest_of_content(path: Path) -> str:
    """Return a digest of the contents, times and hosts aside."""
    if path.suffix == ".pth":
        import torch

        content = torch.load(path, map_location="cpu", weights_only=True)
        tensors = content["state_dict"]
        total = hashlib.sha256(json.dumps(plain(content.get("meta")), sort_keys=True, default=str).encode())
        for key in sorted(tensors):
            total.update(f"{key} {tensors[key].dtype} {tuple(tensors[key].shape)}".encode())
            total.update(tensors[key].contiguous().view(-1).view(torch.uint8).numpy())
        return total.hexdigest()
    if path.suffix in (".json", ".jsonl"):
        lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
        return sha256_of_text(*(json.dumps(plain(json.loads(line)), sort_keys=True) for line in lines))
    if path.suffix == ".py":  # a config
        return sha256_of_text(re.sub(r"(?m)^(resume|load_from|experiment_name) *=.*$", "", path.read_text()))
    return sha256_of_file(path)


def plain(value: Any) -> Any:
    """Return JSON content without times and hosts; nor hashes of what holds them."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items() if key not in (*TIMES, "checkpoint_sha256", "sha256")}
    return [plain(item) for item in value] if isinstance(value, list) else value


def differences(wanted: dict[str, str], found: dict[str, str]) -> list[str]:
    """Return a line for each product that is missing, other or too many. Fewer resume files are no loss."""
    lines = []
    for name in sorted({*wanted, *found}):
        if name.endswith(": resume files"):
            if int(found.get(name, 0)) > int(wanted.get(name, 0)):
                lines.append(f"{name}: {found[name]}, not {wanted.get(name, 0)}")
        elif wanted.get(name) != found.get(name):
            kind = "is missing" if name not in found else "is left over" if name not in wanted else "differs"
            lines.append(f"{name} {kind}")
    return lines


# The undisturbed run, the disturbed one, and what is lost


def run_undisturbed(folder: Path, stages: Sequence[Stage]) -> None:
    """Run the stages in turn, twice each, after pretraining.

    In `folder` stays what was there before each, and what each leaves.

    Raises UserError if a stage fails, or if its two runs leave different things.
    """
    disk, found = Disk(folder), {}
    make_data(disk.root / "data")
    needed = [stage for stage in STAGES if stage in stages or stage.name == "pretrain"]
    for stage in (*[PREPARATION] * any(stage.arguments[:2] == DENSE for stage in stages), *needed):
        before = folder / "before" / stage.name
        shutil.rmtree(before, ignore_errors=True)
        shutil.copytree(disk.root, before)
        left, touched = [], folder / "touched"
        touched.unlink(missing_ok=True)
        for _ in range(2 if stage in stages else 1):
            disk.start(before)
            note = partial(_note, touched, disk.root)
            ended = Running(stage, disk, folder / "undisturbed.log", at=note).end()
            if ended.code != 0 or "Traceback" in ended.said:
                raise UserError(f"{stage.name} fails undisturbed, code {ended.code}: {ended.last}")
            left.append(products(disk.root))
        if lines := differences(left[0], left[-1]):
            raise UserError(f"{stage.name} differs undisturbed: {'; '.join(lines)}")
        names = sorted({*touched.read_text().splitlines()})
        found[stage.name] = Undisturbed(left[0], names, ended.operations, ended.seconds)
        print(f"undisturbed: {stage.name} {ended.seconds:.1f} s, {ended.operations} operations on files", flush=True)
    write_json(folder / "undisturbed.json", {name: values._asdict() for name, values in found.items()})


def _note(file: Path, root: Path, number: int, path: Path) -> None:
    with open(file, "a") as stream:
        stream.write(f"{path.relative_to(root)}\n")


def read_undisturbed(folder: Path) -> dict[str, Undisturbed]:
    """Return what each stage leaves undisturbed."""
    return {name: Undisturbed(**v) for name, v in json.loads((folder / "undisturbed.json").read_text()).items()}


def make_data(data: Path) -> None:
    """Write the demo's data: few scenes, few digits."""
    from common import embedded

    embedded.SCENES = SCENES
    embedded.ensure_embedded(data)
    for split, count in DIGITS.items():
        for folder in (data / "demo" / "digits" / split).iterdir():
            for path in sorted(folder.iterdir())[count:]:
                path.unlink()


def run_fault(fault: Fault, disk: Disk, folder: Path, wanted: Undisturbed, logs: Path) -> tuple[str, list[str]]:
    """Disturb a stage, resume it and compare. Return what happened, in words, and what was lost."""
    draw = random.Random(fault.draw)  # noqa: S311  (no secret)
    stage, before = fault.stage, folder / "before" / fault.stage.name
    disk.start(before)
    logs.mkdir(parents=True, exist_ok=True)
    ends = disturb(fault, disk, wanted, logs, draw)
    lost = [line for end in ends for line in misbehaved(fault, end)]
    if fault.kind == "twice" and all(end.code for end in ends):
        lost.append("of two at once, none ended well")
    disk.mend()
    said, victim = str(fault), None
    if fault.kind in ("truncate", "flip"):
        victim, more = damage_newest(fault, disk, before, wanted, logs, draw)
        said += f", then of {victim.relative_to(disk.root)}"
        lost += more
    lost += resume(stage, disk, victim, logs)
    if not lost:
        lost += differences(wanted.products, products(disk.root))
    return said, lost


def damage_newest(
    fault: Fault, disk: Disk, before: Path, wanted: Undisturbed, logs: Path, draw: random.Random
) -> tuple[Path, list[str]]:
    """Damage what a killed stage wrote last, or else an input. Return the file, and what is lost by an input's."""
    victim, mine = newest(disk, before, wanted.touched, draw)
    if victim is None:  # it was killed too early
        Running(fault.stage, disk, logs / "whole.log", resume=True).end()
        victim, mine = newest(disk, before, wanted.touched, draw)
    if victim is None:
        raise RuntimeError(f"{fault.stage.name} leaves no file to damage")
    name, lost = str(victim.relative_to(disk.root)), []
    damage(victim, fault.kind, draw)
    if not mine:  # it must be named, or do no harm, and is then restored
        end = Running(fault.stage, disk, logs / "damaged.log", resume=True).end()
        lost = misbehaved(fault, end)
        changed = [line for line in differences(wanted.products, products(disk.root)) if not line.startswith(name)]
        if name not in end.said and end.code == 0 and changed:
            lost.append(f"a damaged {name} changes the products, and nothing says so")
        shutil.copy2(before / name, victim)
    elif "/features/" in name:  # what was made of it goes, or nothing would read it
        for path in [*disk.root.glob("results/**/*"), *disk.root.glob("reports/**/*")]:
            if path.is_file() and not (before / path.relative_to(disk.root)).is_file():
                path.unlink()
    return victim, lost


def disturb(fault: Fault, disk: Disk, wanted: Undisturbed, logs: Path, draw: random.Random) -> list[Ended]:
    """Run the stage and let the fault happen to it. Return how its processes ended."""
    target = 1 + int(fault.share * wanted.operations)
    struck: list[int] = []

    def at(number: int, path: Path) -> None:
        if fault.by_file and number >= target and not struck:
            struck.append(number)  # first, for the fault has operations of its own
            if not strike(fault.kind, disk, os.getpid(), draw, path):
                struck.clear()

    run = Running(fault.stage, disk, logs / "disturbed.log", at=at)
    if fault.by_file or run.wait(fault.share * wanted.seconds):
        return [run.end()]
    if fault.kind == "twice":
        second = Running(fault.stage, disk, logs / "second.log", resume=True)
        return [run.end(), second.end()]
    with suppress(ProcessLookupError):
        strike(fault.kind, disk, run.number, draw)
    return [run.end()]


def misbehaved(fault: Fault, end: Ended) -> list[str]:
    """Return what is wrong with the end of a disturbed process."""
    if end.code is None:
        return [f"hangs for more than {LIMIT:.0f} s"]
    lost = ["ends in a traceback"] if "Traceback (most recent call last)" in end.said else []
    killed = {"kill": -signal.SIGKILL, "truncate": -signal.SIGKILL, "flip": -signal.SIGKILL, "term": -signal.SIGTERM}
    if end.code in (0, killed.get(fault.kind)) or (fault.kind == "term" and end.code == 128 + signal.SIGTERM):
        return lost
    if end.code != 1 or not re.search(r"(?m)^error: .+", end.said):
        lost.append(f"ends with {end.code}, and no error's line: {end.last}")
    return lost


def resume(stage: Stage, disk: Disk, victim: Path | None, logs: Path) -> list[str]:
    """Run the stage again until it ends well, doing what its errors ask for. Return what was lost."""
    for attempt in ("resumed", "again", "finally"):
        end = Running(stage, disk, logs / f"{attempt}.log", resume=True).end()
        if end.code is None:
            return [f"hangs for more than {LIMIT:.0f} s when resumed"]
        if "Traceback (most recent call last)" in end.said:
            return [f"ends in a traceback when resumed: {end.last}"]
        if end.code == 0:
            return []
        # Errors that name the damaged file all say to delete it, or to make it again.
        if victim is None or str(victim.relative_to(disk.root)) not in end.said or not victim.is_file():
            break
        victim.unlink()
    return [f"cannot be resumed, code {end.code}: {end.last}"]


# Many


def work(number: int, folder: Path, faults: Sequence[Fault], wanted: dict[str, Undisturbed], results: Path) -> None:
    """Let every fault happen that the other workers leave to this one, and append a line of each to `results`."""
    disk = Disk(folder / f"worker{number}")
    for fault in faults:
        try:
            (folder / "taken" / str(fault.index)).touch(exist_ok=False)
        except FileExistsError:
            continue
        started, logs = time.monotonic(), folder / "losses" / str(fault.index)
        try:
            said, lost = run_fault(fault, disk, folder, wanted[fault.stage.name], logs)
        except Exception as error:  # of ours; the other faults are worth their time
            said, lost = str(fault), [f"the harness fails: {error!r}"]
        line = {"index": fault.index, "stage": fault.stage.name, "fault": fault.kind, "what": said, "lost": lost}
        line["seconds"] = round(time.monotonic() - started, 2)
        with open(results, "a") as stream:
            stream.write(json.dumps(line) + "\n")
        if not lost:
            shutil.rmtree(logs)
    if disk.mounted:
        subprocess.run(["umount", str(disk.root)], check=False)


def read_results(path: Path) -> dict[int, dict[str, Any]]:
    """Return the lines of `path` by the fault's index; a last one that is not whole is left out."""
    found = {}
    for line in path.read_text().splitlines() if path.is_file() else []:
        with suppress(ValueError):
            entry = json.loads(line)
            found[entry["index"]] = entry
    return found


def table(faults: Sequence[Fault], results: dict[int, dict[str, Any]]) -> str:
    """Return how many faults each stage met, and how many of them it lost."""
    kinds = [kind for kind in FAULTS if any(fault.kind == kind for fault in faults)]
    lines = ["stage         " + "".join(f"{kind:>12}" for kind in kinds)]
    for stage in dict.fromkeys(fault.stage.name for fault in faults):
        cells = []
        for kind in kinds:
            those = [r for r in results.values() if (r["stage"], r["fault"]) == (stage, kind)]
            lost = sum(bool(r["lost"]) for r in those)
            cells.append(f"{len(those)}{f' ({lost} lost)' if lost else ''}")
        lines.append(f"{stage:<14}" + "".join(f"{cell:>12}" for cell in cells))
    return "\n".join(lines)


def warm_up() -> None:
    """Import what the stages do, once for all of them: every process of a stage is a fork of this one."""
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)
    from yapf.yapflib import yapf_api

    yapf_api.FormatCode = lambda text, **_: (text, True)  # with it, dumping configs is most of a tiny run's time
    for room in ("pretrain", "transfer", "detection", "segmentation", "analysis"):
        package = importlib.import_module(room)
        getattr(package, "register", lambda: None)()
        for module in pkgutil.iter_modules(package.__path__, f"{room}."):
            importlib.import_module(module.name)


def state_of_code() -> str:
    """Return a digest of the code, whose results are not mixed with another's."""
    root = Path(__file__).parents[1]
    rooms = ("common", "pretrain", "transfer", "detection", "segmentation", "analysis", "tools")
    return sha256_of_text(*(sha256_of_file(f) for room in rooms for f in sorted((root / room).rglob("*.py"))))


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    names = [stage.name for stage in STAGES]
    parser = cli.Parser(
        "tools.chaos", __doc__ or "", "make chaos SEED=0 FAULTS=224\nmake chaos ARGS='--stages knn report'"
    )
    parser.add_argument("--seed", type=cli.seed, default=0, help="seed of the faults")
    parser.add_argument("--faults", type=cli.whole("FAULTS", 1), default=224, help="how many, over all stages")
    parser.add_argument("--only", type=cli.whole("--only", 0), help="let this one happen alone, by its number")
    parser.add_argument(
        "--stages", nargs="+", metavar="STAGE", default=names, choices=names, help=f"to disturb: {', '.join(names)}"
    )
    parser.add_argument("--jobs", type=cli.whole("--jobs", 1), default=os.cpu_count() or 1, help="faults at a time")
    parser.add_argument(
        "--work", type=cli.path, default=Path("runs/chaos"), help="where records of progress and logs go"
    )
    return parser.parse_args(argv)


def prepare(args: argparse.Namespace) -> Path:
    """Return the folder of this code's run, emptied if it holds another's or a finished one."""
    folder: Path = args.work.absolute() / f"seed{args.seed}"
    header = {"code": state_of_code(), "seed": args.seed, "faults": args.faults, "stages": args.stages}
    path = folder / "header.json"
    if not path.is_file() or json.loads(path.read_text()) != header:
        shutil.rmtree(folder, ignore_errors=True)
        write_json(path, header)
    return folder


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line. Raises UserError if something was lost."""
    args = arguments(argv)
    stages = [stage for stage in STAGES if stage.name in args.stages]
    with only_here(args.work):
        run(args, plan(args.seed, args.faults, stages), stages)


def run(args: argparse.Namespace, faults: list[Fault], stages: Sequence[Stage]) -> None:
    """Run those of the faults that are not done yet, and print the counts. Raises UserError if something was lost."""
    started = time.monotonic()
    if args.only is not None:
        faults = [fault for fault in faults if fault.index == args.only]
    folder = prepare(args)
    results = folder / "results.jsonl"
    print(f"[tools.chaos] {len(faults)} faults, seed {args.seed} -> {folder}", flush=True)
    if args.only is not None or len(read_results(results)) == args.faults:
        results.unlink(missing_ok=True)  # a finished run is repeated
    done = read_results(results)
    shutil.rmtree(folder / "taken", ignore_errors=True)
    (folder / "taken").mkdir()
    left = [fault for fault in faults if fault.index not in done]
    warm_up()
    if not (folder / "undisturbed.json").is_file():
        in_processes(1, lambda number: run_undisturbed(folder, stages))
    wanted = read_undisturbed(folder)
    in_processes(args.jobs, lambda number: work(number, folder, left, wanted, results))
    report(args, faults, read_results(results), folder, time.monotonic() - started)


def in_processes(count: int, action: Callable[[int], object]) -> None:
    """Call `action` in so many processes, with the number of each. Raises UserError if one fails."""
    processes = [CONTEXT.Process(target=_quietly, args=(action, number)) for number in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise UserError("a process of the harness failed; what it printed says why")


def _quietly(action: Callable[[int], object], number: int) -> None:
    end_with_parent()
    cli.run(lambda: action(number), interrupted="the same command goes on")


def report(
    args: argparse.Namespace,
    faults: Sequence[Fault],
    results: dict[int, dict[str, Any]],
    folder: Path,
    seconds: float,
) -> None:
    """Print losses and counts. Raises UserError if something was lost."""
    losses = [result for result in results.values() if result["lost"]]
    for loss in losses:
        stages = f" --stages {' '.join(args.stages)}" if len(args.stages) < len(STAGES) else ""
        print(f"\nlost: {loss['stage']}, {loss['what']}; seed {args.seed}, fault {loss['index']}")
        print("\n".join(f"  {line}" for line in loss["lost"]))
        print(f"  python -m tools.chaos --seed {args.seed} --faults {args.faults} --only {loss['index']}{stages}")
    print(f"\n{table(faults, results)}")
    print(f"{len(results)} faults, seed {args.seed}, {len(losses)} lost, {seconds:.0f} s", flush=True)
    if losses:
        raise UserError(f"{len(losses)} of {len(results)} faults lost something; their logs are in {folder / 'losses'}")


if __name__ == "__main__":
    cli.run(main, interrupted="the same command goes on")
