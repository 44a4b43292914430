"""Reading anybody's file: what is built and what is not, and hostile files, each refused soon and in little memory."""

import argparse
import json
import os
import pickle
import pickletools
import struct
import time
import zipfile
import zlib
from collections import OrderedDict
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from common.backbones import shapes_of
from common.checkpoint import load_checkpoint
from common.checkpoint.archive import UnreadableError, flatten, read
from common.errors import UserError
from tests.fuzzing import answers, fuzz

FORMS = ("zip", "legacy", "pickle")


def save(content, path, form):
    if form == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("plain", [True, False])
def test_tensors_are_read_from_every_form(tmp_path, form, plain):
    """The plain ones are torch.load's, the others the restricted unpickler's."""
    base = torch.arange(24.0)
    shared = {"whole": base, "part": base[3:9].view(2, 3), "across": base.view(4, 6).t()}
    kinds = (torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.uint8, torch.int64, torch.bool)
    tensors = shared | {str(kind): torch.ones(2, dtype=kind) for kind in kinds}
    tensors |= {"none": torch.zeros(0, 3), "number": torch.tensor(5), "weight": torch.nn.Parameter(torch.ones(2, 2))}
    if form == "pickle":
        tensors = {key: t.detach().numpy() for key, t in tensors.items() if t.numel() and "bfloat" not in key}
    content = {"a": OrderedDict(tensors), "epoch": 3}
    save(content if plain else content | {"args": argparse.Namespace(lr=np.float64(1))}, tmp_path / "x", form)
    found = flatten(read(tmp_path / "x"))
    wanted = {f"a.{key}": torch.as_tensor(tensor) for key, tensor in tensors.items()}
    if form == "pickle":
        wanted.pop("a.torch.bool")  # no weights
    elif not plain:
        wanted["a.none"] = torch.zeros(0)
    assert list(found) == list(wanted)
    assert all(torch.equal(found[key], wanted[key]) and found[key].dtype == wanted[key].dtype for key in wanted)


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_of_numbers_are_read_from_every_protocol(tmp_path, protocol):
    arrays = {
        "rows": np.arange(6, dtype="f4").reshape(2, 3),
        "columns": np.asfortranarray(np.arange(6, dtype="f2").reshape(2, 3)),
        "big-endian": np.arange(3, dtype=">f8"),
        "words": np.array(["a", "b"]),
        "objects": np.array([None, {}]),
    }
    (tmp_path / "x").write_bytes(pickle.dumps(arrays, protocol))
    found = flatten(read(tmp_path / "x"))
    assert list(found) == ["rows", "columns"]
    assert all(np.array_equal(found[key].numpy(), arrays[key]) for key in found)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_numpy_s_archives_are_read(tmp_path, save):
    numbers = np.asfortranarray(np.arange(6, dtype="f4").reshape(2, 3))
    save(tmp_path / "x.npz", **{"a.weight": numbers, "count": np.int64(3), "name": "words", "none": np.array([None])})
    found = flatten(read(tmp_path / "x.npz"))
    assert list(found) == ["a.weight", "count"]
    assert np.array_equal(found["a.weight"].numpy(), numbers)
    assert found["count"].item() == 3


@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch prefers another form
def test_torchscript_is_read(tmp_path):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).eval()
    torch.jit.trace(model, torch.zeros(1, 3, 8, 8)).save(tmp_path / "x")
    found = flatten(read(tmp_path / "x"))
    assert set(found) == set(model.state_dict())
    assert all(torch.equal(tensor, found[key]) for key, tensor in model.state_dict().items())


def test_names_are_fit_to_be_printed(tmp_path):
    torch.save({"red\x1b[31m\n": {"weight": torch.ones(1)}, 10**5000: {"weight": torch.ones(1)}}, tmp_path / "x")
    assert list(flatten(read(tmp_path / "x"))) == [r"red\x1b[31m\n.weight", "?.weight"]


def test_python_2_s_ordered_dicts_are_read(tmp_path):
    """Their pickles hold lists of a key and a value."""
    pair = P["MARK"] + text("a.weight") + value_of(tensor()) + P["LIST"]
    zip_of(tmp_path / "x", call("collections", "OrderedDict", P["EMPTY_LIST"] + pair + P["APPEND"]))
    assert flatten(read(tmp_path / "x"))["a.weight"].tolist() == [0] * 4


