"""Tensors out of anybody's file, without running what is in it.

A file may be torch's zip or its older form, safetensors, or NumPy arrays in a pickle or .npz. `torch.load` with
`weights_only=True` reads the plain ones. For the others a restricted unpickler builds tensors and containers; whatever
else a pickle names, settings for instance, becomes an inert placeholder, so nothing of the file is ever called. Every
pickle is surveyed before it is read: no file costs more time or memory than its own size allows.
"""

import errno
import math
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from common.errors import printable

MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of torch's older form
OPERATIONS = 1_000_000  # of one pickle; a ResNet-152 with its optimizer has some 100,000
EXPANSION = 10  # times its size that a zip may unpack to; weights do not compress
DEPTH, NESTED, LONGEST = 50, 1000, 500  # levels; items in nested tuples; characters of a tensor's name
AXES, TENSORS, ENTRIES = 8, 20_000, 50_000  # of a tensor; of a file; of a zip
SHORT, KEYS = 1000, 100_000  # operations of a pickle in the head of torch's older form; and of that of its storages

# What begins so is not a checkpoint, but how one often arrives -> what it is, and what to do.
IMPOSTORS = {
    b"version https://git-lfs": ("is a Git LFS pointer, not the file itself", "fetch that with `git lfs pull`"),
    b"<!doctype html": ("is a web page, not the file itself", "download that again"),
    b"<html": ("is a web page, not the file itself", "download that again"),
    b"<?xml": ("is a web page, not the file itself", "download that again"),
    b"\x1f\x8b": ("is compressed", "unpack it with `gunzip`"),
    b"bzh": ("is compressed", "unpack it with `bunzip2`"),
    b"\xfd7zxz": ("is compressed", "unpack it with `unxz`"),
    b"\x28\xb5\x2f\xfd": ("is compressed", "unpack it with `unzstd`"),
    b"7z\xbc\xaf": ("is an archive", "unpack it with `7z x`"),
    b"rar!": ("is an archive", "unpack it with `unrar x`"),
}
# How pickles of dicts begin: with their protocol since 2, before it with the dict, or the name of an OrderedDict.
PICKLE = rb"\x80|\(dp?|}q|ccollections\n"
NO_CHECKPOINT = "no checkpoint is like that: do not trust the file"
LITTLE = "save it again on a little-endian machine"
DTYPES = {
    **{"HalfStorage": torch.float16, "BFloat16Storage": torch.bfloat16, "FloatStorage": torch.float32},
    **{"DoubleStorage": torch.float64, "ByteStorage": torch.uint8, "CharStorage": torch.int8},
    **{"ShortStorage": torch.int16, "IntStorage": torch.int32, "LongStorage": torch.int64, "BoolStorage": torch.bool},
}
# A pickle that names nothing else is torch.load's to read.
PLAIN = {
    *("collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"),
    *(f"torch {name}" for name in DTYPES),
}
# A pickle that names these is meant to run code; settings never do.
CODE = set("os posix nt sys subprocess shutil socket importlib runpy ctypes pty timeit webbrowser".split())
CODE |= set("pickle _pickle marshal pdb bdb pydoc pip ensurepip asyncio commands urllib http requests _thread".split())
CODE_OF_BUILTINS = set("eval exec execfile compile open input __import__ breakpoint".split())
# pickle's operations that name classes and functions, call them, fill containers, number objects and recall them.
NAMING = ("GLOBAL", "STACK_GLOBAL", "INST")
CALLS = ("REDUCE", "NEWOBJ", "NEWOBJ_EX", "OBJ", "INST")
FILLS = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS")
PUTS, GETS = ("PUT", "BINPUT", "LONG_BINPUT"), ("GET", "BINGET", "LONG_BINGET")
STATE = "its state"  # where `Inert` keeps an object's attributes
UNNAMED = (STATE, "_parameters", "_buffers", "_modules")  # no part of a tensor's name, as in nn.Module.state_dict


