"""Downloads from a server in this process: complete, broken off, continued, wrong; and `make data` as a command."""

import hashlib
import io
import pickle
import shutil
import socket
import stat
import subprocess
import sys
import tarfile
import threading
import zipfile
from argparse import Namespace
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from common import cli, download, embedded
from common.cifar import cifar10
from common.download import fetch, provide
from common.errors import UserError
from common.sources import SOURCES, File, Source

CONTENT = np.random.default_rng(0).bytes(5000)


def md5(content):
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


CHECKSUM = md5(CONTENT)


@dataclass
class Server:
    """Serves `files`, breaks each answer off after `cut` bytes and records the Range of each request."""

    files: dict = field(default_factory=dict)
    ranges: list = field(default_factory=list)
    cut: int | None = None
    knows_ranges: bool = True
    url: str = ""

    def __call__(self, request):
        self.ranges.append(asked := request.headers.get("Range"))
        content = self.files.get(request.path[1:])
        if content is None:
            return request.send_error(404)
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and self.knows_ranges else 0
        if start and start >= len(content):
            request.send_response(416)
            request.send_header("Content-Range", f"bytes */{len(content)}")
            request.send_header("Content-Length", "0")
            return request.end_headers()
        request.send_response(206 if asked and self.knows_ranges else 200)
        if asked and self.knows_ranges:
            request.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        request.send_header("Content-Length", str(len(content) - start))
        request.end_headers()
        request.wfile.write(content[start:][: self.cut])


@pytest.fixture
def server():
    state = Server({"a.bin": CONTENT})

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            state(self)

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        state.url = f"http://127.0.0.1:{running.server_port}"
        threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield state
        running.shutdown()


@pytest.fixture
def target(tmp_path):
    return tmp_path / "downloads" / "a.bin"


def refusal(url, target, checksum=CHECKSUM):
    with pytest.raises(UserError) as caught:
        fetch(url, target, checksum)
    line = str(caught.value)
    assert "\n" not in line
    return line


def test_a_download_appears_whole_and_is_not_repeated(server, target):
    assert fetch(f"{server.url}/a.bin", target, CHECKSUM) == target
    assert target.read_bytes() == CONTENT
    assert [f.name for f in target.parent.iterdir()] == ["a.bin"]
    fetch(f"{server.url}/a.bin", target, CHECKSUM)
    assert server.ranges == [None]


def test_a_half_done_download_is_continued(server, target):
    target.parent.mkdir()
    target.with_name("a.bin.part").write_bytes(CONTENT[:1234])
    fetch(f"{server.url}/a.bin", target, CHECKSUM)
    assert server.ranges == ["bytes=1234-"]
    assert target.read_bytes() == CONTENT


def test_a_connection_that_breaks_is_taken_up_again_as_long_as_it_brings_something(server, target):
    server.cut = 2000
    fetch(f"{server.url}/a.bin", target, CHECKSUM)
    assert server.ranges == [None, "bytes=2000-", "bytes=4000-"]
    assert target.read_bytes() == CONTENT


def test_a_server_that_stops_leaves_what_came(server, target):
    server.files["a.bin"], server.cut = CONTENT, 0
    target.parent.mkdir()
    part = target.with_name("a.bin.part")
    part.write_bytes(CONTENT[:99])
    line = refusal(f"{server.url}/a.bin", target)
    assert "stopped after 99 bytes); run the same command again, which continues, or place the file at" in line
    assert part.read_bytes() == CONTENT[:99]
    assert not target.exists()


@pytest.mark.parametrize("have", [CONTENT[:1234], b"x" * 6000], ids=["half", "too much"])
def test_a_server_without_ranges_starts_anew(server, target, have):
    server.knows_ranges = False
    target.parent.mkdir()
    target.with_name("a.bin.part").write_bytes(have)
    fetch(f"{server.url}/a.bin", target, CHECKSUM)
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize(("have", "requests"), [(CONTENT, 1), (CONTENT + b"x", 2)], ids=["all", "too much"])
def test_nothing_is_left_to_download(server, target, have, requests):
    target.parent.mkdir()
    target.with_name("a.bin.part").write_bytes(have)
    fetch(f"{server.url}/a.bin", target, CHECKSUM)
    assert len(server.ranges) == requests
    assert target.read_bytes() == CONTENT


