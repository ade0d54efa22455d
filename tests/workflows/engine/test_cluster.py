"""A Dask cluster started by hand: its workers are checked, killed, too slow or restarted; its scheduler dies."""

from __future__ import annotations

import functools
import itertools
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from distributed import CancelledError, Client
from distributed.comm import CommClosedError

from m2dprep.artifacts.errors import UserError
from m2dprep.workflows.engine import dask_workers
from m2dprep.workflows.engine import engine as window
from m2dprep.workflows.engine.engine import run_shards
from m2dprep.workflows.engine.pool import WorkerPool
from m2dprep.workflows.engine.workers import ClusterLostError, Shared
from tests.workflows.engine.dask_processes import ROOT, DaskProcesses, dask_processes, kill_group, wait_until

pytestmark = pytest.mark.slow


def double(shard: Sequence[int]) -> list[int]:
    return [2 * item for item in shard]


def die_on(shard: Sequence[int], deadly: int) -> list[int]:
    if deadly in shard:
        os.kill(os.getpid(), signal.SIGKILL)
    return list(shard)


def hang_once(shard: Sequence[int], folder: Path) -> list[int]:
    """The first worker to compute item 5 hangs, and would later leave a file."""
    with (folder / f"{shard[0]}.done").open("a") as file:
        file.write("x")
    if 5 in shard:
        try:
            (folder / "hung").open("x").write(str(os.getpid()))
        except FileExistsError:
            return list(shard)
        time.sleep(40)
        (folder / "woke").touch()
    return list(shard)


def slow(shard: Sequence[int]) -> list[int]:
    time.sleep(0.1)
    return list(shard)


def unexpected(item: int) -> int:
    raise AssertionError(f"{item} poisoned nobody")


@pytest.fixture
def cluster(tmp_path: Path, warm_python: str) -> Iterator[DaskProcesses]:
    with dask_processes(tmp_path, 2, warm_python) as processes:
        yield processes


def rows_of(function: object, shards: list[list[int]], pool: WorkerPool, **options: object) -> list[int]:
    return sorted(row for part in run_shards(function, shards, pool, unexpected, **options) for row in part)  # type: ignore[arg-type]


def test_a_poisonous_item_and_every_other_row(cluster: DaskProcesses) -> None:
    pool = WorkerPool(scheduler_file=cluster.scheduler_file)
    parts = run_shards(functools.partial(die_on, deadly=2), [[0, 1], [2, 3], [4]], pool, lambda item: -item)
    assert sorted(row for part in parts for row in part) == [-2, 0, 1, 3, 4]
    assert rows_of(double, [[1, 2], [3]], WorkerPool(scheduler=cluster.address)) == [2, 4, 6], "and again on the same"


