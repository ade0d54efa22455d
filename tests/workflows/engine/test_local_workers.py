"""Local workers: no setting of the machine or the user stops them silently, and no other user can reach them."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import soundfile

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.layout import LmsLayout
from m2dprep.workflows.engine import local_workers, process_pool
from m2dprep.workflows.engine.engine import run_shards
from m2dprep.workflows.engine.workers import ClusterLostError
from tests.workflows.engine.dask_processes import ENVIRONMENT, ROOT, wait_until
from tests.workflows.engine.slurm import alive

pytestmark = pytest.mark.slow

CLIPS = 8
FORBIDDEN_MODULE = "raise SystemExit('a module of the working folder was imported')"


def unexpected(item: int) -> int:
    raise AssertionError(f"{item} poisoned nobody")


def double(shard: Sequence[int]) -> list[int]:
    return [2 * item for item in shard]


@pytest.fixture(scope="module")
def src(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clips(tmp_path_factory.mktemp("clips") / "wavs")


def write_clips(folder: Path) -> Path:
    folder.mkdir()
    for seed in range(CLIPS):
        noise = 0.1 * np.random.default_rng(seed).standard_normal(16000)
        soundfile.write(folder / f"{seed}.wav", noise, 16000, subtype="PCM_16")
    return folder


def melspec(src: Path, dst: Path, prefix: Sequence[str] = (), **settings: Any) -> subprocess.CompletedProcess[str]:
    """The command with two local workers."""
    command = [*prefix, sys.executable, "-P", "-m", "m2dprep", "melspec", str(src), str(dst), "--workers", "2"]
    settings = {"env": ENVIRONMENT, **settings}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **settings)


def limited(words: str) -> list[str]:
    """The command prefix that runs a command under ``ulimit``."""
    return ["bash", "-c", f'ulimit {words}; exec "$@"', "bash"]


PRIVATE = 'mount -t tmpfs -o ro none /dev/shm && exec "$@"'
SURROUNDINGS: dict[str, list[str]] = {
    "little memory for each worker that Dask would start": limited("-m 160000"),
    "few descriptors": limited("-n 24"),
    "few descriptors by default, more on request": limited("-S -n 14"),
    "no loopback": ["unshare", "--net"],
    "a read-only /dev/shm": ["unshare", "--mount", "sh", "-c", PRIVATE, "sh"],
}


@pytest.mark.parametrize("prefix", SURROUNDINGS.values(), ids=SURROUNDINGS.keys())
def test_surroundings_in_which_workers_work(prefix: list[str]) -> None:
    tried = subprocess.run([*prefix, "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"not allowed here: {tried.stderr.strip()}")
    with tempfile.TemporaryDirectory() as folder:  # not below /dev/shm, where other folders of tests may be
        write_clips(Path(folder, "wavs"))
        done = melspec(Path(folder, "wavs"), Path(folder, "a_lms"), prefix)
        assert done.returncode == 0, done.stderr
        assert len(list(Path(folder, "a_lms").glob("*.npy"))) == CLIPS


def test_modules_of_the_working_folder_are_not_imported(tmp_path: Path, src: Path) -> None:
    for name in ("queue", "cli", "numpy", "json", "pickle", "socket", "artifacts", "workflows", "threading", "click"):
        (tmp_path / f"{name}.py").write_text(FORBIDDEN_MODULE)
    done = melspec(src, tmp_path / "a_lms", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_settings_of_dask_do_not_matter(tmp_path: Path, src: Path) -> None:
    settings = tmp_path / "home" / ".config" / "dask"
    settings.mkdir(parents=True)
    (settings / "broken.yaml").write_text("distributed: [never closed\n  x: {")
    own = {"HOME": str(tmp_path / "home"), "DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION": "True"}
    done = melspec(src, tmp_path / "a_lms", env={**ENVIRONMENT, **own})
    assert done.returncode == 0, done.stderr


def test_an_interpreter_that_ends_at_once_is_an_error_with_what_it_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_pool, "PROGRAM", "raise SystemExit('the moon is in the wrong phase')")
    with pytest.raises(UserError, match=r"(?s)before they could work.*exit code 1.*wrong phase.*--workers 0") as caught:
        list(run_shards(double, [[1], [2]], 2, unexpected))
    assert caught.value.exit_code == 2


def test_an_interpreter_that_never_comes_up_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        process_pool, "PROGRAM", "import time; print('waiting for a licence', flush=True); time.sleep(600)"
    )
    monkeypatch.setattr(local_workers, "START_SECONDS", 1.0)
    with pytest.raises(UserError, match=r"(?s)none came up within 1 s.*--workers 0"):
        list(run_shards(double, [[1], [2]], 2, unexpected))


def test_what_is_waited_for_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("m2dprep.workflows.engine.workers.NOTE_SECONDS", 0.2)
    monkeypatch.setattr(process_pool, "PROGRAM", f"import time; time.sleep(1)\n{process_pool.PROGRAM}")
    assert list(run_shards(double, [[1]], 1, unexpected)) == [[2]]
    assert "m2dprep: still waiting for workers: none has come up" in capsys.readouterr().err


class Deadly:
    """A function that kills the process that unpickles it."""

    def __init__(self, marker: Path | None = None) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return die, (self.marker,)

    def __call__(self, shard: Sequence[int]) -> list[int]:
        raise AssertionError("it cannot be read")


def die(marker: Path | None) -> Any:
    if marker is None or not marker.exists():
        os.kill(os.getpid(), signal.SIGKILL)
    return slow


def slow(shard: Sequence[int]) -> list[int]:
    time.sleep(0.2)
    return list(shard)


def test_workers_that_die_while_they_load_are_an_error_and_no_fault_of_the_items() -> None:
    with pytest.raises(UserError, match=r"(?s)of them in a row died before they could work.*signal 9"):
        list(run_shards(Deadly(), [[1], [2]], 2, unexpected))


def fail_to_load() -> Any:
    raise ImportError("libfoo.so.3: cannot open shared object file")


class Unloadable(Deadly):
    def __reduce__(self) -> Any:
        return fail_to_load, ()


def test_a_function_that_cannot_be_loaded_is_an_error() -> None:
    with pytest.raises(UserError, match=r"(?s)cannot load what they are to do.*libfoo.*--workers 0"):
        list(run_shards(Unloadable(), [[1], [2]], 2, unexpected))


def forbid_others(shard: Sequence[int], marker: Path) -> list[int]:
    """After the first shard this worker dies, and no other one comes up."""
    marker.unlink(missing_ok=True)
    os.kill(os.getpid(), signal.SIGKILL)
    return list(shard)


class Once(Deadly):
    """A function that can be unpickled only while a marker exists."""

    def __reduce__(self) -> Any:
        return load_once, (self.marker,)


def load_once(marker: Path) -> Any:
    die(marker)
    return functools.partial(forbid_others, marker=marker)


def test_workers_that_go_for_good_in_the_middle_end_the_run_with_75(tmp_path: Path) -> None:
    (tmp_path / "marker").touch()
    with pytest.raises(ClusterLostError, match="workers of this machine have gone") as caught:
        list(run_shards(Once(tmp_path / "marker"), [[1], [2]], 2, unexpected))
    assert caught.value.exit_code == 75


def test_nobody_else_can_reach_a_local_run(tmp_path: Path) -> None:
    """No process of the run has a port, and the socket pairs have no name."""
    parts = run_shards(slow, [[item] for item in range(6)], 2, unexpected)
    next(parts)
    here = psutil.Process()
    workers = [child for child in here.children() if "on_worker" in " ".join(child.cmdline())]
    assert len(workers) == 2
    for process in (here, *workers):
        assert not [found for found in process.net_connections("inet") if found.status == "LISTEN"]
        assert not [found for found in process.net_connections("unix") if found.laddr]
    parts.close()  # type: ignore[attr-defined]
    wait_until(lambda: not any(worker.is_running() for worker in workers), "the end of the workers", 120)


CLIENT = """
import os, subprocess, sys, time
from tests.workflows.engine.test_local_workers import unexpected
from m2dprep.workflows.engine.engine import run_shards