class UnreadableError(ValueError):
    """What is wrong with a file: the end of a sentence that begins with it.

    `remedy` is what to do, "" where it must be made again.
    """

    def __init__(self, reason: str, remedy: str = "") -> None:
        super().__init__(reason)
        self.remedy = remedy


TOO_MANY = UnreadableError(f"holds more than {TENSORS:,} tensors", NO_CHECKPOINT)


def read(path: Path) -> Any:
    """Return what a file holds: dicts, lists and tuples, whose tensors `flatten` finds.

    Raises UnreadableError for a file that is damaged, hostile or of another kind, and the system's OSError.
    """
    size = path.stat().st_size
    with open(path, "rb") as stream:
        start = stream.read(512)
    for mark, (what, remedy) in IMPOSTORS.items():
        if start.lstrip(b" \t\r\n").lower().startswith(mark):
            raise UnreadableError(what, remedy)
    if start[257:262] == b"ustar":
        raise UnreadableError("is a tar archive", "unpack it with `tar xf`")
    try:
        with warnings.catch_warnings(action="ignore"):  # about pickle protocols; real problems raise
            if start.startswith(b"PK\x03\x04"):
                return _read_zip(path, size)
            if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= size - 8:
                return _read_safetensors(path)
            if re.match(PICKLE, start):
                return _read_pickles(path, size)
    except UnreadableError:
        raise
    except Exception as error:  # a damaged stream may raise anything
        # torch seeks beyond a cut file's end, which is the file's fault; a failing disk's error is the system's own.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        raise UnreadableError("is truncated or damaged") from None
    raise UnreadableError("is not a checkpoint")


