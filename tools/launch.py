"""torchrun without its own tracebacks: `python -m tools.launch --nproc_per_node 8 -m pretrain.train ...`.

A process that fails has printed why; torchrun would bury that line under its own traceback. Where machines
cannot meet at --rdzv_endpoint, torchrun would wait for minutes or for ever; here, one line says so.
"""

import logging
import os
import socket
import sys
import threading
from contextlib import suppress
from datetime import timedelta
from typing import NoReturn

from torch.distributed import TCPStore
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import RendezvousConnectionError
from torch.distributed.elastic.rendezvous.utils import parse_rendezvous_endpoint
from torch.distributed.run import main

PORT = 29400  # torchrun's, where the endpoint names none
PATIENCE = 10.0  # seconds in which a first machine that is there answers


def why_not(endpoint: str) -> str | None:
    """Return why machines cannot meet at `endpoint` (host:port), or None. A first machine may still be to start."""
    try:
        host, port = parse_rendezvous_endpoint(endpoint, PORT)
    except ValueError as error:
        return str(error)
    try:
        socket.create_connection((host, port), timeout=PATIENCE).close()
    except socket.gaierror:
        return f"no machine is known by the name {host}; give the first machine's name or address"
    except OSError:  # no one is there yet
        return None
    if _is_torchrun_s(host, port):
        return None
    return "another program has that port; choose a free one, the same on every machine"


def _is_torchrun_s(host: str, port: int) -> bool:
    """Return whether a torchrun answers there. Torch's own timeouts do not cover a server that says nothing."""
    found: list[bool] = []

    def ask() -> None:
        with suppress(Exception):
            found.append(TCPStore(host, port, timeout=timedelta(seconds=PATIENCE)).check([""]) is not None)

    thread = threading.Thread(target=ask, daemon=True)
    errors = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)  # torch's C++ writes pages of addresses there
        try:
            thread.start()
            thread.join(PATIENCE)
        finally:
            os.dup2(errors, 2)
            os.close(errors)
    return bool(found)


def _leave(message: str) -> NoReturn:
    print(f"error: HEAD={message}", file=sys.stderr, flush=True)
    os._exit(1)  # a thread may be waiting for an answer


if __name__ == "__main__":
    logging.disable(logging.ERROR)
    head = sys.argv[sys.argv.index("--rdzv_endpoint") + 1] if "--rdzv_endpoint" in sys.argv else ""
    if head and (reason := why_not(head)):
        _leave(f"{head}: {reason}")
    try:
        main()
    except ChildFailedError as error:
        codes = [failure.exitcode for failure in error.failures.values()]
        sys.exit(next((code for code in codes if code > 0), 1))
    except RendezvousConnectionError:
        _leave(f"{head}: no one answers there; start the same command on the first machine, and let that port through")
    except SignalException as stopped:
        sys.exit(128 + stopped.sigval)
