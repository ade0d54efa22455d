"""A command ends with its own exit code once its work is done, whatever a library would do at the end of Python."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = [sys.executable, "-m", "m2dprep"]
# Imported before everything else: a library whose threads abort at the very end, and an exit handler that must run.
LIBRARY = """
import atexit, ctypes, os
libc = ctypes.CDLL(None)
libc.__cxa_atexit(libc.abort, None, None)
if os.environ.get("MARKER"):
    atexit.register(lambda: open(os.environ["MARKER"], "w").close())
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(LIBRARY)
    return {**os.environ, "PYTHONPATH": f"{tmp_path / 'site'}{os.pathsep}{ROOT}", "MARKER": str(tmp_path / "handled")}


@pytest.mark.parametrize(
    ("arguments", "code"), [(["--version"], 0), (["check", "nowhere"], 2), (["no-such-command"], 2)], ids=str
)
def test_exit_codes_and_output_survive_a_library_that_aborts_at_the_end(
    environment: dict[str, str], tmp_path: Path, arguments: list[str], code: int
) -> None:
    done = subprocess.run(
        [*PROGRAM, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stderr
    assert (done.stdout if code == 0 else done.stderr).strip()
    assert (tmp_path / "handled").exists(), "exit handlers run"


def test_python_itself_would_abort(environment: dict[str, str]) -> None:
    done = subprocess.run([sys.executable, "-c", ""], env=environment, capture_output=True, check=False)
    assert done.returncode == -6


def test_a_full_disk_is_still_an_error_and_a_reader_that_went_is_none(environment: dict[str, str]) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run([*PROGRAM, "--help"], env=environment, stdout=full, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr.startswith(b"m2dprep: error: ")) == (2, True), done.stderr
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([*PROGRAM, "--help"], env=environment, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


def test_who_runs_it_inside_something_else_gets_it_back(environment: dict[str, str], tmp_path: Path) -> None:
    """A profiler has its say after the command."""
    environment = {**environment, "PYTHONPATH": str(ROOT)}
    profiled = [sys.executable, "-m", "cProfile", "-o", str(tmp_path / "profile"), "-m", "m2dprep", "--version"]
    subprocess.run(profiled, env=environment, capture_output=True, check=True)
    assert (tmp_path / "profile").stat().st_size > 0
    inside = "import sys; sys.argv = ['m2dprep', '--version']\nfrom m2dprep.cli.main import main\n"
    inside += "try:\n    main()\nfinally:\n    print('after')"
    done = subprocess.run([sys.executable, "-c", inside], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.endswith("after\n")