def hang(shard):
    program = subprocess.Popen(["sleep", "300"])  # like ffmpeg
    for process in (os.getpid(), program.pid):
        open(sys_argv[0] + f"/{process}", "w").close()
    time.sleep(300)
    return shard

sys_argv = sys.argv[1:]
list(run_shards(hang, [[1], [2]], 2, unexpected))
"""


def test_workers_end_with_a_command_that_was_killed(tmp_path: Path) -> None:
    started = tmp_path / "started"
    started.mkdir()
    client = subprocess.Popen([sys.executable, "-c", CLIENT, str(started)], env=ENVIRONMENT, cwd=ROOT)
    wait_until(lambda: len(list(started.iterdir())) == 4, "two workers at work, each with a program")
    client.kill()
    client.wait()
    processes = [int(path.name) for path in started.iterdir()]
    wait_until(lambda: not any(alive(process) for process in processes), "the end of the workers", 120)


HANGS = """
import os
original = os.open

def open_(path, *arguments, **options):
    if str(path).endswith("3.wav"):
        os.read(os.pipe()[0], 1)  # like a dead mount
    return original(path, *arguments, **options)

os.open = open_
"""


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_read_that_never_returns_is_a_row_that_the_next_run_tries_again(
    tmp_path: Path, src: Path, workers: str, warm_python: str
) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(HANGS)
    layout = LmsLayout(tmp_path / "a_lms")
    hanging = {**ENVIRONMENT, "PYTHONPATH": f"{tmp_path / 'site'}:{ROOT}"}
    command = ["-P", "-m", "m2dprep", "melspec", str(src)]

    def run(python: str, *words: str, env: dict[str, str] = ENVIRONMENT) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [python, *command, *words], capture_output=True, text=True, timeout=120, check=False, env=env
        )

    done = run(sys.executable, str(layout.root), "--workers", workers, "--read-timeout", "5", env=hanging)
    assert done.returncode == 3, done.stderr
    assert f"{CLIPS} inputs = {CLIPS - 1} done + 0 skipped + 1 failed (read_timeout 1; " in done.stderr
    assert sorted(path.name for path in layout.root.glob("*.npy")) == [f"{n}.npy" for n in range(CLIPS) if n != 3]
    again = run(warm_python, str(layout.root), "--workers", workers)
    assert again.returncode == 0, again.stderr
    assert f"{CLIPS} inputs = 1 done + {CLIPS - 1} skipped + 0 failed" in again.stderr
    undisturbed = run(warm_python, str(tmp_path / "b_lms"), "--workers", "0")
    assert undisturbed.returncode == 0
    for path in (tmp_path / "b_lms").glob("*.npy"):
        assert path.read_bytes() == (layout.root / path.name).read_bytes()


def read_slowly(shard: Sequence[int]) -> list[int]:
    import m2dprep.artifacts.reading

    m2dprep.artifacts.reading.SLOW_SECONDS = m2dprep.artifacts.reading.LOOK_SECONDS = 0.2
    time.sleep(1.2)  # until the watch checks again
    with m2dprep.artifacts.reading.reading("/mnt/dead/a\x1b.wav"):
        time.sleep(3)
    return list(shard)


def test_a_read_that_takes_long_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(run_shards(read_slowly, [[1]], 1, unexpected)) == [[1]]
    assert "m2dprep: still reading /mnt/dead/a\\x1b.wav (for " in capsys.readouterr().err