def test_a_wrong_checksum_leaves_nothing(server, target):
    line = refusal(f"{server.url}/a.bin", target, "0" * 32)
    assert f"{server.url}/a.bin gives has MD5 {CHECKSUM}, not {'0' * 32}, and was removed" in line
    assert list(target.parent.iterdir()) == []


def test_a_file_of_the_user_s_with_a_wrong_checksum_is_named_and_kept(server, target):
    target.parent.mkdir()
    target.write_bytes(b"mine")
    line = refusal(f"{server.url}/a.bin", target)
    assert line.startswith(f"{target} has MD5")
    assert target.read_bytes() == b"mine"
    assert server.ranges == []


def test_an_address_that_is_gone(server, target):
    line = refusal(f"{server.url}/b.bin", target)
    assert line.startswith(f"cannot download {server.url}/b.bin (Not Found); ")
    assert line.endswith(f"place the file at {target} yourself")


def test_a_server_that_cannot_be_reached(target):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/a.bin"
    assert "Connection refused" in refusal(url, target)


def test_a_server_that_speaks_nonsense(target):
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer():
            connection, _ = listening.accept()
            connection.recv(1000)
            connection.sendall(b"hello\r\n\r\n")
            connection.close()

        threading.Thread(target=answer, daemon=True).start()
        assert "cannot download" in refusal(f"http://127.0.0.1:{listening.getsockname()[1]}/a.bin", target)


def test_a_full_disk(server, target):
    target.parent.mkdir()
    target.with_name("a.bin.part").symlink_to("/dev/full")
    line = refusal(f"{server.url}/a.bin", target)
    assert line.startswith(f"cannot write {target}.part (No space left on device); make room and run the same command")


def tar(members, mode="w:gz"):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


def zipped(members):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


def toy_source(*files):
    return Source("Toy", "toy", lambda tv: files, counts={"one.txt": 1})


@pytest.fixture
def toy(server, monkeypatch):
    """A data set of three downloads: an archive, a plain file, an archive in an archive."""
    server.files |= {
        "a.tar.gz": tar({"toy/one.txt": b"1"}),
        "b.mat": b"2",
        "c.zip": zipped({"outer/inner.tar": tar({"deep/three.txt": b"3"}, "w"), "outer/junk": b""}),
    }
    inner = {"c.zip": "outer/inner.tar"}
    into = {"a.tar.gz": ".", "b.mat": "toy", "c.zip": "toy"}
    files = [File(f"{server.url}/{f}", md5(server.files[f]), into[f], inner.get(f)) for f in into]
    monkeypatch.setitem(SOURCES, "toy", toy_source(*files))


def tree(folder):
    return sorted(str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file())


