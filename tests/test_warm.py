"""The warm Python of the tests is a Python: code, module or script, files, exit codes, signals; it outlives nobody."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.workflows.engine.dask_processes import wait_until
from tests.workflows.engine.slurm import alive

pytestmark = pytest.mark.slow

SAY = "import json, os, sys; print(json.dumps([sys.argv, os.getcwd(), os.environ.get('GIVEN'), __name__]))"


@pytest.mark.parametrize("how", ["-c", "-m", "script"])
def test_it_runs_what_python_runs(warm_python: str, tmp_path: Path, how: str) -> None:
    (tmp_path / "saying.py").write_text(SAY)
    words = {"-c": ["-c", SAY], "-m": ["-W", "ignore", "-m", "saying"], "script": ["saying.py"]}[how]
    environment = {**os.environ, "GIVEN": "yes"}
    found = [
        subprocess.run(
            [python, *words, "a", "-b"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        )
        for python in (warm_python, sys.executable)
    ]
    warm, plain = (json.loads(each.stdout) for each in found)
    assert warm == plain
    assert [each.stderr for each in found] == ["", ""]


def test_its_files_are_those_that_it_was_given(warm_python: str, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    code = f"import os, sys; os.write({writer}, sys.stdin.buffer.read()); print('err', file=sys.stderr)"
    done = subprocess.run([warm_python, "-c", code], input=b"through", pass_fds=[writer], capture_output=True)
    os.close(writer)
    assert (done.returncode, done.stderr, os.read(reader, 99)) == (0, b"err\n", b"through")
    os.close(reader)


@pytest.mark.parametrize(
    ("code", "ended"),
    [
        ("raise SystemExit(3)", 3),
        ("raise SystemExit('why')", 1),
        ("1 / 0", 1),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -9),
        ("import atexit, os; atexit.register(print, 'bye'); print('hello')", 0),
    ],
)
def test_it_ends_as_python_does(warm_python: str, code: str, ended: int) -> None:
    found = [
        subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
        for python in (warm_python, sys.executable)
    ]
    assert [each.returncode for each in found] == [ended, ended]
    assert found[0].stdout == found[1].stdout


@pytest.mark.parametrize(("number", "ended"), [(signal.SIGTERM, -15), (signal.SIGINT, 7)])
def test_signals_go_on_to_it(warm_python: str, number: signal.Signals, ended: int) -> None:
    code = "import time\ntry:\n    print('up', flush=True); time.sleep(200)\nexcept KeyboardInterrupt:\n    exit(7)"
    process = subprocess.Popen(
        [warm_python, "-c", code],
        stdout=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    process.send_signal(number)
    assert process.wait(60) == ended


def test_it_ends_with_its_client(warm_python: str) -> None:
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(200)"
    process = subprocess.Popen([warm_python, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None
    fork = int(process.stdout.readline())
    assert fork != process.pid
    process.kill()
    wait_until(lambda: not alive(fork), "the end of the fork", 60)
