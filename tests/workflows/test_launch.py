"""``m2dprep submit``: the script that it prints or submits; the job itself is tested in test_slurm.py."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from m2dprep.cli.main import m2dprep

CONFIG = (
    "queue: gpu\naccount: us\nwalltime: 12:00:00\nmemory: 120GB\ncores: 16\ninterface: ib0\nprologue: module load x\n"
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "slurm.yaml").write_text(CONFIG)
    return tmp_path


TRAIN = ("train", "data", "-o", "runs/my run")


def submit(*arguments: str) -> Result:
    return CliRunner().invoke(m2dprep, ["submit", *arguments])


def test_the_script_asks_for_everything_and_runs_the_same_command(folder: Path) -> None:
    options = ("--nodes", "2", "--gpus-per-node=8", "--cluster-config", "slurm.yaml", "--print-job")
    result = submit(*options, *TRAIN, "--seed", "3")
    assert result.exit_code == 0, result.output
    script = result.stdout
    asked = {line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH")}
    assert asked >= {
        "--partition=gpu", "--account=us", "--time=12:00:00", "--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=16",
        "--mem=120G", "--gpus-per-node=8", "--requeue", "--signal=B:USR1@600",
    }  # fmt: skip
    assert f"--output='{folder}/runs/my run'/slurm-%j.out" in asked
    assert "train data -o 'runs/my run' --seed 3 &" in script
    assert "--nnodes 2 --nproc-per-node 8" in script
    assert "export NCCL_SOCKET_IFNAME=ib0" in script
    assert script.index("module load x") < script.index("srun")
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
    assert not (folder / "runs").exists()


CONFIGURED = ("--cluster-config", "slurm.yaml")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ((*CONFIGURED, *TRAIN, "--overwrite"), "start over each time"),
        ((*CONFIGURED, *TRAIN, "--dry-run"), "--print-job prints the job"),
        (("--print-job", *TRAIN), "need a wall time"),
        (("--cluster-config", "none.yaml", *TRAIN), "none.yaml"),
        ((*CONFIGURED, "--print-job", "--json", *TRAIN), "--json cannot be"),
        (CONFIGURED, "nothing to submit; end the command with a training"),
        ((*CONFIGURED, "melspec", "a", "b"), "'melspec' cannot be submitted"),
        ((*CONFIGURED, "train", "data"), "Missing option '--output'"),
        ((*CONFIGURED, *TRAIN, "--nodes", "2"), "--nodes belongs to the job: put it before train"),
        ((*CONFIGURED, *TRAIN, "--epoch", "2"), "No such option '--epoch'. (Did you mean one of: '--epochs'"),
        ((*CONFIGURED, *TRAIN, "--epochs", "many"), "'many' is not a valid integer"),
        ((*CONFIGURED, *TRAIN, "--epochs", "2", "--warmup-epochs", "3"), "must be within the 2 epochs"),
        ((*CONFIGURED, "train", "nowhere", "-o", "run"), "nowhere: no such folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_what_cannot_run_is_refused_before_it_is_queued(folder: Path, line: tuple[str, ...], message: str) -> None:
    result = submit(*line)
    assert (result.exit_code, message in result.output) == (2, True), result.output
    assert not (folder / "runs").exists()


def test_a_machine_without_slurm_is_told_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(folder))
    result = submit(*CONFIGURED, *TRAIN)
    assert (result.exit_code, "sbatch cannot be called" in result.output) == (2, True)


def test_the_training_s_options_reach_the_job_untouched(folder: Path) -> None:
    for between in ((), ("--",)):
        result = submit(*CONFIGURED, "--print-job", *between, "train", "data", "--output=--print-job", "--json")
        assert "train data --output=--print-job --json &" in result.stdout, result.output


def test_the_job_in_the_documents_passes_the_signal_on_and_queues_itself_again(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs/recipes.md").read_text()
    script = text.split("<<'EOF'\n", 1)[1].split("EOF\n", 1)[0]
    programs = {
        "m2dprep": "trap 'sleep 0.2; exit 75' USR1; touch listening; while :; do sleep 0.05; done",
        "scontrol": 'echo "$@" >> queued',
    }
    for name, body in programs.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    job = subprocess.Popen(["bash", "-c", script], cwd=tmp_path, env=environment)
    while not (tmp_path / "listening").exists():
        time.sleep(0.02)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(120) == 75
    assert (tmp_path / "queued").read_text() == "requeue 7\n"


BREAKING = "\ntouch PWNED\n"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("-o", f"runs/a{BREAKING}b"),
        ("log_directory", '"a\\ntouch PWNED\\nb"'),
        ("queue", '"gpu\\ntouch PWNED"'),
        ("account", '"us\\ntouch PWNED"'),
        ("walltime", '"10\\ntouch PWNED"'),
        ("directives", '["--qos=a\\ntouch PWNED"]'),
    ],
)
def test_a_line_break_never_becomes_a_line_of_shell(folder: Path, name: str, value: str) -> None:
    train = list(TRAIN)
    if name.startswith("-"):
        train += [name, value]
    else:
        lines = [line for line in CONFIG.splitlines() if not line.startswith(name)]
        (folder / "slurm.yaml").write_text("\n".join([*lines, f"{name}: {value}", ""]))
    result = submit(*CONFIGURED, "--print-job", *train)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    assert not (folder / "runs").exists()


def test_a_folder_with_every_odd_character_stays_one_word(folder: Path) -> None:
    odd = "a b'c\"d$(touch PWNED)`e`;f&g#h%j\\i"
    result = submit(*CONFIGURED, "--print-job", "train", "data", "-o", odd)
    assert result.exit_code == 0, result.output
    script = result.stdout.replace("srun bash -c", "true bash -c")
    done = subprocess.run(
        ["bash", "-c", f"{script.partition('exit 75')[0]}fi\nprintf %s \"$stopped\""],
        capture_output=True, text=True, check=False, cwd=folder, env={**os.environ, "SLURM_JOB_ID": "7"},
    )  # fmt: skip
    assert done.stdout.endswith(f"{folder / odd}/stopped-7"), done
    assert not (folder / "PWNED").exists()
    (output,) = [line for line in result.stdout.splitlines() if line.startswith("#SBATCH --output=")]
    assert "h%%j" in output, "SLURM replaces %j by a number"
