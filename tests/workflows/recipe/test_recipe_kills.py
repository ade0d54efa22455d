"""Recipes that are killed, stopped by signals, or run twice at once; on the command line, with made-up commands."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.workflows.recipe import made_up
from tests.workflows.recipe.conftest import Project

pytestmark = pytest.mark.slow


def wait_for(condition: Callable[[], object], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited for too long"
        time.sleep(0.01)


def start(project: Project, *words: str) -> subprocess.Popen[bytes]:
    """A run as a process of its own. In the background of a shell, tests and what they start ignore SIGINT."""
    return subprocess.Popen(
        [*made_up.PROGRAM, "run", "--json", *words],
        cwd=project.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def working(project: Project, name: str) -> int | None:
    """The process id of a stage that has begun its work."""
    record, log = project.record(name), project.state / f"{name}.log"
    begun = record.get("status") == "running" and log.exists() and log.read_text().rstrip().endswith("joining")
    return record.get("pid") if begun else None


def slow(project: Project, name: str, pause: float = 300.0) -> None:
    project.change(f"output: {name}.txt", f"pause: {pause}, output: {name}.txt")


@pytest.mark.parametrize("name", ["ab", "abc", "alone"])
def test_killed_in_any_stage_the_same_command_goes_on_to_the_same_files(empty: Project, name: str) -> None:
    slow(empty, name)
    process = start(empty)
    wait_for(lambda: working(empty, name))
    pid = working(empty, name)
    shown = empty.states()[name]
    assert (shown["state"], str(pid) in shown["progress"], shown["next"]) == ("running", True, None)
    refused = empty.run()
    assert refused.exit_code == 2
    assert "another run" in refused.stderr
    process.kill()
    process.communicate()
    wait_for(lambda: not Path("/proc", str(pid)).exists())  # a stage does not outlive its run
    assert empty.states()[name]["state"] == "killed"
    assert empty.plan()[name] == ("run", "goes on: it was killed")
    empty.change("pause: 300.0, ", "")
    before = {stage for stage, state in empty.states().items() if state["state"] == "done"}
    assert set(empty.done()) == {"ab", "abc", "letters", "alone"} - before
    assert empty.contents()["abc.txt"] == b"ab.c."
    assert empty.contents()["data/letters.txt"] == b"5\n"
    assert empty.contents()["alone.txt"] == b"xc."


def test_killed_while_it_replaces_its_own_output_it_still_may(project: Project) -> None:
    project.change("mark: x, output", "mark: y, pause: 300.0, output")
    process = start(project)
    wait_for(lambda: working(project, "alone"))
    process.kill()
    process.communicate()
    project.change("pause: 300.0, ", "")
    assert project.done() == ["alone"]
    assert project.path("alone").read_text() == "yc."


@pytest.mark.parametrize("name", ["before any stage", "after a stage"])
def test_killed_between_two_lines_of_the_state_all_is_done_in_the_end(empty: Project, name: str) -> None:
    """The state is written before a stage begins and after it has ended; either may be the last that was written."""
    if name == "after a stage":
        empty.ran("--until", "ab")
        path = empty.state / "state.json"
        value = json.loads(path.read_text())
        value["stages"]["ab"]["status"] = "running"
        path.write_text(json.dumps({key: value[key] for key in ("format", "recipe", "stages")}))
    else:
        (empty.state).mkdir(parents=True)
        record = {"own": True, "settled": True}
        path = empty.state / "state.json"
        path.write_text(json.dumps({"format": 1, "recipe": "recipe.yaml", "stages": {"ab": record}}))
    assert empty.done() == ["ab", "abc", "letters", "alone"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGUSR1, 75)])
def test_signals_reach_the_stage_once_and_the_run_says_how_to_go_on(
    empty: Project, number: signal.Signals, code: int
) -> None:
    slow(empty, "abc")
    process = start(empty)
    wait_for(lambda: working(empty, "abc"))
    pid = working(empty, "abc")
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert process.returncode == code, err
    assert b"`m2dprep run recipe.yaml` goes on there" in err
    assert not Path("/proc", str(pid)).exists()
    statuses = {stage["stage"]: stage["status"] for stage in json.loads(out)["stages"]}
    assert statuses == {"ab": "done", "abc": "stopped"}
    assert "goes on: it was stopped" in empty.plan()["abc"][1]
    empty.change("pause: 300.0, ", "")
    assert empty.done() == ["abc", "letters", "alone"]


def test_on_a_terminal_bars_are_drawn_and_the_log_stays_short(empty: Project) -> None:
    empty.change("output: ab.txt", "bars: true, output: ab.txt")
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    process = subprocess.Popen(
        [*made_up.PROGRAM, "run", "--until", "ab"], cwd=empty.folder, stderr=its, stdout=subprocess.DEVNULL
    )
    os.close(its)
    seen = b""
    while True:
        try:
            words = os.read(ours, 4096)
        except OSError:  # the other side of the terminal is closed
            break
        seen += words
    os.close(ours)
    assert process.wait() == 0, seen
    assert b"| 0/10" in seen
    assert b"| 10/10" in seen
    log = (empty.state / "ab.log").read_text()
    assert "| 0/10" not in log
    assert "| 10/10" in log