def test_make_data_downloads_unpacks_and_checks(toy, server, tmp_path, capsys):
    download.main(["--dataset", "toy", "--data", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("[common.download] profile=demo")
    assert str(tmp_path.resolve()) in lines[0]
    assert tree(tmp_path / "toy") == ["b.mat", "deep/three.txt", "one.txt"]
    assert lines[-1] == f"{tmp_path / 'toy'}: 1 one.txt, as published"
    assert sorted(f.name for f in tmp_path.iterdir()) == ["downloads", "toy"]
    # A data set that is there is checked, not downloaded again.
    (tmp_path / "downloads" / "toy" / "b.mat").unlink()
    download.main(["--dataset", "toy", "--data", str(tmp_path)])
    assert capsys.readouterr().out.splitlines()[1:] == lines[-1:]
    assert len(server.ranges) == 3


@pytest.mark.parametrize(
    "content", [b"<html>", tar({"toy/one.txt": CONTENT})[:2000], b""], ids=["html", "cut", "empty"]
)
def test_an_archive_that_is_none(toy, server, tmp_path, monkeypatch, content):
    server.files["a.tar.gz"] = content
    files = [File(f"{server.url}/a.tar.gz", md5(content))]
    monkeypatch.setitem(SOURCES, "toy", toy_source(*files))
    with pytest.raises(UserError, match=r"a\.tar\.gz cannot be unpacked \(.*\); delete it and run the same") as caught:
        provide("toy", tmp_path)
    assert "\n" not in str(caught.value)
    assert [f.name for f in tmp_path.iterdir()] == ["downloads"]


def member(name, kind=tarfile.REGTYPE, link="", mode=0o644, content=b""):
    """Return a member of a tar archive, with its content."""
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname, entry.mode, entry.size = kind, link, mode, len(content)
    entry.devmajor, entry.devminor = 1, 3
    return entry, content


CRAFTED = {
    "parent": ([member("toy/../../stolen", content=b"x")], "outside"),
    "absolute": ([member("{outside}/stolen", content=b"x")], "absolute path"),
    "symlink, then file": ([member("toy", tarfile.SYMTYPE, "{outside}"), member("toy/stolen", content=b"x")], "a link"),
    "symlink inside": ([member("toy/one", content=b"x"), member("toy/two", tarfile.SYMTYPE, "one")], "a link"),
    "hard link": ([member("toy/stolen", tarfile.LNKTYPE, "{outside}/secret")], "a link"),
    "device": ([member("toy/null", tarfile.CHRTYPE)], "special file"),
    "block device": ([member("toy/disk", tarfile.BLKTYPE)], "special file"),
    "FIFO": ([member("toy/pipe", tarfile.FIFOTYPE)], "special file"),
}


def crafted(members, outside, mode="w:gz"):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as archive:
        for entry, content in members:
            name, link = (text.replace("{outside}", str(outside)) for text in (entry.name, entry.linkname))
            archive.addfile(entry.replace(name=name, linkname=link, deep=True), io.BytesIO(content))
    return stream.getvalue()


@pytest.mark.parametrize("nested", [False, True], ids=["archive", "archive in an archive"])
@pytest.mark.parametrize("case", CRAFTED)
def test_an_archive_that_reaches_beyond_its_folder_is_refused(toy, server, tmp_path, monkeypatch, case, nested):
    members, says = CRAFTED[case]
    outside, data = tmp_path / "outside", tmp_path / "data"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    content = crafted(members, outside, "w" if nested else "w:gz")
    content = tar({"inner.tar": content}) if nested else content
    server.files["a.tar.gz"] = content
    files = [File(f"{server.url}/a.tar.gz", md5(content), inner="inner.tar" if nested else None)]
    monkeypatch.setitem(SOURCES, "toy", toy_source(*files))
    data.mkdir()
    with pytest.raises(UserError, match=r"a\.tar\.gz cannot be unpacked \(.*\); delete it") as caught:
        provide("toy", data)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        "a.tar.gz",
        "data",
        "downloads",
        "outside",
        "secret",
        "toy",
    ]
    assert (outside / "secret").stat().st_nlink == 1


@pytest.mark.parametrize(
    ("name", "mode", "says"),
    [
        ("toy/../../stolen", stat.S_IFREG, "outside the destination"),
        ("/stolen", stat.S_IFREG, "outside the destination"),
        ("toy/link", stat.S_IFLNK, "'toy/link' is a link"),
    ],
)
@pytest.mark.parametrize("nested", [False, True], ids=["archive", "archive in an archive"])
def test_a_zip_that_reaches_beyond_its_folder_is_refused(toy, server, tmp_path, monkeypatch, name, mode, says, nested):
    entry = zipfile.ZipInfo(name)
    entry.external_attr = (mode | 0o644) << 16
    content = zipped({"toy/one.txt": b"1", entry: b"/etc/passwd"})
    content = zipped({"inner.zip": content}) if nested else content
    server.files["c.zip"] = content
    files = [File(f"{server.url}/c.zip", md5(content), inner="inner.zip" if nested else None)]
    monkeypatch.setitem(SOURCES, "toy", toy_source(*files))
    with pytest.raises(UserError, match=r"c\.zip cannot be unpacked \(.*\); delete it") as caught:
        provide("toy", tmp_path)
    assert says in str(caught.value)
    assert [f.name for f in tmp_path.iterdir()] == ["downloads"]


def test_an_archive_sets_no_mode_but_the_owner_s(toy, server, tmp_path, monkeypatch):
    content = server.files["a.tar.gz"] = crafted([member("toy/run", mode=0o6777, content=b"x")], tmp_path)
    files = [File(f"{server.url}/a.tar.gz", md5(content))]
    monkeypatch.setitem(SOURCES, "toy", Source("Toy", "toy", lambda tv: files, counts={"run": 1}))
    provide("toy", tmp_path)
    assert (tmp_path / "toy" / "run").stat().st_mode & 0o7777 == 0o755
    assert tarfile.TarFile.extraction_filter is None  # as it was before


def test_an_archive_of_imagenet_that_reaches_beyond_its_folder_is_refused(imagenet, tmp_path, monkeypatch):
    from torchvision.datasets import imagenet as reader

    inner = crafted([member("../../../stolen", content=b"x")], tmp_path, "w")
    content = tar({"n01.tar": inner}, "w")
    name, _ = reader.ARCHIVE_META["train"]
    (imagenet / name).write_bytes(content)
    monkeypatch.setitem(reader.ARCHIVE_META, "train", (name, md5(content)))
    with pytest.raises(UserError, match=r"ILSVRC2012_img_train\.tar cannot be unpacked \(.*outside"):
        provide("imagenet", tmp_path)
    assert not list(tmp_path.rglob("stolen"))


def test_a_python_that_cannot_refuse_is_named(toy, tmp_path, monkeypatch):
    monkeypatch.delattr(tarfile, "data_filter")
    with pytest.raises(UserError, match=r"cannot unpack archives safely; update it to 3\.11\.4"):
        provide("toy", tmp_path)


def test_an_archive_of_something_else(toy, server, tmp_path, monkeypatch):
    content = server.files["a.tar.gz"] = tar({"other/one.txt": b"1"})
    files = [File(f"{server.url}/a.tar.gz", md5(content))]
    monkeypatch.setitem(SOURCES, "toy", toy_source(*files))
    with pytest.raises(UserError, match=r"a\.tar\.gz hold no folder toy"):
        provide("toy", tmp_path)
    assert [f.name for f in tmp_path.iterdir()] == ["downloads"]


def test_unpacking_that_is_interrupted_or_has_no_room_leaves_no_folder(toy, tmp_path, monkeypatch):
    import shutil

    for error, seen in ((KeyboardInterrupt(), KeyboardInterrupt), (OSError(28, "No space left on device"), UserError)):

        def fail(*args, error=error):
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(shutil, "copy", fail)
            with pytest.raises(seen):
                provide("toy", tmp_path)
        assert [f.name for f in tmp_path.iterdir()] == ["downloads"]
    provide("toy", tmp_path)
    assert (tmp_path / "toy").is_dir()


def test_unknown_and_embedded(tmp_path, monkeypatch, capsys):
    with pytest.raises(UserError, match=r"unknown DATASET 'dtdd'; known: aircraft, .*voc2007, .*, digits, scenes"):
        download.main(["--dataset", "dtdd"])
    monkeypatch.setattr(embedded, "generate", lambda root, seed: root.mkdir())
    for arguments in ([], ["--dataset", ""], ["--dataset", "scenes"]):
        download.main(["--data", str(tmp_path), *arguments])
        assert capsys.readouterr().out.splitlines()[1] == f"embedded data: {tmp_path / 'demo'}"


def test_cars_say_what_to_place_where(tmp_path, capsys):
    with pytest.raises(UserError) as caught:
        provide("cars", tmp_path)
    assert str(caught.value) == (
        f"data set cars: {tmp_path}/stanford_cars/cars_train is missing; place the files named above, "
        f"then run `make data DATASET=cars DATA={tmp_path}`"
    )
    shown = capsys.readouterr().out
    for name in (f"{tmp_path}/stanford_cars:", "devkit/cars_train_annos.mat", "cars_test_annos_withlabels.mat"):
        assert name in shown


def test_what_differs_from_the_published_is_reported(tmp_path):
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    with pytest.raises(
        UserError, match=f"^data set file {folder}/meta is missing; move {folder} away and run `make data"
    ):
        provide("cifar100", tmp_path)


def test_cifar10_over_the_wire(server, tmp_path, monkeypatch):
    """The table's entry with another address and checksum: a partial download is continued, unpacked and read."""
    from torchvision.datasets import CIFAR10

    pixels = np.zeros((1, 3072), np.uint8)
    members = {f"data_batch_{k}": {"data": pixels, "labels": [k]} for k in range(1, 6)}
    members |= {"test_batch": {"data": pixels, "labels": [7]}, "batches.meta": {"label_names": list("abcdefghij")}}
    content = tar({f"cifar-10-batches-py/{name}": pickle.dumps(member) for name, member in members.items()})
    server.files["cifar-10-python.tar.gz"] = content
    monkeypatch.setattr(CIFAR10, "url", f"{server.url}/cifar-10-python.tar.gz")
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5(content))
    part = tmp_path / "downloads" / "cifar10" / "cifar-10-python.tar.gz.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(content[:100])
    message = (
        rf"^data set cifar10 has \(5, 1\) images in train and test, not \(50000, 10000\): .*; move {tmp_path}.* away"
    )
    for _ in range(2):
        with pytest.raises(UserError, match=message):
            download.main(["--dataset", "cifar10", "--data", str(tmp_path)])
    assert server.ranges == ["bytes=100-"]
    assert cifar10(tmp_path, "train").labels.tolist() == [1, 2, 3, 4, 5]