def flatten(content: Any) -> dict[str, Tensor]:
    """Return dotted name -> tensor of everything in nested dicts, lists and tuples, in the file's order."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    todo: list[tuple[str, int, Any]] = [("", 0, content)]
    while todo:
        name, depth, value = todo.pop()
        if isinstance(value, Strided | Array):
            value = value.tensor()
        if isinstance(value, Tensor):
            # Weights do not repeat the same numbers, as an expanded tensor does, of any size in a small file.
            if value.numel() * value.itemsize <= value.untyped_storage().nbytes():
                found.setdefault(name[:-1], value.detach())
            if len(found) > TENSORS:
                raise TOO_MANY
        elif isinstance(value, dict | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            if depth > DEPTH:
                raise UnreadableError(f"is nested more than {DEPTH} levels deep", NO_CHECKPOINT)
            items = value.items() if isinstance(value, dict) else enumerate(value)
            inner = [
                (name if isinstance(key, str) and key in UNNAMED else f"{name}{word(key)}.", depth + 1, item)
                for key, item in items
                if isinstance(item, Tensor | Strided | Array | dict | list | tuple)
            ]
            todo += [entry for entry in reversed(inner) if len(entry[0]) <= LONGEST]
    return found


def damaged_entry(path: Path) -> str | None:
    """Return the first entry of a torch file (a zip) that does not fit its CRC, which torch.load does not compare.

    Return None if there is none. Legacy files have no CRC; those saved after `set_crc32_options(False)` have zeros,
    which are not compared. A zip that cannot be read is left to `read`, which refuses it.
    """
    try:
        archive = zipfile.ZipFile(path)
    except Exception:  # a damaged table of contents may raise anything
        return None
    with archive:
        for entry in archive.infolist():
            try:
                with archive.open(entry) as stream:
                    while entry.CRC != 0 and stream.read(2**20):
                        pass
            except Exception:
                return entry.filename
    return None


def word(key: Any) -> str:
    """Return the part of a dotted name that a key makes: short, and fit to be printed."""
    if isinstance(key, str):
        return printable(key[: LONGEST + 1])
    return str(key) if isinstance(key, int) and abs(key) < 10**9 else "?"


def _read_safetensors(path: Path) -> dict[str, Any]:
    """Return the tensors, and as `arch` the architecture, if the metadata name it, as those of our exports."""
    with open(path, "rb") as stream:
        header = int.from_bytes(stream.read(8), "little")
    if header > TENSORS * LONGEST:
        raise TOO_MANY
    with safe_open(path, "pt") as tensors:
        if len(tensors.keys()) > TENSORS:
            raise TOO_MANY
        named = {key: value for key, value in (tensors.metadata() or {}).items() if key == "arch"}
    return named | load_file(path)


# ---- torch's two forms ----


def _check_entries(path: Path) -> None:
    """Raise UnreadableError for a zip of too many entries, each of which would cost time and memory to read."""
    with open(path, "rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as content:
        if sum(1 for _ in islice(re.finditer(b"PK\1\2", content), ENTRIES + 1)) > ENTRIES:  # as each begins
            raise UnreadableError(f"holds more than {ENTRIES:,} entries", NO_CHECKPOINT)


def _read_zip(path: Path, size: int) -> Any:
    _check_entries(path)
    with zipfile.ZipFile(path) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > EXPANSION * size:
            raise UnreadableError(f"is a zip bomb: it unpacks to more than {EXPANSION} times its size", NO_CHECKPOINT)
        if (entry := damaged_entry(path)) is not None:
            raise UnreadableError(f"is damaged: entry {entry!a} does not fit its checksum")
        tables = [name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl"]
        if not tables and all(name.endswith(".npy") for name in archive.namelist()):
            return dict(_arrays(archive))
        if len(tables) != 1:
            raise UnreadableError("is a zip archive, but not torch's (unpack it, if the checkpoint is in it)")
        (table,) = tables
        folder = table.removesuffix("data.pkl")
        for info in archive.infolist():
            info.CRC = info.CRC or None  # type: ignore[assignment]  # 0: saved without; zipfile would compare it
        with archive.open(table) as stream:
            asked = _survey(stream)
        if asked <= PLAIN and (content := _by_torch(path)) is not None:
            return content
        if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") != b"little":
            raise UnreadableError("holds big-endian numbers", LITTLE)
        records: dict[str, bytearray] = {}

        def storage(key: str, dtype: torch.dtype, count: int) -> Tensor:
            if key not in records:
                records[key] = bytearray(archive.read(f"{folder}data/{key}"))
            return _numbers(records[key], dtype, count)

        with archive.open(table) as stream:
            return Restricted(stream, storage).load()


def _arrays(archive: zipfile.ZipFile) -> Iterable[tuple[str, "Array"]]:
    """Yield the arrays in a file of NumPy's, .npz, with their names."""
    headers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    for name in archive.namelist():
        with archive.open(name) as stream:
            shape, fortran, kind = headers[np.lib.format.read_magic(stream)](stream)
            array = (1, shape, Kind.of(kind.str[1:], kind.str[0]), fortran, stream.read())
            yield name.removesuffix(".npy"), Array(str.encode, array)


def _read_pickles(path: Path, size: int) -> Any:
    """Read torch's older form, five pickles and then the numbers, or a single pickle of another program."""
    buffers = Buffers(size)
    with open(path, "rb") as stream:

        def load(most: int) -> Any:
            start = stream.tell()
            _survey(stream, most)
            stream.seek(start)
            return Restricted(stream, buffers.reserve).load()

        if (first := load(OPERATIONS)) != MAGIC:
            return first
        _protocol, machine = load(SHORT), load(SHORT)
        start = stream.tell()
        if _survey(stream) | _survey(stream, KEYS) <= PLAIN and (content := _by_torch(path)) is not None:
            return content
        if machine["little_endian"] is not True:
            raise UnreadableError("holds big-endian numbers", LITTLE)
        stream.seek(start)
        content, storages = (Restricted(stream, buffers.reserve).load() for _ in range(2))
        buffers.fill(storages, stream)
        return content


