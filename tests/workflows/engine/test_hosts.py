"""Scheduler and workers on separate hosts, made of network namespaces; one is cut off during the run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from m2dprep.artifacts.layout import LmsLayout
from m2dprep.artifacts.log_mels.array import open_lms
from m2dprep.artifacts.log_mels.records import read_records
from tests.workflows.engine.dask_processes import ENVIRONMENT, ROOT, DaskProcesses, wait_until

pytestmark = pytest.mark.slow

CLIPS = 400


class Hosts:
    """One host for the scheduler and one per worker, each connected only to the scheduler's."""

    def __init__(self, workers: int) -> None:
        self.names = [f"m2dprep-{os.getpid()}-{number}" for number in range(workers + 1)]
        self.first = self.names[0]

    def up(self) -> None:
        for name in self.names:
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("-n", self.first, "address", "add", "10.77.0.1/32", "dev", "lo")
        for number, name in enumerate(self.names[1:], start=1):
            ip(
                "link",
                "add",
                f"to{number}",
                "netns",
                self.first,
                "type",
                "veth",
                "peer",
                "name",
                "uplink",
                "netns",
                name,
            )
            for host, link, last in ((self.first, f"to{number}", 1), (name, "uplink", 2)):
                ip("-n", host, "address", "add", f"10.77.{number}.{last}/24", "dev", link)
                ip("-n", host, "link", "set", link, "up")
            ip("-n", name, "route", "add", "10.77.0.1", "via", f"10.77.{number}.1")

    def cut_off(self, number: int) -> None:
        ip("-n", self.first, "link", "set", f"to{number}", "down")

    def down(self) -> None:
        for name in self.names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)

    def on(self, number: int) -> list[str]:
        """The command prefix that runs a command on that host; 0 is the scheduler's."""
        return ["ip", "netns", "exec", self.names[number]]


def ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    made = Hosts(2)
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("network namespaces need root and iproute2")
    if (tried := subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False)).returncode:
        pytest.skip(f"network namespaces are not allowed here: {tried.stderr.decode().strip()}")
    try:
        made.up()
        yield made
    finally:
        made.down()


def test_a_host_is_cut_off_in_the_middle(hosts: Hosts, tmp_path: Path) -> None:
    noise = tmp_path / "noise.wav"
    soundfile.write(noise, 0.1 * np.random.default_rng(0).standard_normal(160000), 16000, subtype="PCM_16")
    for seed in range(CLIPS):
        path = tmp_path / "wavs" / f"{seed % 5}" / f"{seed}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.hardlink_to(noise)
    layout = LmsLayout(tmp_path / "data" / "a_lms")
    cluster = DaskProcesses(tmp_path, prefix=hosts.on(0), host="10.77.0.1")
    try:
        for number in (1, 2):
            cluster.worker(prefix=hosts.on(number))
        command = [*hosts.on(0), sys.executable, "-m", "m2dprep", "melspec", str(tmp_path / "wavs"), str(layout.root)]
        command += ["--scheduler-file", str(cluster.scheduler_file), "--json"]
        run = subprocess.Popen(command, env=ENVIRONMENT, cwd=ROOT, stdout=-1, stderr=-1, text=True)
        wait_until(lambda: len(list(layout.root.rglob("*.npy"))) >= CLIPS // 8, "the first arrays")
        hosts.cut_off(2)
        at_the_cut = len(list(layout.root.rglob("*.npy")))
        printed, message = run.communicate(timeout=120)
    finally:
        cluster.close()
    assert at_the_cut < CLIPS * 3 // 4
    assert run.returncode == 0, message
    assert "Traceback" not in message
    report = json.loads(printed)
    assert (report["inputs"], report["done"], report["failed"]) == (CLIPS, CLIPS, 0)
    records = read_records(layout, ["source", "file_name", "status"])
    assert sorted(records["source"].to_pylist()) == sorted(f"{seed % 5}/{seed}.wav" for seed in range(CLIPS))
    for name in records["file_name"].to_pylist():
        open_lms(layout.root / name, n_mels=80)