def test_ade20k_over_the_wire(server, tmp_path, monkeypatch):
    """The table's entry with another address and checksum: a partial download is continued, unpacked, counted."""
    root = "ADEChallengeData2016"
    members = {f"{root}/objectInfo150.txt": b""}
    for split, short, count in (("training", "train", 3), ("validation", "val", 2)):
        for k in range(1, count + 1):
            members[f"{root}/images/{split}/ADE_{short}_{k:08d}.jpg"] = b"image"
            members[f"{root}/annotations/{split}/ADE_{short}_{k:08d}.png"] = b"map"
    content = zipped(members)
    server.files[f"{root}.zip"] = content
    with monkeypatch.context() as patch:
        patch.setattr(download.shutil, "disk_usage", lambda place: Namespace(free=10**9))
        with pytest.raises(UserError, match=r"^ade20k needs 1\.9 GB more"):
            provide("ade20k", tmp_path)
    from_here = File(f"{server.url}/{root}.zip", md5(content), size=len(content))
    source = replace(SOURCES["ade20k"], archives=lambda tv: [from_here])
    monkeypatch.setitem(SOURCES, "ade20k", source)
    part = tmp_path / "downloads" / "ade20k" / f"{root}.zip.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(content[:100])
    message = rf"has 3 files .*images/training/\*\.jpg, not 20210; move {tmp_path}/{root} away and run `make data"
    with pytest.raises(UserError, match=message):
        download.main(["--dataset", "ade20k", "--data", str(tmp_path)])
    assert server.ranges == ["bytes=100-"]
    counts = dict(zip(source.counts, (3, 3, 2, 2), strict=True))
    monkeypatch.setitem(SOURCES, "ade20k", replace(source, counts=counts))
    provide("ade20k", tmp_path)
    (tmp_path / root / "annotations/validation/ADE_val_00000002.png").unlink()
    with pytest.raises(UserError, match=r"has 1 files .*annotations/validation/\*\.png, not 2"):
        provide("ade20k", tmp_path)
    shutil.rmtree(tmp_path / root / "annotations")
    with pytest.raises(UserError, match=r"has 0 files .*annotations/training/\*\.png, not 3; move .* away"):
        provide("ade20k", tmp_path)


