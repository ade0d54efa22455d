"""A SLURM of one node in a folder, with its own munged, slurmctld and slurmd on free ports."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path

from tests.workflows.engine.dask_processes import wait_until

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel")

CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
KillWait=2
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} RealMemory={megabytes} Gres=gpu:2 State=UNKNOWN
PartitionName=debug Nodes={host} Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:8
"""


def why_not() -> str:
    """Why SLURM cannot be started here; empty if it can."""
    if missing := [program for program in PROGRAMS if shutil.which(program) is None]:
        return f"{', '.join(missing)} not installed (apt-get install slurm-wlm munge)"
    return "" if os.geteuid() == 0 else "bringing up SLURM needs root"


class Slurm:
    """One node with all cores of this machine, several jobs on each; `SLURM_CONF` is in ``environment``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}

    def up(self) -> None:
        self.folder.chmod(0o755)  # munged wants its socket to be reachable by everybody
        for name in ("munge", "state", "spool"):
            (self.folder / name).mkdir(parents=True, mode=0o755)
        key = self.folder / "munge" / "key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        (self.folder / "slurm.conf").write_text(
            CONFIGURATION.format(
                host=socket.gethostname().partition(".")[0],
                folder=self.folder,
                controller_port=free_port(),
                node_port=free_port(),
                cores=os.cpu_count(),
                megabytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * 9 // 10 >> 20,
            )
        )
        # Two fake devices: GPUs are counted and allocated, but do not exist.
        (self.folder / "gres.conf").write_text("Name=gpu File=/dev/null\nName=gpu File=/dev/zero\n")
        places = {"key-file": "key", "socket": "socket", "pid-file": "munged.pid", "log-file": "log", "seed-file": "s"}
        self._run("munged", *(f"--{option}={self.folder / 'munge' / name}" for option, name in places.items()))
        self._run("slurmctld")
        self._run("slurmd")
        wait_until(lambda: "idle" in self._run("sinfo", "-h", "-o", "%T", check=False), "SLURM's node coming up")

    def down(self) -> None:
        self._run("scancel", "--user", "root", check=False)
        with contextlib.suppress(AssertionError):
            wait_until(lambda: not self.jobs(), "the end of the jobs", 15)
        for name in ("slurmd.pid", "slurmctld.pid", "munge/munged.pid"):
            with contextlib.suppress(FileNotFoundError, ValueError, ProcessLookupError):
                pid = int((self.folder / name).read_text())
                os.kill(pid, signal.SIGTERM)
                wait_until(lambda pid=pid: not alive(pid), f"the end of {name}", 15)  # type: ignore[misc]

    def jobs(self, states: str = "PENDING,RUNNING,COMPLETING") -> list[str]:
        """Ids of the jobs in ``states``, in order of submission."""
        found = self._run("squeue", "--noheader", "--states", states, "--format", "%i", check=False).split()
        return sorted(found, key=int)

    def cancel(self, job: str) -> None:
        self._run("scancel", job)

    def state(self, job: str) -> str:
        """``RUNNING``, ``PENDING``, ``COMPLETED``, …"""
        return self._run("squeue", "--noheader", "--states", "all", "--jobs", job, "--format", "%T").strip()

    def signal_script(self, job: str, name: str) -> None:
        """Signal only the script of a job, as ``--signal=B:…`` does before the wall time."""
        self._run("scancel", "--batch", "--signal", name, job)

    def start_soon(self, job: str) -> None:
        """Let a requeued job start after 3 s, not 2 minutes. If it started at once, its node would refuse it."""
        self._run("scontrol", "update", f"JobId={job}", "StartTime=now+3")

    def _run(self, *command: str, check: bool = True) -> str:
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=self.environment, timeout=60)
        assert not check or done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
