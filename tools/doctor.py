"""What is set up on this machine, what would fail, and what to do about it: one table. Nothing is changed."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from functools import partial
from importlib import import_module, metadata
from io import StringIO
from pathlib import Path
from subprocess import run
from typing import NamedTuple

try:
    import torch
    import torchvision
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name
    from packaging.version import Version

    from common import cli, download
    from common.errors import UserError, last_line
    from common.files import existing, require_writable
    from common.mmlab import ops
    from common.sources import SOURCES, NotPublishedError, make_data
except (ImportError, OSError) as missing:  # OSError: a library that torch needs
    sys.exit(f"error: {missing}; run `make setup`, which goes on where it was, or remove .venv before")

EXAMPLES = """
make doctor
make doctor DATA=/data
"""
LOCK = Path(__file__).parents[1] / "requirements.txt"
OF_GPUS = ("cuda-", "nvidia-", "triton")  # packages without which torch runs on a CPU
GB = 10**9
OK, NOTE, FAILS = "ok", "note", "FAILS"


class Check(NamedTuple):
    """A row of the table. `find` returns what is there and raises UserError for what is wrong, with the remedy."""

    name: str
    needed: bool  # else what is wrong is a note
    find: Callable[[], str]

    def status(self) -> tuple[str, str]:
        """Return OK, NOTE or FAILS, and a line that says why."""
        try:
            return OK, self.find()
        except NotPublishedError as error:  # a set of any size can be worked with
            return NOTE, str(error)
        except UserError as error:
            said = str(error)
        except Exception as error:  # a broken installation may raise anything; the other rows matter all the more then
            said = f"{type(error).__name__}: {last_line(error)}; run `make setup` after removing .venv"
        return FAILS if self.needed else NOTE, said


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table. Raises UserError naming the checks that fail."""
    parser = cli.parser("tools.doctor", __doc__ or "", EXAMPLES, unused="profile method seed")
    parser.add_argument("--reports", default="reports", type=cli.path, help="where tables, figures and pages live")
    args = parser.parse_args(argv)
    failed = []
    for check in checks(args.data, [args.data, args.checkpoints, args.results, args.runs, args.reports]):
        status, said = check.status()
        print(f"{check.name:<12} {status:<5} {said}", flush=True)
        failed += [check.name] if status == FAILS else []
    if failed:
        raise UserError(f"failed: {', '.join(failed)}; the table says what to do")


def checks(data: Path, folders: Sequence[Path]) -> Iterator[Check]:
    """Yield the rows for the data root `data` and the folders to which commands write."""
    yield Check("Python", True, python)
    yield Check("packages", True, packages)
    yield Check("torch", True, torch_build)
    yield Check("mmcv", True, operators)
    yield Check("GPU", False, gpus)
    yield Check("NCCL", False, nccl)
    yield Check("memory", True, memory)
    yield Check("shm", False, shared_memory)
    yield Check("disk", True, partial(disk, data))
    for folder in folders:
        yield Check(f"{folder.name}/", True, partial(writable, folder))
    for name, source in SOURCES.items():
        if not source.parts and not source.embedded:
            yield Check(name, (data / source.folder).exists(), partial(data_set, name, data))


def python() -> str:
    """Return the version and place of this Python."""
    said = f"{'.'.join(map(str, sys.version_info[:3]))}, {sys.executable}"
    if not (3, 11) <= sys.version_info[:2] <= (3, 14):
        raise UserError(f"{said}; take one from 3.11 to 3.14: make setup BASE_PYTHON=path")
    return said


def locked(lock: Path = LOCK) -> Mapping[str, Requirement]:
    """Return name -> the pin that the lock has for this Python and platform."""
    lines = (line.rstrip(" \\") for line in lock.read_text().splitlines() if line[:1] not in ("", " ", "#"))
    pins = [Requirement(line) for line in lines]
    return {canonicalize_name(pin.name): pin for pin in pins if pin.marker is None or pin.marker.evaluate()}