def _by_torch(path: Path) -> Any:
    """Return what torch.load makes of a plain file, or None if it is not plain to torch."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        return None


class Buffers(dict[str, bytearray]):
    """The numbers of torch's older form, which follow the pickles that need them."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._left = most  # bytes

    def reserve(self, key: str, dtype: torch.dtype, count: int) -> Tensor:
        """Return the storage that `fill` will fill."""
        if key not in self:
            size = count * dtype.itemsize
            if not 0 <= size <= self._left:
                raise UnreadableError("is truncated or damaged: it declares more numbers than it holds")
            self._left -= size
            self[key] = bytearray(size)
        return _numbers(self[key], dtype, count)

    def fill(self, keys: list[str], stream: IO[bytes]) -> None:
        """Read the storages of these keys, in their order."""
        if not all(isinstance(key, str) for key in keys) or set(keys) != set(self):
            raise UnreadableError("is truncated or damaged: it lacks numbers that it declares")
        for key in keys:
            stream.seek(8, 1)  # the number of items
            if stream.readinto(self[key]) != len(self[key]):  # type: ignore[attr-defined]
                raise UnreadableError("is truncated or damaged: it ends within its numbers")


def _numbers(data: bytearray, dtype: torch.dtype, count: int) -> Tensor:
    """Return the first `count` numbers of the bytes, which the tensor shares."""
    if not 0 <= count * dtype.itemsize <= len(data):
        raise UnreadableError("is truncated or damaged: it declares more numbers than it holds")
    return torch.frombuffer(data, dtype=dtype, count=count) if count else torch.empty(0, dtype=dtype)


# ---- what the restricted unpickler builds ----


class Inert(dict):
    """Stands for any object that a pickle asks for: keeps its items and attributes as data, and does nothing."""

    __hash__ = object.__hash__  # type: ignore[assignment]  # it may be a key
    __eq__ = object.__eq__

    def __new__(cls, *_: Any, **__: Any) -> "Inert":  # noqa: D102
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        self[STATE] = state

    def append(self, *_: Any) -> None:
        """Take an item of a list, or of a set, and forget it."""

    extend = add = append


@dataclass(eq=False, slots=True)
class Storage:
    """The numbers that tensors share."""

    numbers: Tensor

    def __setstate__(self, _: Any) -> None:
        pass


@dataclass(eq=False, slots=True)
class Strided:
    """A tensor within a storage."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    def __setstate__(self, _: Any) -> None:
        pass

    def tensor(self) -> Tensor:
        """Return the view. Raises UnreadableError if it reaches beyond the storage."""
        numbers = (self.offset, *self.size, *self.stride)
        sound = len(self.size) == len(self.stride) <= AXES and all(
            isinstance(n, int) and 0 <= n < 2**60 for n in numbers
        )
        if not sound:
            raise UnreadableError("is damaged: it holds a tensor of an impossible shape")
        last = self.offset + sum((n - 1) * step for n, step in zip(self.size, self.stride, strict=True))
        if 0 not in self.size and last >= len(self.storage.numbers):
            raise UnreadableError("is truncated or damaged: a tensor is larger than its numbers")
        if 0 in self.size:
            return self.storage.numbers[:0].reshape(0)
        return self.storage.numbers.as_strided(self.size, self.stride, self.offset)


@dataclass(eq=False, slots=True)
class Array:
    """A NumPy array: what its pickle says of it. `encode` is the unpickler's."""

    encode: Callable[[str], bytes]
    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def tensor(self) -> Tensor | None:
        """Return the numbers, which are not copied, or None for other things. Raises UnreadableError for damage."""
        match self.state:
            case (_, tuple(shape), Kind(str(name), "<"), fortran, bytes() | bytearray() | str() as raw):
                data = self.encode(raw) if isinstance(raw, str) else raw
                if len(shape) > AXES or not all(isinstance(n, int) and n >= 0 for n in shape):
                    raise UnreadableError("is damaged: it holds an array of an impossible shape")
                if len(data) != math.prod(shape) * np.dtype(name).itemsize:
                    raise UnreadableError("is truncated or damaged: an array is not as large as its numbers")
                with warnings.catch_warnings(action="ignore"):  # nobody writes to it
                    return torch.from_numpy(np.frombuffer(data, name).reshape(shape, order="F" if fortran else "C"))
        return None


