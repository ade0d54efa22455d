"""Settings of SLURM jobs: read strictly, times as SLURM writes them, and the script of a job without SLURM."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from m2dprep.artifacts.errors import UserError
from m2dprep.cli.main import m2dprep
from m2dprep.workflows.engine.job_settings import read_job_settings, wall_seconds


def settings_file(folder: Path, text: str) -> Path:
    (folder / "slurm.yaml").write_text(text)
    return folder / "slurm.yaml"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 5400), ("1:30", 90), ("04:00:00", 14400), ("1-12", 129600), ("1-12:30", 131400), ("2-00:00:05", 172805)],
)
def test_wall_times_as_slurm_reads_them(text: str, seconds: float) -> None:
    assert wall_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "0", "1:2:3:4", "-5", "12h"])
def test_wall_times_that_are_none(text: str) -> None:
    with pytest.raises(UserError, match="wall time"):
        wall_seconds(text)


@pytest.mark.slow
def test_values_stay_what_they_are_in_the_file(tmp_path: Path) -> None:
    """YAML would read an unquoted 12:00:00 as 43200, which SLURM takes for minutes."""
    path = settings_file(tmp_path, "walltime: 12:00:00\ncores: 8\nmemory: 16GB\njobs: 3\nprologue: |\n  a\n  b\n")
    settings = read_job_settings(path)
    assert (settings.walltime, settings.cores, settings.jobs, settings.prologue) == ("12:00:00", 8, 3, ("a", "b"))
    assert settings.workers == 24
    assert read_job_settings(path, jobs=5, gpu=True).workers == 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("quue: long\n", "unknown setting 'quue'; did you mean 'queue'"),
        ("cores: many\n", "cores cannot be 'many'"),
        ("cores: 0\n", "cores cannot be '0'"),
        ("gpu: 2\n", "gpu cannot be '2'; it is true or false"),
        ("queue: [a, b]\n", "queue is one value"),
        ("- queue\n", "holds no settings"),
        ("a: [\n", "is not YAML"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_job_settings(settings_file(tmp_path, text))


def melspec(folder: Path, *options: str) -> Result:
    return CliRunner().invoke(m2dprep, ["melspec", str(folder / "wavs"), str(folder / "a_lms"), *options])


def test_the_script_of_a_job_is_printed_without_slurm(tmp_path: Path) -> None:
    path = settings_file(tmp_path, "queue: q\nwalltime: 10:00:00\nmemory: 16GB\ncores: 8\ndirectives: [--qos=long]\n")
    result = melspec(tmp_path, "--cluster", "slurm", "--cluster-config", str(path), "--print-job")
    assert result.exit_code == 0, result.output
    for line in ("#SBATCH -p q", "#SBATCH --cpus-per-task=8", "#SBATCH -t 10:00:00", "#SBATCH --qos=long"):
        assert line in result.stdout
    for option in ("--nworkers 8", "--lifetime 35400s", "--lifetime-stagger 300s"):
        assert option in result.stdout
    assert "export DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED=False" in result.stdout
    assert not (tmp_path / "a_lms").exists()


def test_options_that_do_not_go_together_or_miss_something(tmp_path: Path) -> None:
    path = str(settings_file(tmp_path, "walltime: 10:00:00\ncores: 8\n"))
    for options, message in [
        (("--scheduler", "tcp://a:1", "--cluster", "slurm"), "exclude each other"),
        (("--jobs", "3"), "belong to --cluster slurm"),
        (("--scheduler", "tcp://a:1", "--workers", "3"), "processes of this machine"),
        (("--cluster", "slurm", "--cluster-config", path, "--print-job"), "SLURM jobs need memory"),
        (("--cluster", "slurm", "--cluster-config", path, "--print-job", "--json"), "--json cannot be"),
        (("--cluster", "slurm", "--cluster-config", str(tmp_path / "none")), "none"),
    ]:
        result = melspec(tmp_path, *options)
        assert (result.exit_code, message in result.output) == (2, True), (options, result.output)


def test_the_script_quotes_every_path_and_printing_it_makes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    odd = f"{tmp_path}/my logs; touch PWNED; $(touch PWNED) 100%J"
    path = settings_file(
        tmp_path,
        "walltime: 10:00:00\nmemory: 16GB\ncores: 8\nqueue: long queue\n"
        f"log_directory: {odd}\nlocal_directory: {odd}\npython: {odd}/python\ninterface: {odd}\n",
    )
    result = melspec(tmp_path, "--cluster", "slurm", "--cluster-config", str(path), "--print-job")
    assert result.exit_code == 0, result.output
    assert sorted(found.name for found in tmp_path.iterdir()) == ["slurm.yaml"]
    (errors,) = [line for line in result.stdout.splitlines() if line.startswith("#SBATCH --error")]
    assert errors == f"#SBATCH --error='{odd.replace('%', '%%')}'/m2dprep-%J.err"
    assert "#SBATCH -p 'long queue'" in result.stdout
    words = shlex.split(result.stdout.splitlines()[-1])
    assert words[:3] == [f"{odd}/python", "-m", "distributed.cli.dask_worker"]
    assert [words[words.index(option) + 1] for option in ("--local-directory", "--interface")] == [odd, odd]


def test_the_script_has_what_keeps_workers_going_and_others_out(tmp_path: Path) -> None:
    path = settings_file(tmp_path, "walltime: 10:00:00\nmemory: 16GB\ncores: 8\n")
    script = melspec(tmp_path, "--cluster", "slurm", "--cluster-config", str(path), "--print-job").stdout
    for line in (
        "export PYTHONSAFEPATH=1",
        "export DASK_DISTRIBUTED__WORKER__MEMORY__PAUSE=False",
        "export DASK_DISTRIBUTED__WORKER__HTTP__ROUTES='[]'",
    ):
        assert line in script.splitlines()
    words = shlex.split(script.splitlines()[-1])
    assert {"--tls-ca-file", "--tls-cert", "--tls-key"} <= set(words)
    assert words[words.index("--protocol") + 1] == "tls://"


@pytest.mark.parametrize("memory", ["lots", "-1GB", "0", "1 apple"])
def test_memory_that_is_none(tmp_path: Path, memory: str) -> None:
    path = settings_file(tmp_path, f"walltime: 10:00:00\nmemory: {memory}\ncores: 8\n")
    result = melspec(tmp_path, "--cluster", "slurm", "--cluster-config", str(path), "--print-job")
    assert (result.exit_code, "like 16GB" in result.output) == (2, True), result.output


@pytest.mark.parametrize("name", ["queue", "account", "log_directory", "local_directory", "python", "interface"])
def test_a_line_break_is_refused(tmp_path: Path, name: str) -> None:
    path = settings_file(tmp_path, f'walltime: 10:00:00\nmemory: 16GB\ncores: 8\n{name}: "a\\ntouch PWNED"\n')
    result = melspec(tmp_path, "--cluster", "slurm", "--cluster-config", str(path), "--print-job")
    assert (result.exit_code, f"{name} is one line of text" in result.output) == (2, True), result.output


@pytest.mark.slow
def test_settings_of_dask_that_cannot_be_read(tmp_path: Path) -> None:
    """Broken settings matter only if Dask does the work; then they are an error with the file's name."""
    home = tmp_path / "home" / ".config" / "dask"
    home.mkdir(parents=True)
    (home / "broken.yaml").write_text("distributed: [never closed\n  x: {")
    path = settings_file(tmp_path, "walltime: 10:00:00\nmemory: 16GB\ncores: 8\n")
    command = [sys.executable, "-m", "m2dprep", "check", str(tmp_path)]
    environment = {**os.environ, "HOME": str(tmp_path / "home")}
    for options in (["--cluster", "slurm", "--cluster-config", str(path), "--print-job"],):
        done = subprocess.run([*command, *options], capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 2
        assert "broken.yaml" in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "value", ["many", "0", "-1", "1.5", "\u00b2", "\u0663", "1e3", "9" * 30, "[1]", "{a: b}", "true"]
)
def test_counts_are_whole_numbers_and_errors_name_the_line(tmp_path: Path, value: str) -> None:
    for key in ("jobs", "cores"):
        path = settings_file(tmp_path, f"# a job\nqueue: long\n{key}: {value}\n")
        with pytest.raises(UserError, match=rf"slurm.yaml, line 3: {key} "):
            read_job_settings(path)


@pytest.mark.parametrize("value", ["lots", "16 apples", "-1GB", "1e9", "GB", "16 GBB", ".nan"])
def test_memory_is_a_number_with_a_unit(tmp_path: Path, value: str) -> None:
    with pytest.raises(UserError, match=r"slurm.yaml, line 1: memory cannot be"):
        read_job_settings(settings_file(tmp_path, f"memory: {value}\n"))
    for right in ("16GB", "4000MB", "1.5 TiB", "4G", "1000"):
        assert read_job_settings(settings_file(tmp_path, f"memory: {right}\n")).memory == right


def test_keys_that_come_twice(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"slurm.yaml, line 2: the file sets cores twice"):
        read_job_settings(settings_file(tmp_path, "cores: 3\ncores: 4\n"))