def packages() -> str:
    """Return how many packages of the lock are installed; for a CPU, those of GPUs may be missing."""
    pins = locked()
    has: dict[str, str] = {canonicalize_name(d.name): Version(d.version).public for d in metadata.distributions()}
    missing = [name for name in pins if name not in has and not name.startswith(OF_GPUS)]
    others = [
        f"{name} {has[name]} instead of {str(pin.specifier).removeprefix('==')}"
        for name, pin in pins.items()
        if name in has and not pin.specifier.contains(has[name])
    ]
    if missing or others:
        raise UserError(f"not as in {LOCK.name}: {', '.join([*others, *missing])}; run `make setup`")
    return f"the {len(pins)} of {LOCK.name}"


def torch_build() -> str:
    """Return torch's version, with the CUDA version that it was built for."""
    cuda = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
    return f"{torch.__version__} ({cuda}), torchvision {torchvision.__version__}"


def operators() -> str:
    """Return who provides mmcv's compiled operators, after a try of NMS."""
    ops.prepare()
    nms = import_module("mmcv.ops").nms
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 9.0]])
    if nms(boxes, torch.tensor([0.5, 0.9]), 0.5)[1].tolist() != [1]:
        raise UserError("NMS keeps the wrong boxes; reinstall mmcv, or remove its compiled operators")
    spec = sys.modules["mmcv._ext"].__spec__
    return f"{metadata.version('onedl-mmcv')}, operators: {spec.origin if spec else 'unknown'}"


def gpus() -> str:
    """Return the GPUs that torch sees, with their memory and driver."""
    driver = ""
    if shutil.which("nvidia-smi"):
        asked = run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True, text=True
        )
        driver = (
            f", driver {asked.stdout.split()[0]}" if asked.returncode == 0 and asked.stdout.split() else ", no driver"
        )
    if not torch.cuda.is_available():
        why = f"nvidia-smi is there{driver}: update the driver, or install torch for it" if driver else "no driver"
        raise UserError(f"torch sees none ({why}); everything runs on the CPU")
    found = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    return ", ".join(f"{one.name} {one.total_memory / GB:.0f} GB" for one in found) + driver


def nccl() -> str:
    """Return the version of NCCL, over which GPUs talk."""
    if not (torch.cuda.is_available() and torch.distributed.is_nccl_available()):
        raise UserError("none for GPUs; several processes talk over gloo")
    return ".".join(map(str, torch.cuda.nccl.version()))


def memory() -> str:
    """Return the machine's memory, or less where a container is given less."""
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else ""
    return _enough(min(found, int(text)) if text.isdecimal() else found, 2, "the demo needs 1.4 GiB a process")


def shared_memory() -> str:
    """Return the room in /dev/shm, where the processes of a loader leave their batches."""
    place = Path("/dev/shm")  # noqa: S108
    if not place.is_dir():
        return "not on this system"
    remedy = "loaders of large images need more: docker run --shm-size=16g"
    return _enough(shutil.disk_usage(place).free, 1, remedy)


def disk(data: Path) -> str:
    """Return the room where the data sets lie."""
    return _enough(shutil.disk_usage(existing(data)).free, 2, "make room, or choose another disk: DATA=folder")


def _enough(found: float, least: float, remedy: str) -> str:
    if found < least * GB:
        raise UserError(f"{found / GB:.1f} GB free; {remedy}")
    return f"{found / GB:.1f} GB"


def writable(folder: Path) -> str:
    """Return the folder's place, which files can be written to."""
    require_writable(folder)
    return str(folder.resolve())


def data_set(name: str, data: Path) -> str:
    """Return what a data set holds, which is compared with what is published."""
    if not (data / SOURCES[name].folder).exists():
        raise UserError(f"missing; {make_data(name, data)}")
    with redirect_stdout(StringIO()) as said:
        download.check(name, data)
    return said.getvalue().strip().removeprefix(f"{name}: ")


if __name__ == "__main__":
    cli.run(main, interrupted="nothing was changed")
