"""Training as a SLURM job of several processes: the script, which requeues itself, and its submission."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from m2dprep.artifacts.errors import UserError
from m2dprep.workflows.engine.job_settings import JobSettings, directive_path, wall_seconds

# Training is told to save this long before the end of the wall time: seconds, share of the wall time, seconds. SLURM
# may send the signal up to a minute early.
MIN_NOTICE, NOTICE_SHARE, MAX_NOTICE = 60.0, 0.1, 600.0

# USR1 reaches every process of the step, and only training may act on it. The processes that start training ignore the
# signal, and the script repeats it until training has begun to listen.
SCRIPT = """\
#!/usr/bin/env bash
{directives}
{prologue}
stopped={out}/stopped-$SLURM_JOB_ID
rm -f "$stopped"
told=
trap 'told=1' USR1
{rendezvous}srun bash -c 'trap "" USR1; exec "$@"' bash \\
  {torchrun} \\
  -m m2dprep.cli.under_torchrun "$stopped" train {arguments} &
step=$!
while kill -0 "$step" 2>/dev/null; do
  if [ -z "$told" ]; then wait "$step"; continue; fi
  kill -USR1 "$step"
  for second in 1 2 3 4 5 6 7 8 9 10; do kill -0 "$step" 2>/dev/null && sleep 1; done
done
wait "$step"
code=$?
if [ -e "$stopped" ]; then
  rm -f "$stopped"
  scontrol requeue "$SLURM_JOB_ID" && sleep 300  # SLURM ends the script; one that ends first counts as failed
  exit 75
fi
exit "$code"
"""


@dataclass(frozen=True)
class Launch:
    """A training job on ``nodes`` machines with ``gpus_per_node`` processes each, or one process each without GPUs.

    ``settings`` hold everything else that SLURM is asked for. ``arguments`` are those of ``m2dprep train``, and ``out``
    is the folder of the run.
    """

    nodes: int
    gpus_per_node: int
    settings: JobSettings
    arguments: Sequence[str]
    out: Path

    def script(self) -> str:
        """The script for sbatch. It runs in the folder in which the command was given."""
        settings = self.settings
        python = settings.python or sys.executable
        torchrun = [python, "-m", "torch.distributed.run", "--nnodes", str(self.nodes)]
        torchrun += ["--nproc-per-node", str(max(1, self.gpus_per_node)), "--max-restarts", "0"]
        command, rendezvous = shlex.join(torchrun), ""
        if self.nodes == 1:
            command += " --standalone"
        else:
            command += ' --rdzv-id "$SLURM_JOB_ID" --rdzv-backend c10d --rdzv-endpoint "$head:$port"'
            rendezvous = (
                'head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)\n'
                "port=$((20000 + SLURM_JOB_ID % 20000))\n"
            )
        # Since SLURM 22.05 srun does not take over the job's cores by itself.
        exports = [f"export OMP_NUM_THREADS={self._threads()}", "export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK"]
        if settings.cores is None:
            exports.pop()
        if settings.interface:
            exports += [f"export {name}_SOCKET_IFNAME={shlex.quote(settings.interface)}" for name in ("GLOO", "NCCL")]
        return SCRIPT.format(
            directives="\n".join(f"#SBATCH {directive}" for directive in self._directives()),
            prologue="\n".join([*exports, *settings.prologue]),
            out=shlex.quote(str(self.out.absolute())),
            rendezvous=rendezvous,
            torchrun=command,
            arguments=shlex.join(self.arguments),
        )

    def _directives(self) -> list[str]:
        settings = self.settings
        logs = Path(settings.log_directory).absolute() if settings.log_directory else self.out.absolute()
        asked: dict[str, Any] = {
            "job-name": "m2dprep-train",
            "partition": settings.queue,
            "account": settings.account,
            "time": settings.walltime,
            "nodes": self.nodes,
            "ntasks-per-node": 1,
            "cpus-per-task": settings.cores,
            "mem": settings.memory and settings.memory.upper().removesuffix("B").removesuffix("I"),
            "gpus-per-node": self.gpus_per_node or None,
            "open-mode": "append",
        }
        lines = [f"--{name}={shlex.quote(str(value))}" for name, value in asked.items() if value is not None]
        lines.append(f"--output={directive_path(logs)}/slurm-%j.out")
        return [*lines, "--requeue", f"--signal=B:USR1@{self._notice()}", *settings.directives]

    def _notice(self) -> int:
        """How many seconds before the end of the wall time training is told to stop."""
        if self.settings.walltime is None:
            raise UserError("training jobs need a wall time: give it in the file of --cluster-config (walltime: ...).")
        wall = wall_seconds(self.settings.walltime)
        return int(min(max(MIN_NOTICE, NOTICE_SHARE * wall), MAX_NOTICE, wall / 2))

    def _threads(self) -> int:
        """Threads per process: one with GPUs, otherwise all cores of the job."""
        return 1 if self.gpus_per_node else self.settings.cores or 1

    def submit(self) -> Launched:
        """Submit the job to SLURM. Raises `UserError` if SLURM refuses it."""
        script = self.script()
        self.out.mkdir(parents=True, exist_ok=True)
        if self.settings.log_directory:
            Path(self.settings.log_directory).mkdir(parents=True, exist_ok=True)
        try:
            done = subprocess.run(
                ["sbatch", "--parsable"], input=script, capture_output=True, text=True, check=False, timeout=120
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise UserError(f"sbatch cannot be called: {error}. --print-job prints the script instead.") from error
        if done.returncode:
            raise UserError(f"SLURM refuses the job: {' '.join(done.stderr.split())}")
        return Launched(done.stdout.strip().partition(";")[0], str(self.out))


@dataclass(frozen=True)
class Launched:
    """A job in SLURM's queue that trains the run in ``out``."""

    job: str
    out: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
