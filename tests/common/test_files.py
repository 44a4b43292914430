"""Files are complete or absent, whatever happens while they are written."""

import errno
import hashlib
import os
import signal
import stat
import subprocess
import sys
import threading
import time
import zipfile

import pytest
from filelock import Timeout
from hypothesis import given
from hypothesis import strategies as st

from common.errors import UserError
from common.files import (
    Claim,
    atomic_path,
    atomic_write,
    is_whole_zip,
    only_here,
    set_aside,
    sha256_of_file,
    sha256_of_text,
    write_json,
)


def test_a_file_appears_with_its_content_in_a_new_folder(tmp_path):
    path = tmp_path / "new" / "folder" / "file.txt"
    atomic_write(path, lambda file: file.write_text("content"))
    assert path.read_text() == "content"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), ValueError("ours"), KeyboardInterrupt()], ids=repr
)
def test_a_failing_writer_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "file.txt"
    path.write_text("old")

    def write(file):
        file.write_text("half of the ne")
        raise error

    with pytest.raises(type(error)):
        atomic_write(path, write)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_name_does_not_change_before_the_data_is_on_disk(tmp_path, monkeypatch):
    path, order = tmp_path / "file.txt", []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (order.append("fsync"), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append("rename"), replace(a, b)))
    atomic_write(path, lambda file: file.write_text("new"))
    assert order == ["fsync", "rename", "fsync"]  # the file, its new name, the folder that holds the name


def test_a_failing_fsync_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file.txt"
    path.write_text("old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        atomic_write(path, lambda file: file.write_text("new"))
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640)])
def test_permissions_are_those_of_an_ordinary_file(tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        atomic_write(tmp_path / "file.txt", lambda file: file.write_text("x"))
        assert os.umask(mask) == mask  # asking for the umask did not change it
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file.txt").stat().st_mode) == mode


def test_writers_of_one_file_at_the_same_time_do_not_mix(tmp_path):
    path, barrier, temporaries = tmp_path / "file.txt", threading.Barrier(4), []

    def work(letter):
        with atomic_path(path) as temporary:
            temporaries.append(temporary)
            barrier.wait(10)  # all four hold their temporary file now
            temporary.write_text(letter * 1000)

    threads = [threading.Thread(target=work, args=(letter,)) for letter in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(temporaries)) == 4
    assert path.read_text() in {letter * 1000 for letter in "abcd"}
    assert list(tmp_path.iterdir()) == [path]


def test_the_temporary_file_is_not_taken_for_a_record_or_a_checkpoint(tmp_path):
    with atomic_path(tmp_path / "a.json") as temporary:
        assert temporary.parent == tmp_path  # a rename is atomic within one file system only
        assert not list(tmp_path.glob("*.json"))
        temporary.write_text("{}")


def test_json_is_indented_utf8_and_refuses_nan(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"ä": 1})
    assert path.read_bytes() == '{\n  "ä": 1\n}\n'.encode()
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, {"a": float("nan")})
    assert path.read_bytes() == '{\n  "ä": 1\n}\n'.encode()


def test_sha256_of_file_is_that_of_its_bytes(tmp_path):
    content = bytes(range(256)) * 5000
    (tmp_path / "a").write_bytes(content)
    assert sha256_of_file(tmp_path / "a") == hashlib.sha256(content).hexdigest()


@given(st.lists(st.text(st.characters(exclude_characters="\0", codec="utf-8")), min_size=2))
def test_sha256_of_text_knows_where_parts_end(parts):
    joined = [parts[0] + parts[1], *parts[2:]]
    assert sha256_of_text(*parts) == sha256_of_text(*parts)
    assert sha256_of_text(*parts) != sha256_of_text(*joined)
    assert sha256_of_text(*parts) != sha256_of_text(*parts, "")