def test_the_command_ends_with_one_line(tmp_path):
    command = [sys.executable, "-m", "common.download", "--dataset", "imagenet", "--data", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: data set folder")
    assert len(done.stderr.splitlines()) == 1
    for name in ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz", "account"):
        assert name in done.stdout


def test_ctrl_c_says_how_to_go_on(monkeypatch, capfd):
    monkeypatch.setattr(cli.os, "_exit", sys.exit)

    def stopped():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit):
        cli.run(stopped, interrupted="the same command continues the download")
    assert capfd.readouterr().err.strip() == "interrupted; the same command continues the download"


def jpeg(value):
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (value, 0, 0)).save(stream, "JPEG")
    return stream.getvalue()


@pytest.fixture
def imagenet(tmp_path, monkeypatch):
    """The three official archives of two classes, two training images each and three validation images."""
    from torchvision.datasets import imagenet

    classes = ["n01", "n02"]
    root = tmp_path / "imagenet"
    root.mkdir()
    kind = [("ILSVRC2012_ID", int), ("WNID", object), ("words", object), ("gloss", object), ("num_children", int)]
    synsets = np.array([(1, "n01", "a, b", "g", 0), (2, "n02", "c", "g", 0), (3, "n03", "d", "g", 2)], dtype=kind)
    meta = io.BytesIO()
    savemat(meta, {"synsets": synsets})
    devkit = "ILSVRC2012_devkit_t12/data"
    archives = {
        "train": tar({f"{c}.tar": tar({f"{c}_{k}.JPEG": jpeg(k) for k in (1, 2)}, "w") for c in classes}, "w"),
        "val": tar({f"ILSVRC2012_val_0000000{k}.JPEG": jpeg(k) for k in (1, 2, 3)}, "w"),
        "devkit": tar(
            {f"{devkit}/meta.mat": meta.getvalue(), f"{devkit}/ILSVRC2012_validation_ground_truth.txt": b"2\n1\n2\n"}
        ),
    }
    for key, content in archives.items():
        name, _ = imagenet.ARCHIVE_META[key]
        (root / name).write_bytes(content)
        monkeypatch.setitem(imagenet.ARCHIVE_META, key, (name, md5(content)))
    return root