@pytest.mark.parametrize("form", FORMS)
def test_settings_become_placeholders_that_keep_their_items(tmp_path, form, monkeypatch):
    """A class of the file is neither imported nor called: here even its name leads nowhere."""
    module = torch.nn.BatchNorm2d(2)
    weights = module.weight.detach().numpy() if form == "pickle" else module.weight.detach()
    content = {"config": argparse.Namespace(half=Fraction(1, 2), inner={"weight": weights}), "enum": {Fraction(1): 2}}
    save(content, tmp_path / "x", form)
    monkeypatch.delattr(argparse, "Namespace")
    assert list(flatten(read(tmp_path / "x"))) == ["config.inner.weight"]


@pytest.mark.parametrize("form", FORMS[:2])
def test_a_whole_module_gives_its_tensors(tmp_path, form):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    save(model, tmp_path / "x", form)
    found = flatten(read(tmp_path / "x"))
    assert set(found) == set(model.state_dict())
    assert all(torch.equal(found[key], tensor) for key, tensor in model.state_dict().items())


# ---- hostile files ----

P = {code.name: code.code.encode("latin1") for code in pickletools.opcodes}
START = P["PROTO"] + b"\x02"


def named(module, name):
    return P["GLOBAL"] + f"{module}\n{name}\n".encode()


