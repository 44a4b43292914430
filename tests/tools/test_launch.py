"""Machines that meet, and the line that says why they cannot."""

import os
import socket
import subprocess
import sys
import time

import pytest

from tests.pretrain.tiny import ROOT

WORK = "import os; print('rank', os.environ['RANK'], 'of', os.environ['WORLD_SIZE'], flush=True)"


@pytest.fixture
def taken():
    """Return a port of this machine where a program listens and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def launched(tmp_path, head):
    """Start one of two machines that meet at `head`."""
    (tmp_path / "work.py").write_text(WORK)
    where = ("--nnodes", "2", "--rdzv_backend", "c10d", "--rdzv_id", "x", "--rdzv_endpoint", head)
    command = [sys.executable, "-m", "tools.launch", *where, "--nproc_per_node", "1", str(tmp_path / "work.py")]
    pipe, environment = subprocess.PIPE, os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True, env=environment)


@pytest.mark.parametrize(
    ("head", "says"),
    [
        ("no-such-machine.invalid:29500", "no machine is known by the name no-such-machine.invalid; give the first"),
        ("localhost:port", "The port number of the rendezvous endpoint 'localhost:port' must be an integer"),
        ("127.0.0.1:{taken}", "another program has that port; choose a free one, the same on every machine"),
    ],
)
def test_a_place_where_machines_cannot_meet_is_named_soon(tmp_path, taken, head, says):
    head, started = head.format(taken=taken), time.monotonic()
    said, errors = launched(tmp_path, head).communicate(timeout=60)
    assert time.monotonic() - started < 30
    assert (said, len(errors.splitlines())) == ("", 1)
    assert errors.startswith(f"error: HEAD={head}: {says}")


def test_two_machines_meet_whichever_comes_first(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    both = [launched(tmp_path, f"127.0.0.1:{port}") for _ in range(2)]
    ended = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], ended
    assert sorted(said for said, _ in ended) == ["rank 0 of 2\n", "rank 1 of 2\n"]