def test_imagenet_is_unpacked_from_its_archives(imagenet, tmp_path, capsys):
    with pytest.raises(
        UserError,
        match=r"^data set imagenet has 2 classes, not 1000: it is not .*; place the files named above",
    ):
        provide("imagenet", tmp_path)
    assert tree(imagenet / "train") == [f"{c}/{c}_{k}.JPEG" for c in ("n01", "n02") for k in (1, 2)]
    assert tree(imagenet / "val") == [
        "n01/ILSVRC2012_val_00000002.JPEG",
        "n02/ILSVRC2012_val_00000001.JPEG",
        "n02/ILSVRC2012_val_00000003.JPEG",
    ]
    assert len(list(imagenet.iterdir())) == 5  # and nothing else


def test_a_damaged_archive_of_imagenet(imagenet, tmp_path):
    (imagenet / "ILSVRC2012_img_val.tar").write_bytes(b"x")
    with pytest.raises(UserError, match=r"ILSVRC2012_img_val\.tar cannot be unpacked"):
        provide("imagenet", tmp_path)
    assert not (imagenet / "val").exists()
    assert (imagenet / "train").is_dir()


def test_the_disk_is_asked_before_anything_is_downloaded(server, tmp_path, monkeypatch):
    content = server.files["a.tar.gz"] = tar({"toy/one.txt": b"1"})
    file = File(f"{server.url}/a.tar.gz", md5(content), size=10**18, unpacked=2 * 10**18)
    monkeypatch.setitem(SOURCES, "toy", toy_source(file))
    with pytest.raises(
        UserError, match=rf"^toy needs 3000000000\.0 GB more under {tmp_path}/new .* are free; make room"
    ):
        provide("toy", tmp_path / "new")
    assert server.ranges == []
    # A partial download counts.
    part = tmp_path / "downloads" / "toy" / "a.tar.gz.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"12345")
    monkeypatch.setattr(download.shutil, "disk_usage", lambda place: Namespace(free=100))
    small = File(file.url, file.md5, size=60, unpacked=50)
    monkeypatch.setitem(SOURCES, "toy", toy_source(small))
    with pytest.raises(UserError, match=r"needs 0\.0 GB"):
        download.require_room("toy", tmp_path)
    part.write_bytes(b"1234567890")
    download.require_room("toy", tmp_path)
    (tmp_path / "toy").mkdir()
    monkeypatch.setattr(download.shutil, "disk_usage", lambda place: Namespace(free=0))
    download.require_room("toy", tmp_path)  # a data set that is there needs no room


def test_coco_needs_forty_gigabytes_and_voc_six(tmp_path, monkeypatch):
    monkeypatch.setattr(download.shutil, "disk_usage", lambda place: Namespace(free=0))
    for name, needed in (("coco", "41.4"), ("voc", "5.8")):
        with pytest.raises(UserError, match=rf"^{name} needs {needed} GB more"):
            provide(name, tmp_path)