def test_files_set_aside_do_not_replace_each_other(tmp_path):
    path = tmp_path / "a.json"
    for text in "12":
        path.write_text(text)
        set_aside(path)
    assert sorted((p.name, p.read_text()) for p in tmp_path.iterdir()) == [
        ("a.json.replaced-1", "1"),
        ("a.json.replaced-2", "2"),
    ]


HOLDER = """
import os, sys, time
from pathlib import Path
from common.files import only_here
with only_here(Path(sys.argv[1])):
    if os.fork():  # a worker of the holder's, which may outlive it
        print("held", flush=True)
    time.sleep(60)
"""


def test_a_folder_is_one_process_s_until_it_is_killed_though_its_children_live_on(tmp_path):
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(
                UserError, match=rf"^{tmp_path}: another process \({holder.pid} on .*\) is working on this run; wait"
            ),
            only_here(tmp_path),
        ):
            raise AssertionError
        holder.kill()
        holder.wait()
        with only_here(tmp_path):
            os.killpg(holder.pid, 0)  # the child is there
    finally:
        os.killpg(holder.pid, signal.SIGKILL)
    with only_here(tmp_path):
        pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_used_without(tmp_path, monkeypatch, number):
    def lockf(*args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.lockf", lockf)
    with only_here(tmp_path / "new"):
        assert (tmp_path / "new").is_dir()


WAITER = """
import sys
from pathlib import Path
from common.files import alone
with alone(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.mark.parametrize("error", [None, "ENOSYS", "ENOLCK", "EOPNOTSUPP"])
def test_of_processes_that_make_one_file_one_works_though_the_file_system_has_no_locks(tmp_path, error):
    fails = f"raise OSError(errno.{error}, os.strerror(errno.{error}))" if error else "return real(*args)"
    prepare = f"import errno, fcntl, os\nreal = fcntl.flock\ndef flock(*args):\n    {fails}\nfcntl.flock = flock\n"
    command = [sys.executable, "-c", prepare + WAITER, str(tmp_path / "a.npy")]
    pipe = subprocess.PIPE
    both = []
    for line in ("held\n", f"waiting for another process that makes {tmp_path}/a.npy\n"):
        both.append(subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True))
        assert both[-1].stdout.readline() == line
    first, second = both
    if error is None:
        first.kill()  # the system releases what it held
    else:
        first.stdin.write("\n")
    assert first.communicate(timeout=30) == ("", "")
    assert second.stdout.readline() == "held\n"
    assert second.communicate("\n", timeout=30) == ("", "")


@pytest.mark.parametrize("content", ["", "tor"], ids=["empty", "torn"])
def test_a_claim_without_its_content_is_taken_over(tmp_path, monkeypatch, capsys, content):
    monkeypatch.setattr("common.files.LEASE", 0.5)
    claim = Claim(tmp_path / "a.claim")
    claim.path.write_text(content)
    with pytest.raises(Timeout):
        claim.acquire()
    deadline = time.monotonic() + 10
    while True:
        try:
            claim.acquire()
            break
        except Timeout:
            assert time.monotonic() < deadline
            time.sleep(0.1)
    with pytest.raises(Timeout):
        Claim(claim.path).acquire()
    claim.release()
    assert os.listdir(tmp_path) == []
    assert (f"{claim.path} is empty" in capsys.readouterr().out) == (content == "")


def test_a_full_disk_s_error_names_the_file(tmp_path):
    for named, want in ((None, str(tmp_path / "file")), ("other", "other")):
        with pytest.raises(OSError, match="full") as caught, atomic_path(tmp_path / "file"):
            raise OSError(errno.ENOSPC, "full", named)
        assert caught.value.filename == want


def test_a_zip_is_whole_if_every_checksum_holds(tmp_path):
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(path, "w") as content:
        content.writestr("a", b"tensor")
    assert is_whole_zip(path)
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"tensor", b"tensos"))
    assert not is_whole_zip(path)
    path.write_bytes(whole[:-1])
    assert not is_whole_zip(path)
    assert not is_whole_zip(tmp_path / "none.pth")