def number(value):
    data = value.to_bytes((value.bit_length() + 8) // 8, "little", signed=True)
    return P["LONG1"] + bytes([len(data)]) + data


def numbers(*values):
    return P["MARK"] + b"".join(map(number, values)) + P["TUPLE"]


def text(word):
    return P["BINUNICODE"] + struct.pack("<I", len(word)) + word.encode()


def tensor(*, count=4, offset=0, size=(4,), stride=(1,)):
    """Return the pickle of {"conv1.weight": a tensor of float32 in storage 0}."""
    storage = P["MARK"] + text("storage") + named("torch", "FloatStorage") + text("0") + text("cpu") + number(count)
    arguments = P["MARK"] + storage + P["TUPLE"] + P["BINPERSID"] + number(offset) + numbers(*size) + numbers(*stride)
    arguments += P["NEWFALSE"] + named("collections", "OrderedDict") + P["EMPTY_TUPLE"] + P["REDUCE"] + P["TUPLE"]
    value = named("torch._utils", "_rebuild_tensor_v2") + arguments + P["REDUCE"]
    return P["EMPTY_DICT"] + text("conv1.weight") + value + P["SETITEM"]


def beside(program):
    """Return the pickle of a placeholder beside a program: torch.load does not take it, the restricted reader does."""
    return program + P["MARK"] + text("x") + named("argparse", "Namespace") + P["SETITEMS"]


def doubled(levels):
    """Return nested pairs: a tuple of so many levels is small in the file, and large to whoever walks it."""
    return number(7) + b"".join(P["DUP"] + P["TUPLE2"] for _ in range(levels))


def arrays(shape):
    kind = named("numpy", "dtype") + text("f4") + P["TUPLE1"] + P["REDUCE"]
    made = named("numpy.core.multiarray", "_reconstruct") + P["EMPTY_TUPLE"] + P["REDUCE"]
    raw = P["SHORT_BINBYTES"] + b"\4" + bytes(4)
    state = P["MARK"] + number(1) + numbers(*shape) + kind + P["NEWFALSE"] + raw + P["TUPLE"]
    return P["EMPTY_DICT"] + text("conv1.weight") + made + state + P["BUILD"] + P["SETITEM"]


def call(module, name, argument):
    return named(module, name) + argument + P["TUPLE1"] + P["REDUCE"]


def keys(*programs):
    return P["EMPTY_DICT"] + P["MARK"] + b"".join(p + P["NONE"] for p in programs) + P["SETITEMS"]


def pairs_of_signs(count):
    """Return tuples of -1 and -2, whose hashes are the same."""
    return [numbers(*(-1 - (k >> bit & 1) for bit in range(12))) for k in range(count)]


def listed(count):
    return P["EMPTY_LIST"] + P["PUT"] + b"0\n" + P["MARK"] + P["NONE"] * count + P["APPENDS"]


def value_of(program):
    """Return the pickle of the tensor alone."""
    return program.removeprefix(P["EMPTY_DICT"] + text("conv1.weight")).removesuffix(P["SETITEM"])


def again(module, name):
    """Return 20,000 calls with the object of number 0 in pickle's memo."""
    return call(module, name, P["GET"] + b"0\n") * 20_000


def pairs(programs):
    """Return a list of lists of two, a key and None."""
    inner = b"".join(P["MARK"] + key + P["NONE"] + P["LIST"] for key in programs)
    return P["EMPTY_LIST"] + P["MARK"] + inner + P["APPENDS"]


def built(size, count):
    """Return the same large state, given to objects one after another."""
    state = keys(*map(number, range(size))) + P["PUT"] + b"0\n"
    return state + (named("a", "B") + P["EMPTY_TUPLE"] + P["NEWOBJ"] + P["GET"] + b"0\n" + P["BUILD"]) * count


def passed(size, count):
    options = keys(*(text(str(k)) for k in range(size))) + P["PUT"] + b"0\n"
    return options + (named("a", "B") + P["EMPTY_TUPLE"] + P["GET"] + b"0\n" + P["NEWOBJ_EX"] + P["POP"]) * count


def buffered(raw):
    arguments = P["MARK"] + raw + call("numpy", "dtype", text("f4")) + numbers(1) + text("C") + P["TUPLE"]
    return named("numpy.core.numeric", "_frombuffer") + arguments + P["REDUCE"]


def encoded(size, count):
    return text("x" * size) + P["PUT"] + b"0\n" + again("_codecs", "encode")


DAMAGED, NO_CHECKPOINT = "truncated or damaged|is damaged", "no checkpoint is like that: do not trust the file"
# Name -> a pickle, and what is said of it, in a zip of torch's with 16 bytes in storage 0, and alone.
PICKLES = {
    "a storage of terabytes": (tensor(count=2**40), DAMAGED),
    "a storage of terabytes beside settings": (beside(tensor(count=2**40)), DAMAGED),
    "a negative storage": (beside(tensor(count=-4)), DAMAGED),
    "a tensor beyond its storage": (beside(tensor(size=(2, 3), stride=(3, 1))), DAMAGED),
    "a tensor before its storage": (beside(tensor(offset=-2)), DAMAGED),
    "negative steps": (beside(tensor(stride=(-1,))), DAMAGED),
    "more steps than axes": (beside(tensor(stride=(1, 1))), DAMAGED),
    "a hundred axes": (beside(tensor(size=(1,) * 100, stride=(0,) * 100)), DAMAGED),
    "the same number terabytes often": (beside(tensor(size=(2**40,), stride=(0,))), "no known architecture"),
    "an array of terabytes": (arrays((2**20, 2**20)), DAMAGED),
    "an array of negative sides": (arrays((-1, -1)), DAMAGED),
    "bytes of gigabytes": (keys(call("builtins", "bytearray", number(2**36))), "no known"),
    "bytes announced": (P["BINBYTES8"] + struct.pack("<Q", 2**50) + b"x", DAMAGED),
    "a memo of gigabytes": (P["NONE"] + P["LONG_BINPUT"] + b"\xff\xff\xff\x7f", "save its weights alone"),
    "endless lists": (P["EMPTY_LIST"] * 50_000 + P["APPEND"] * 49_999, f"nested more than .*{NO_CHECKPOINT}"),
    "endless tuples": (P["EMPTY_TUPLE"] + P["TUPLE1"] * 200_000, NO_CHECKPOINT),
    "a list of itself": (P["EMPTY_LIST"] + P["BINPUT"] + b"\0" + P["BINGET"] + b"\0" + P["APPEND"], "no known"),
    "a key of 2^64 items": (keys(doubled(64)), NO_CHECKPOINT),
    "a key of 2^64 items, built": (keys(doubled(9) + P["NONE"] + P["BUILD"] + P["DUP"] + P["TUPLE2"]), NO_CHECKPOINT),
    "keys of one hash": (keys(*(number((2**61 - 1) * k) for k in range(40_000))), NO_CHECKPOINT),
    "tuples of one hash": (keys(*pairs_of_signs(4000)), NO_CHECKPOINT),
    "a million objects": (P["EMPTY_LIST"] + P["MARK"] + P["NONE"] * 1_000_000 + P["APPENDS"], "save its weights alone"),
    "thousands of tensors": (P["MARK"] + value_of(tensor()) + P["DUP"] * 21_000 + P["LIST"], NO_CHECKPOINT),
    "a list copied again and again": (listed(10_000) + again("collections", "OrderedDict"), NO_CHECKPOINT),
    "state built again and again": (built(20_000, 20_000), NO_CHECKPOINT),
    "options passed again and again": (passed(20_000, 20_000), NO_CHECKPOINT),
    "pairs of one hash": (call("collections", "OrderedDict", pairs(pairs_of_signs(4000))), "no known"),
    "an array of so many bytes": (keys(buffered(number(2**36))), "no known"),
    "a text encoded again and again": (encoded(2**20, 20_000), "no known"),
    "tensors without torch.save": (call("torch.storage", "_load_from_bytes", text("x")), "without torch.save; save"),
    "a call of eval": (call("builtins", "eval", text("1")), f"would run builtins.eval.*{NO_CHECKPOINT}"),
    "a call of system": (call("os", "system", text("x")), f"would run os.system.*{NO_CHECKPOINT}"),
    "a call of a placeholder's": (P["NONE"] + P["NONE"] + P["REDUCE"], DAMAGED),
    "a stack that is empty": (P["POP"] * 3, DAMAGED),
}  # fmt: skip


def zip_of(path, program, compression=zipfile.ZIP_STORED, data=bytes(16)):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("a/data.pkl", START + program + P["STOP"])
        archive.writestr("a/byteorder", "little")
        archive.writestr("a/data/0", data)
        archive.writestr("a/version", "3\n")


def legacy_of(path, program, data=bytes(16)):
    machine = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    head = [pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, machine)]
    keys = pickle.dumps(["0"], 2)
    path.write_bytes(b"".join(head) + START + program + P["STOP"] + keys + struct.pack("<q", 4) + data)