def test_voc_is_both_years(server, tmp_path, monkeypatch, capsys):
    """The table's entries with other addresses and checksums: three archives, unpacked side by side, checked."""
    from torchvision.datasets import voc

    def year(folder, splits):
        root = f"VOCdevkit/{folder}"
        members = {
            f"{root}/ImageSets/Main/{split}.txt": "".join(f"{n}\n" for n in names) for split, names in splits.items()
        }
        for name in (name for names in splits.values() for name in names):
            members |= {f"{root}/JPEGImages/{name}.jpg": "", f"{root}/Annotations/{name}.xml": ""}
        return tar({name: content.encode() for name, content in members.items()}, "w")

    parts = {"2007": year("VOC2007", {"trainval": "ab"}), "2007-test": year("VOC2007", {"test": "c"})}
    parts["2012"] = year("VOC2012", {"trainval": "de"})
    for key, content in parts.items():
        server.files[f"{key}.tar"] = content
        monkeypatch.setitem(voc.DATASET_YEAR_DICT, key, {"url": f"{server.url}/{key}.tar", "md5": md5(content)})
    monkeypatch.setattr(download.shutil, "disk_usage", lambda place: Namespace(free=10**11))
    counted = Source("VOC2007", "VOCdevkit/VOC2007", SOURCES["voc2007"].archives, counts={"JPEGImages/*.jpg": 3})
    monkeypatch.setitem(SOURCES, "voc2007", counted)
    source = SOURCES["voc2012"]
    monkeypatch.setitem(SOURCES, "voc2012", replace(source, counts=dict.fromkeys(source.counts, 2)))
    download.main(["--dataset", "voc", "--data", str(tmp_path)])
    shown = capsys.readouterr().out
    assert "VOC2007: 3 JPEGImages/*.jpg, as published" in shown
    assert "VOC2012: 2 JPEGImages/*.jpg, 2 Annotations/*.xml, as published" in shown
    assert tree(tmp_path / "VOCdevkit/VOC2007/JPEGImages") == ["a.jpg", "b.jpg", "c.jpg"]
    assert tree(tmp_path / "VOCdevkit/VOC2012/Annotations") == ["d.xml", "e.xml"]
    download.main(["--dataset", "voc", "--data", str(tmp_path)])
    assert len(server.ranges) == 3
    (tmp_path / "VOCdevkit/VOC2012/Annotations/d.xml").unlink()
    with pytest.raises(
        UserError,
        match=r"has 1 files .*Annotations/\*\.xml that .*trainval\.txt lists, not 2; move .* away and",
    ):
        provide("voc", tmp_path)
    (tmp_path / "VOCdevkit/VOC2012/ImageSets/Main/trainval.txt").unlink()
    with pytest.raises(UserError, match=r"trainval\.txt is missing; move .* away and run `make data DATASET=voc2012"):
        provide("voc", tmp_path)


def test_coco_over_the_wire(server, tmp_path, monkeypatch):
    archives = {
        "zips/train2017.zip": zipped({f"train2017/{k}.jpg": b"" for k in (1, 2)}),
        "zips/val2017.zip": zipped({"val2017/3.jpg": b""}),
        "annotations/annotations_trainval2017.zip": zipped(
            {f"annotations/instances_{split}2017.json": "{}" for split in ("train", "val")}
        ),
    }
    server.files |= archives
    official = SOURCES["coco"].files()
    assert [file.url for file in official] == [f"http://images.cocodataset.org/{name}" for name in archives]
    files = [File(f"{server.url}/{name}", md5(content), "coco") for name, content in archives.items()]
    counts = dict(zip(SOURCES["coco"].counts, (1, 2, 1, 1), strict=True))
    monkeypatch.setitem(SOURCES, "coco", replace(SOURCES["coco"], archives=lambda tv: files, counts=counts))
    provide("coco", tmp_path)
    assert tree(tmp_path / "coco") == [
        "annotations/instances_train2017.json",
        "annotations/instances_val2017.json",
        "train2017/1.jpg",
        "train2017/2.jpg",
        "val2017/3.jpg",
    ]
    (tmp_path / "coco/val2017/3.jpg").unlink()
    with pytest.raises(UserError, match=rf"has 0 files .*val2017/\*\.jpg, not 1; move {tmp_path}/coco away and run"):
        provide("coco", tmp_path)
    (tmp_path / "coco/annotations/instances_train2017.json").unlink()
    with pytest.raises(UserError, match=r"has 0 files .*instances_train2017\.json, not 1"):
        provide("coco", tmp_path)