@dataclass(eq=False, slots=True)
class Kind:
    """A NumPy dtype: its name, None if it is not one of plain numbers, and its byte order."""

    name: str | None
    order: str = "<"  # ">" is not read

    @classmethod
    def of(cls, name: Any = None, order: Any = "<", *_: Any) -> "Kind":
        """Return the dtype of this name."""
        plain = isinstance(name, str) and re.fullmatch("f[248]|[iu][1248]", name)
        return cls(name if plain else None, ">" if order == ">" else "<")

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, tuple) and state[1:2] == (">",):
            self.order = ">"


def _strided(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Any:
    whole = isinstance(storage, Storage) and isinstance(size, tuple) and isinstance(stride, tuple)
    return Strided(storage, offset, size, stride) if whole else Inert()


def _parameter(tensor: Any, *_: Any) -> Any:
    return tensor if isinstance(tensor, Strided) else Inert()


def _mapping(pairs: Any = ()) -> Inert:
    result = Inert()
    result.update({key: value for key, value in pairs if isinstance(key, str)})
    return result


def _from_type(rebuild: Any, _type: Any, arguments: Any, _state: Any) -> Any:
    return rebuild(*arguments) if isinstance(arguments, tuple) else Inert()


# Of module and name; NumPy's own became numpy._core in version 2.
BUILT: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _mapping,
    ("torch._utils", "_rebuild_tensor"): _strided,
    ("torch._utils", "_rebuild_tensor_v2"): _strided,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    ("torch._tensor", "_rebuild_from_type_v2"): _from_type,
    ("numpy", "dtype"): Kind.of,
    **{("torch", name): dtype for name, dtype in DTYPES.items()},
}