def alone(path, program):
    path.write_bytes(START + program + P["STOP"])


def refused_soon(path, says):
    answers(lambda: load_checkpoint(path), path)
    start = time.process_time()
    with pytest.raises(UserError, match=says):
        load_checkpoint(path)
    assert time.process_time() - start < 5


@pytest.mark.parametrize("form", [zip_of, legacy_of, alone])
@pytest.mark.parametrize("name", PICKLES)
def test_a_hostile_pickle_is_refused_soon(tmp_path, name, form):
    program, says = PICKLES[name]
    form(tmp_path / "x", program)
    # torch's older form has one storage, which must be used; without torch's forms there is none.
    refused_soon(tmp_path / "x", says + {legacy_of: f"|{DAMAGED}", alone: "|no known architecture"}.get(form, ""))


def eight_bits():
    return {key: torch.ones(shape, dtype=torch.float8_e4m3fn) for key, shape in shapes_of("resnet18").items()}


def safetensors(path, header, data=b"", length=None):
    head = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(head) if length is None else length) + head + data)


def entry(shape, end):
    return {"conv1.weight": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}}


def entries(path, count):
    """Write a zip whose table of contents names the same few bytes again and again."""
    name, body = b"a/data.pkl", START + P["EMPTY_DICT"] + P["STOP"]
    sums = struct.pack("<3I", zlib.crc32(body), len(body), len(body))
    local = struct.pack("<4s5H", b"PK\3\4", 20, 0, 0, 0, 0) + sums + struct.pack("<2H", len(name), 0) + name + body
    one = struct.pack("<4s6H", b"PK\1\2", 20, 20, 0, 0, 0, 0) + sums + struct.pack("<5H2I", len(name), *[0] * 6) + name
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 0, 0, len(one) * count, len(local), 0)
    path.write_bytes(local + one * count + end)


def npz_of(path, shape, kind="<f4"):
    header = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}}}\n".encode()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + bytes(16))


def headed(path):
    """Write torch's older form with a million objects in each of the pickles of its head."""
    many = START + P["EMPTY_LIST"] + P["MARK"] + P["NONE"] * 999_000 + P["APPENDS"] + P["STOP"]
    path.write_bytes(pickle.dumps(0x1950A86A20F9469CFC6C, 2) + many * 4)


def repeated(path):
    """Write complete networks, each of whose tensors repeats one number of its own."""
    shapes = shapes_of("wide_resnet101_2").items()
    torch.save({f"n{k}.{key}": torch.zeros(()).expand(shape) for k in range(8) for key, shape in shapes}, path)


