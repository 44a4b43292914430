"""A Slurm of one node on this machine, for the tests marked `slurm`: no systemd, no cgroups, no accounting."""

import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ("slurmctld", "slurmd", "srun", "sbatch", "munged", "make")
CPUS = 4  # whatever the machine has: tests wait more than they compute

CONFIG = """
ClusterName=gsg
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0
JobRequeue=1
ReturnToService=2
KillWait=30
MailProg=/bin/true
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


class Cluster:
    """The commands of a Slurm that is up, and make beside it."""

    def __init__(self, folder):
        self.folder = folder
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "MAKE", "MFLAGS"))}
        self.environment |= {"SLURM_CONF": f"{folder}/slurm.conf", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}

    def call(self, *command):
        """Return what a command prints."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def state(self, job):
        """Return a job's state, in capitals."""
        return re.search(r"JobState=(\w+)", self.call("scontrol", "show", "job", job))[1]

    def make(self, target, **variables):
        """Start `make` with this Python on the cluster, and return a Run."""
        words = [f"{name}={value}" for name, value in variables.items()]
        return Run(
            ["make", "-C", ROOT, "--no-print-directory", target, "LAUNCHER=slurm", f"PYTHON={sys.executable}", *words],
            self.environment,
            Path(tempfile.mkdtemp(dir=self.folder)),
        )


class Run:
    """A command that goes on beside the tests. It prints into files, since a pipe that nobody reads would stop it."""

    def __init__(self, command, environment, folder):
        self.files = folder / "stdout", folder / "stderr"
        with ExitStack() as stack:
            stdout, stderr = (stack.enter_context(file.open("wb")) for file in self.files)
            self.process = subprocess.Popen(command, env=environment, stdout=stdout, stderr=stderr)

    def ended(self):
        """Wait; return the exit code and what was printed on stdout and on stderr."""
        code = self.process.wait(timeout=120)
        return code, *map(text, self.files)


def text(file):
    """Return what a file holds; where stdout and stderr share it, one may have cut a character of the other in two."""
    return file.read_text(errors="replace")


@pytest.fixture(scope="session")
def cluster():
    """Return a Cluster, brought up for all tests of the session; they are skipped where Slurm is not installed."""
    if os.name != "posix" or os.geteuid() != 0 or not all(map(shutil.which, PROGRAMS)):
        pytest.skip("needs root and `apt-get install slurm-wlm munge`")
    # munged refuses a folder that others may write to, such as /tmp.
    folder = Path(tempfile.mkdtemp(prefix="gsg-slurm-", dir="/run"))
    folder.chmod(0o755)
    cluster = Cluster(folder)
    try:
        start(folder, cluster)
        yield cluster
        cluster.call("scancel", "--user=root")
        wait_for(lambda: cluster.call("squeue", "--noheader") == "", 60, folder)
    finally:
        for name in ("slurmd", "slurmctld", "munged"):
            stop(folder / f"{name}.pid")
        shutil.rmtree(folder, ignore_errors=True)


def start(folder, cluster):
    """Start munged, slurmctld and slurmd, with all that they write in `folder`."""
    with ExitStack() as held:
        ports = [held.enter_context(socket.create_server(("", 0))).getsockname()[1] for _ in range(2)]
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    host = platform.node().partition(".")[0]
    (folder / "slurm.conf").write_text(CONFIG.format(folder=folder, host=host, ports=ports, cpus=CPUS))
    files = {"key-file": key, "socket": folder / "munge.socket", "pid-file": folder / "munged.pid"}
    files |= {"log-file": folder / "munged.log", "seed-file": folder / "munged.seed"}
    cluster.call("munged", *(f"--{name}={path}" for name, path in files.items()))
    cluster.call("slurmctld", "-c")
    cluster.call("slurmd", "-c", "-N", host)
    wait_for(lambda: cluster.call("sinfo", "--noheader", "--format=%T") == "idle", 60, folder)


def wait_for(condition, seconds, folder):
    """Wait until the condition holds; fail with the daemons' last lines if it does not."""
    deadline = time.monotonic() + seconds
    while not condition():
        logs = [path.read_text()[-2000:] for path in folder.glob("*.log")]
        assert time.monotonic() < deadline, "\n".join(logs)
        time.sleep(0.2)


def stop(file):
    """End the daemon whose number the file holds."""
    try:
        number = int(file.read_text())
        os.kill(number, signal.SIGTERM)
    except (FileNotFoundError, ValueError, ProcessLookupError):
        return
    for _ in range(100):
        if not Path(f"/proc/{number}").exists():
            return
        time.sleep(0.1)
    os.kill(number, signal.SIGKILL)
