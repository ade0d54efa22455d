"""Runs the melspec job again and again in forks of one warm process, each killed just before its n-th step on disk.

A program for test_melspec_kills.py: it reads one JSON request per line on stdin, and answers how the fork ended.
"""

import gc
import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas  # noqa: F401  # pyarrow imports it sooner or later: once here, not in every fork

from m2dprep.audioprep.config import PRESETS, ConvertConfig
from m2dprep.workflows.melspec import job as melspec
from m2dprep.workflows.melspec import results as record_buffer

CONFIG = ConvertConfig(PRESETS["16k"], min_seconds=0.2)
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
STEPS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")


class Countdown:
    """Counts the steps that change anything under a folder, and kills the process just before step ``last``.

    Files that are only read do not count, nor do syncs: what a killed process leaves is the same before and after.
    """

    def __init__(self, folder: str, last: int) -> None:
        self.folder, self.last, self.steps = folder, last, 0

    def step(self) -> None:
        self.steps += 1
        if self.steps == self.last:
            os.kill(os.getpid(), signal.SIGKILL)

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        changes = event in STEPS and (event != "open" or arguments[2] & WRITES)
        if changes and str(arguments[0]).startswith(self.folder):
            self.step()


def run(request: dict[str, Any]) -> int:
    """Run the job in this process. Returns the number of its steps."""
    countdown = Countdown(request["data"], request["kill_before"])
    sys.addaudithook(countdown.audit)
    flags = {name: request.get(name, False) for name in ("retry_failed", "overwrite")}
    config = replace(CONFIG, dtype="float16") if request.get("half") else CONFIG
    options = melspec.MelspecOptions(workers=0, **flags)
    melspec.run_melspec(Path(request["src"]), Path(request["data"]) / "audioset_lms", config, options)
    return countdown.steps


def in_fork(request: dict[str, Any]) -> dict[str, Any]:
    """Run ``request`` in a fork. Returns its exit code, minus the signal that killed it, and its number of steps."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, str(run(request)).encode())
            os._exit(0)
        finally:
            os._exit(1)
    os.close(writer)
    steps = os.read(reader, 100).decode()
    os.close(reader)
    _, status = os.waitpid(child, 0)
    return {"exit": os.waitstatus_to_exitcode(status), "steps": int(steps or 0)}


if __name__ == "__main__":
    melspec.MAX_SHARD_SIZE = 3
    record_buffer.PART_SECONDS = 0.0  # one part per shard
    gc.collect()
    gc.freeze()  # forks share what has been imported
    for line in sys.stdin:
        print(json.dumps(in_fork(json.loads(line))), flush=True)