def test_what_hangs_near_the_end_is_done_elsewhere_and_does_not_outlive_the_run(
    cluster: DaskProcesses, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(window, "STRAGGLER_SECONDS", 1.0)
    function = functools.partial(hang_once, folder=tmp_path)
    shards = [[item] for item in range(8)]
    assert rows_of(function, shards, WorkerPool(scheduler=cluster.address)) == list(range(8))
    counts = {item: len((tmp_path / f"{item}.done").read_text()) for item in range(8)}
    assert counts == {**dict.fromkeys(range(8), 1), 5: 2}
    hung = int((tmp_path / "hung").read_text())
    wait_until(lambda: not Path("/proc", str(hung)).exists(), "the end of the process that hung", 30)
    assert not (tmp_path / "woke").exists()


def other_checkout(folder: Path) -> Path:
    """A copy of the package with one more line."""
    shutil.copytree(ROOT / "m2dprep", folder / "m2dprep", ignore=shutil.ignore_patterns("__pycache__"))
    with (folder / "m2dprep" / "artifacts" / "errors.py").open("a") as file:
        file.write("# another version\n")
    return folder


def test_workers_of_another_version_are_refused_at_the_start_and_left_out_later(
    cluster: DaskProcesses, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = other_checkout(tmp_path / "other")
    pool = WorkerPool(scheduler=cluster.address)
    late: list[subprocess.Popen[bytes]] = []

    def shards() -> Iterator[list[int]]:
        """Compute until the late worker has been closed."""
        for item in itertools.count():
            if item == 2:
                late.append(cluster.worker(root=other))
            if late and late[0].poll() is not None:
                return
            yield [item]

    rows = sorted(row for part in run_shards(slow, shards(), pool, unexpected) for row in part)
    assert rows == list(range(len(rows)))
    assert f"a worker is left out, {os.uname().nodename}: its m2dprep in {other}" in capsys.readouterr().err
    cluster.worker(root=other)
    wait_until(lambda: workers_of(pool) == 3, "the third worker")
    with pytest.raises(UserError, match=f"{os.uname().nodename}: its m2dprep in {other} is another version"):
        rows_of(double, [[1]], pool)


def workers_of(pool: WorkerPool) -> int:
    from distributed import Client

    with Client(pool.scheduler, set_as_default=False) as client:
        return len(client.nthreads())


def test_workers_that_cannot_import_the_package_or_see_the_data(tmp_path: Path, warm_python: str) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "blind.py").write_text("import sys\nsys.modules['m2dprep.workflows'] = None\n")
    with dask_processes(tmp_path, 0, warm_python) as cluster:
        pool = WorkerPool(scheduler=cluster.address)
        blind = cluster.worker("--preload", str(tmp_path / "blind.py"))
        with pytest.raises(UserError, match=r"cannot run this m2dprep .*workflows"):
            rows_of(double, [[1]], pool)
        kill_group(blind)
        hide = f'mount -t tmpfs none {tmp_path}/data && exec "$@"'
        private = ["unshare", "--mount", "sh", "-c", hide, "sh"]
        if subprocess.run([*private, "true"], capture_output=True, check=False).returncode:
            pytest.skip("mounting is not allowed here")
        (tmp_path / "hasty.py").write_text(
            "from m2dprep.workflows.engine import on_worker\non_worker.PATIENCE_SECONDS = 1\n"
        )
        cluster.worker("--preload", str(tmp_path / "hasty.py"), prefix=private)
        with pytest.raises(UserError, match=f"it cannot read a file that this command wrote to {tmp_path}/data"):
            rows_of(double, [[1]], pool, shared=Shared(folder=tmp_path / "data"))
        assert not list((tmp_path / "data").iterdir())


@pytest.mark.parametrize("error", [CommClosedError, TimeoutError, CancelledError])
def test_an_answer_that_is_lost_on_its_way_is_computed_again(
    cluster: DaskProcesses, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    asked, gather = [], Client._gather

    async def lost(self: Client, *arguments: object, **options: object) -> object:
        asked.append(1)
        if len(asked) == 2:
            raise error("lost")
        return await gather(self, *arguments, **options)

    monkeypatch.setattr(Client, "_gather", lost)
    shards = [[item] for item in range(5)]
    assert sorted(rows_of(double, shards, WorkerPool(scheduler=cluster.address))) == [0, 2, 4, 6, 8]
    assert len(asked) > len(shards)


def test_a_scheduler_that_goes_away_or_was_never_there(
    cluster: DaskProcesses, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dask_workers, "RECONNECT_SECONDS", 3.0)
    parts = run_shards(slow, [[item] for item in range(500)], WorkerPool(scheduler=cluster.address), unexpected)
    assert len(next(parts)) == 1
    kill_group(cluster.scheduler)
    with pytest.raises(ClusterLostError, match="scheduler has gone") as caught:
        list(parts)
    assert caught.value.exit_code == 75
    with pytest.raises(UserError, match="cannot be reached"):
        rows_of(double, [[1]], WorkerPool(scheduler=cluster.address))
    (tmp_path / "no.json").write_text("{}")
    with pytest.raises(UserError, match="no address in it"):
        rows_of(double, [[1]], WorkerPool(scheduler_file=tmp_path / "no.json"))