OTHERS = {
    "a million entries": (lambda p: entries(p, 1_000_000), f"more than 50,000 entries; {NO_CHECKPOINT}"),
    "a million safetensors": (
        lambda p: safetensors(p, {f"{k}": entry([0], 0)["conv1.weight"] for k in range(400_000)}),
        f"more than 20,000 tensors; {NO_CHECKPOINT}",
    ),
    "an .npz of terabytes": (lambda p: npz_of(p, (2**40,)), DAMAGED),
    "an .npz of nothing": (lambda p: npz_of(p, (2**40,), "V0"), "no known architecture"),
    "a head of millions": (headed, "more than 1,000 objects"),
    "networks of a few numbers": (repeated, "no complete ResNet"),
    "safetensors of eight bits": (
        lambda p: save_file({f"{n}.{k}": t for n in "ab" for k, t in eight_bits().items()}, p),
        "choose by KEY= from: a",
    ),
    "zip bomb": (lambda p: zip_of(p, tensor(), zipfile.ZIP_DEFLATED, bytes(2**26)), "zip bomb: .* 10 times its size"),
    "a zip cut off": (lambda p: (zip_of(p, tensor()), os.truncate(p, 300)), DAMAGED),
    "a legacy file cut off": (lambda p: (legacy_of(p, beside(tensor())), os.truncate(p, 300)), DAMAGED),
    "a legacy file cut short": (lambda p: legacy_of(p, beside(tensor()), bytes(8)), "ends within its numbers"),
    "safetensors of terabytes": (lambda p: safetensors(p, entry([2**20, 2**20], 2**42)), DAMAGED),
    "safetensors beyond the file": (lambda p: safetensors(p, entry([4], 16), bytes(8)), DAMAGED),
    "safetensors of another shape": (lambda p: safetensors(p, entry([2**40], 16), bytes(16)), DAMAGED),
    "a header beyond the file": (lambda p: safetensors(p, b"{" * 20, length=2**60), "is not a checkpoint"),
    "a nested header": (lambda p: safetensors(p, b'{"a":' * 100_000), DAMAGED),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_a_hostile_file_is_refused_soon(tmp_path, name):
    make, says = OTHERS[name]
    make(tmp_path / "x")
    refused_soon(tmp_path / "x", says)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(sorted(P.values())) | st.binary(max_size=3) | st.just(beside(tensor())), max_size=30))
def test_any_program_is_read_or_refused(tmp_path_factory, program):
    for form in (zip_of, legacy_of, alone):
        path = tmp_path_factory.mktemp("any") / "x"
        form(path, b"".join(program))
        answers(lambda path=path: load_checkpoint(path), path)


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle", "safetensors", "npz"])
def test_damaged_copies_are_read_or_refused(tmp_path, form):
    path, tensors = tmp_path / "file", {"conv1.weight": torch.ones(4, 3, 3, 3), "bn1.bias": torch.ones(4)}
    if form == "safetensors":
        save_file(tensors, path)
    elif form == "npz":
        np.savez(path.with_suffix(".npz"), **{key: value.numpy() for key, value in tensors.items()})
        path.with_suffix(".npz").rename(path)
    else:
        plain = {key: value.numpy() if form == "pickle" else value for key, value in tensors.items()}
        save({"model": plain, "args": argparse.Namespace(lr=1)}, path, form)
    fuzz(path, lambda: load_checkpoint(path), 80)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a Git LFS pointer.*`git lfs pull`"),
        (b"<!DOCTYPE html><html>", "is a web page.*download"),
        (b"\n <!doctype html>", "is a web page.*download"),
        (b"<?xml version='1.0'?><Error>", "is a web page.*download"),
        (b"\x1f\x8b\x08", "is compressed.*gunzip"),
        (b"BZh91AY", "is compressed.*bunzip2"),
        (b"\xfd7zXZ\0", "is compressed.*unxz"),
        (b"PK\3\4", "truncated or damaged"),
        (bytes(257) + b"ustar", "is a tar archive.*tar xf"),
        (b"", "is not a checkpoint"),
    ],
)
def test_what_is_no_checkpoint_is_called_by_its_name(tmp_path, content, says):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(UserError, match=says):
        load_checkpoint(tmp_path / "x")


def test_a_big_endian_file_is_refused(tmp_path):
    zip_of(tmp_path / "x", beside(tensor()))
    with zipfile.ZipFile(tmp_path / "x") as old, zipfile.ZipFile(tmp_path / "y", "w") as new:
        for name in old.namelist():
            new.writestr(name, b"big" if name == "a/byteorder" else old.read(name))
    assert flatten(read(tmp_path / "x"))["conv1.weight"].tolist() == [0] * 4
    with pytest.raises(UnreadableError, match="big-endian"):
        read(tmp_path / "y")