class Restricted(pickle.Unpickler):
    """Builds containers, tensors and arrays; everything else that a pickle names becomes `Inert`.

    `storage(key, dtype, count)` returns the numbers of a torch file. Raises UnreadableError where a pickle names what
    only an attack has a use for.
    """

    def __init__(self, stream: IO[bytes], storage: Callable[[str, torch.dtype, int], Tensor]) -> None:
        super().__init__(stream, encoding="latin1")  # Python 2 wrote arrays as text
        self._storage = storage
        self._encoded: dict[str, bytes] = {}
        self._bare = False
        self._built = BUILT | {
            ("_codecs", "encode"): lambda text, *_: self._encode(text),
            ("numpy.core.multiarray", "_reconstruct"): lambda *_: Array(self._encode),
            ("numpy.core.numeric", "_frombuffer"): self._array,
        }

    def load(self) -> Any:
        """Return what the pickle holds."""
        content = super().load()
        if self._bare:
            raise UnreadableError("holds tensors that were pickled without torch.save", "save them with that")
        return content

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a class or function of the pickle."""
        top = module.partition(".")[0]
        if top in CODE or (top in ("builtins", "__builtin__") and name in CODE_OF_BUILTINS):
            raise UnreadableError(f"carries code (it would run {module}.{name}) and is refused", NO_CHECKPOINT)
        self._bare |= name == "_load_from_bytes"  # how a tensor's numbers are pickled without torch.save
        return self._built.get((module.replace("numpy._core", "numpy.core"), name), Inert)

    def persistent_load(self, pid: Any) -> Any:
        """Return a storage of a torch file, or a placeholder for one whose numbers are of no use here."""
        match pid:
            case ("storage", torch.dtype() as dtype, str(key), _, int(count), *view) if view in ([], [None]):
                return Storage(self._storage(key, dtype, count))
            case ("module", *_):  # a class and its source code
                return Inert
        return Inert()

    def _encode(self, text: str) -> bytes:
        """Return the bytes that were written as text; of the same text always the same object."""
        if text not in self._encoded:
            self._encoded[text] = text.encode("latin1")
        return self._encoded[text]

    def _array(self, raw: Any, kind: Any, shape: Any, order: Any) -> Array:
        return Array(self._encode, (1, shape, kind, order == "F", raw))


@dataclass(eq=False, slots=True)
class Value:
    """What `_survey` knows of a value on the pickle's stack.

    `count` is the number of items in a list, dict or object. Tuples have `members`, and in `items` their number with
    those of tuples in tuples, 1 for everything else.
    """

    items: int = 1
    count: int = 0
    members: "tuple[Value, ...]" = ()

    def cost(self) -> int:
        """Return how many items there are to copy or to unpack, also in tuples, which never have many."""
        return self.items + self.count + sum(member.cost() for member in self.members)


def _survey(stream: IO[bytes], most: int = OPERATIONS) -> set[str]:
    """Return what a pickle names, after following its stack without building anything.

    Raises UnreadableError if it would cost far more than its size: it has too many operations, numbers more objects
    than it holds, copies the same items again and again, or uses keys that are deep, large or built to collide (dicts
    compare keys, and tuples of tuples of tuples take exponential time).
    """
    asked: set[str] = set()
    mark, scalar = Value(), Value()
    stack: list[Value] = []
    memo: dict[int, Value] = {}
    odd = cost = 0  # keys that are tuples, and integers that may collide; items that are copied
    operations: Iterable[tuple[pickletools.OpcodeInfo, Any, Any]] = pickletools.genops(stream)
    for count, (code, argument, _) in enumerate(operations):
        name = code.name
        if count > most or (name in PUTS and argument > most):
            raise UnreadableError(f"holds more than {most:,} objects", "save its weights alone")
        if name in NAMING:
            asked.add(argument if name == "GLOBAL" else name)
        if name in PUTS or name == "MEMOIZE":
            memo[argument if name in PUTS else len(memo)] = stack[-1]
        elif name in GETS:
            stack.append(memo[argument])
        elif code.stack_before:
            taken = _follow(code, stack, mark)
            odd += _keys(name, taken)
            cost += _called(name, taken, asked)
        elif code.stack_after:
            stack.append(mark if name == "MARK" else Value() if name.startswith("EMPTY") else scalar)
            odd += isinstance(argument, int) and abs(argument) >= 2**60
        if odd > NESTED or cost > OPERATIONS or (stack and stack[-1].items > NESTED):
            raise UnreadableError("is nested or numbered in a way that no checkpoint is", NO_CHECKPOINT)
    return asked


def _called(name: str, taken: list[Value], asked: set[str]) -> int:
    """Return how many items a call takes. A list among them is `asked` for: torch.load would hash what is in it."""
    if name == "BUILD":
        return taken[0].cost()
    if name not in CALLS:
        return 0
    if any(member.count for value in taken for member in value.members):
        asked.add("a call with a list")
    return sum(value.cost() for value in taken)


def _follow(code: pickletools.OpcodeInfo, stack: list[Value], mark: Value) -> list[Value]:
    """Do to the stack of `_survey` what the operation does to pickle's. Return what it takes, from the top."""
    name, below = code.name, len(code.stack_before)
    taken: list[Value] = []
    if pickletools.markobject in code.stack_before:
        below = code.stack_before.index(pickletools.markobject)
        while (value := stack.pop()) is not mark:
            taken.append(value)
    inside = len(taken)
    taken += [stack.pop() for _ in range(below)]
    if name in FILLS:
        taken[-1].count += inside or 1
    if name in ("BUILD", "DUP") or name in FILLS:
        result = taken[-1]  # it stays what it was
    elif name.startswith("TUPLE") or name == "FROZENSET":
        result = Value(1 + sum(value.items for value in taken), 0, tuple(taken))
    else:
        result = Value(count=inside)
    stack += [result] * len(code.stack_after)
    return taken


def _keys(name: str, taken: list[Value]) -> int:
    """Return how many of the values that an operation takes are tuples that become keys."""
    keys = {"SETITEM": taken[1:2], "SETITEMS": taken[1:-1:2], "DICT": taken[1::2], "ADDITEMS": taken[:-1]}
    return sum(key.items > 1 for key in taken if name == "FROZENSET") + sum(key.items > 1 for key in keys.get(name, ()))
