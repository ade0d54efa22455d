"""Whatever happens to loading processes, training ends soon, saved, with a line that says what to do.

Runs are forks; their loading processes are forked by themselves.
"""

from __future__ import annotations

import errno
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.locks import exclusive
from m2dprep.artifacts.log_mels.store import LogMels
from m2dprep.m2dclap.checkpoint import find_checkpoint
from m2dprep.training.config import DataChoice, RunOptions, SavePlan, TrainConfig, ValidationOptions
from m2dprep.training.dataset import Batch, BatchKey, TrainOrder
from m2dprep.training.loader import Batches, make_loader
from m2dprep.training.train import train
from tests.forks import CONTEXT, serve, start, started_since
from tests.tiny import TINY

pytestmark = pytest.mark.slow

MakeData = Callable[..., Path]
TRAIN = TrainConfig(epochs=5000, batch_size=8, warmup_epochs=1)
OPTIONS = RunOptions(
    "tiny", log_every=1, save=SavePlan(every_epochs=5000), validation=ValidationOptions(features_every=0)
)
# Far longer than anything here takes; a process that hangs never ends.
PATIENCE = 120.0
HANG = "hang"
# A process closes its files a moment before others can see that it has ended.
ENDS_SLOWLY = 4


class Faulty:
    """Clips whose third batch fails."""

    reading = "data/made_lms/clip.npy"

    def __init__(self, fault: Exception | signal.Signals | int) -> None:
        self._fault = fault

    def __len__(self) -> int:
        return 8

    def __getitem__(self, key: BatchKey) -> Batch:
        if key.epoch < 2:
            return Batch(*(torch.zeros(2) for _ in range(6)))
        if isinstance(self._fault, Exception):
            raise self._fault
        if isinstance(self._fault, signal.Signals):
            os.kill(os.getpid(), self._fault)
        if self._fault == ENDS_SLOWLY:
            os.closerange(3, 1024)
            time.sleep(0.5)
        os._exit(int(self._fault))


@pytest.fixture(autouse=True)
def no_preload(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process's server also serves other tests, which check what it imports."""
    monkeypatch.setattr(CONTEXT, "set_forkserver_preload", lambda names: None)


FAULTS = [
    (UserError("x.npy has changed"), "^x.npy has changed$"),
    (OSError(errno.EIO, "Input/output error"), r"Input/output error: 'data/made_lms/clip.npy'"),
    (OSError(errno.ESTALE, "Stale file handle", "y.npy"), "Stale file handle: 'y.npy'"),
    (OSError(errno.EMFILE, "Too many open files"), "ulimit -n"),
    (OSError(errno.ENOSPC, "No space left on device"), "--shm-size"),
    (RuntimeError("unable to allocate shared memory(shm) for file </torch_1>"), "--shm-size"),
    (MemoryError(), "--batch-size"),
    (ZeroDivisionError("a bug"), "of data/made_lms/clip.npy failed: ZeroDivisionError: a bug. --loader-workers 0"),
    (signal.SIGKILL, r"was killed \(SIGKILL\), most often because memory"),
    (signal.SIGBUS, r"was killed \(SIGBUS\), .*--shm-size"),
    (signal.SIGSEGV, r"was killed \(SIGSEGV\)"),
    (3, r"ended by itself \(exit code 3\)"),
    (0, "ended by itself"),
    (ENDS_SLOWLY, r"ended by itself \(exit code 4\)"),
]


@pytest.mark.parametrize(
    ("fault", "message", "processes"),
    [*((fault, message, 1) for fault, message in FAULTS), (*FAULTS[0], 2), (*FAULTS[8], 2)],
)
def test_what_goes_wrong_in_a_loading_process_is_raised_in_a_line(
    fault: Exception | signal.Signals | int, message: str, processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a forked process, and with several ``processes`` in one from a fork server."""
    # PyTorch looks every five seconds whether a process has died.
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.2,))
    order = TrainOrder(8, 8, 0, total_steps=9)
    if processes > 1:
        serve()
    loader = make_loader(Faulty(fault), order, 2, torch.device("cpu"), processes)  # type: ignore[arg-type]
    got, before = 0, started_since()
    with pytest.raises((UserError, OSError), match=message) as raised, Batches(loader) as batches:
        for _ in batches:
            got += 1
    assert got == 2 or not isinstance(fault, Exception), "what came before it is not lost"
    assert "\n" not in str(raised.value)
    assert not started_since(before)


def test_a_worker_that_hangs_is_gone_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")

    class Hanging(Faulty):
        def __getitem__(self, key: BatchKey) -> Batch:
            return Batch(*(torch.from_file(str(tmp_path / "pipe"), size=1) for _ in range(6)))

    loader = make_loader(Hanging(0), TrainOrder(8, 8, 0, total_steps=9), 2, torch.device("cpu"))  # type: ignore[arg-type]
    before = started_since()
    with Batches(loader):
        assert len(started_since(before)) == 2
    assert not started_since(before)


def _train(data: Path, out: Path, largest_file: int = -1) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _hang_when_told(data)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    try:
        train(DataChoice(data), out, TINY, TRAIN, replace(OPTIONS, loader_workers=2))
    except UserError as error:
        print(error, file=sys.stderr, flush=True)
        sys.exit(error.exit_code)


@pytest.fixture
def data(tmp_path: Path, make_data: MakeData) -> Path:
    return make_data(tmp_path / "data", clips=8, frames=60)


@pytest.fixture
def run(tmp_path: Path, data: Path) -> Iterator[tuple[ForkServerProcess, Path]]:
    """A run that is in the middle of its steps, and its folder."""
    out = tmp_path / "run"
    child = start(_train, data, out, output=tmp_path / "run.err")
    until(lambda: (out / "log.jsonl").exists() and (out / "log.jsonl").read_text() != "")
    yield child, out
    child.kill()
    child.join(PATIENCE)


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def let_reading_hang(data: Path) -> None:
    (data / HANG).touch()


def _hang_when_told(data: Path) -> None:
    """Reading a log-mel never ends once a file of that name is there; loading processes inherit it."""
    read = LogMels.__getitem__

    def hanging(self: LogMels, index: int) -> np.ndarray:
        while (data / HANG).exists():
            time.sleep(3600)
        return read(self, index)

    LogMels.__getitem__ = hanging  # type: ignore[method-assign]


def steps_stand_still(out: Path) -> bool:
    before = (out / "log.jsonl").stat().st_size
    time.sleep(1.0)
    return (out / "log.jsonl").stat().st_size == before


def test_a_file_that_goes_away(run: tuple[ForkServerProcess, Path], data: Path) -> None:
    child, out = run
    (data / "made_lms/clip0003-3.npy").unlink()
    child.join(PATIENCE)
    assert child.exitcode == 2
    last = (out.parent / "run.err").read_text().splitlines()[-1]
    assert "clip0003-3.npy: no such file. It was there when training began" in last
    assert "The same command goes on once this is put right" in last
    assert find_checkpoint(out).exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)])
def test_a_signal_ends_and_saves_what_waits_for_hanging_loaders(
    run: tuple[ForkServerProcess, Path], data: Path, number: signal.Signals, code: int
) -> None:
    child, out = run
    let_reading_hang(data)
    until(lambda: steps_stand_still(out))
    assert child.pid is not None
    os.kill(child.pid, number)
    child.join(PATIENCE)
    assert child.exitcode == code
    words = (out.parent / "run.err").read_text()
    assert f"told to stop ({number.name}). Saved after step" in words
    step = torch.load(find_checkpoint(out), weights_only=True)["m2dprep"]["step"]
    assert f"Saved after step {step:,} of 5,000. The same command goes on." in words


def test_loading_processes_of_a_killed_training_end_and_hold_no_lock(
    run: tuple[ForkServerProcess, Path], data: Path
) -> None:
    child, out = run
    assert child.pid is not None
    loading = [int(pid) for pid in Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()]
    assert len(loading) >= 2
    let_reading_hang(data)
    until(lambda: steps_stand_still(out))
    os.kill(child.pid, signal.SIGKILL)
    child.join(PATIENCE)
    with exclusive(out):
        pass
    until(lambda: not any(_lives(pid) for pid in loading))


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_forked_process_does_not_hold_the_lock(tmp_path: Path) -> None:
    reads, writes = os.pipe()
    with exclusive(tmp_path):
        child = os.fork()
        if child == 0:
            os.read(reads, 1)
            os._exit(0)
    with exclusive(tmp_path):  # while the child lives
        os.write(writes, b"x")
    assert os.waitpid(child, 0)[1] == 0
    for descriptor in (reads, writes):
        os.close(descriptor)


def test_a_second_ctrl_c_ends_it_without_leaving_half_a_file(run: tuple[ForkServerProcess, Path]) -> None:
    child, out = run
    assert child.pid is not None
    os.kill(child.pid, signal.SIGINT)
    os.kill(child.pid, signal.SIGINT)
    child.join(PATIENCE)
    assert child.exitcode == 130
    assert [path.suffix for folder in out.glob("m2d_*") for path in folder.iterdir()] in ([], [".pth"])


def test_a_disk_without_room_leaves_the_last_good_checkpoint(
    run: tuple[ForkServerProcess, Path], data: Path, tmp_path: Path
) -> None:
    """Files may not grow beyond a size here; the error of a full disk differs in one word."""
    child, out = run
    assert child.pid is not None
    os.kill(child.pid, signal.SIGTERM)
    child.join(PATIENCE)
    good = find_checkpoint(out)
    content = good.read_bytes()
    small = start(_train, data, out, len(content) - 1000, output=tmp_path / "run.err")
    before = len((tmp_path / "run.err").read_text())
    until(lambda: "train:" in (tmp_path / "run.err").read_text()[before:])
    lines = (out / "log.jsonl").stat().st_size
    until(lambda: not small.is_alive() or (out / "log.jsonl").stat().st_size > lines)
    assert small.pid is not None
    os.kill(small.pid, signal.SIGTERM)
    small.join(PATIENCE)
    assert small.exitcode == 2
    words = (tmp_path / "run.err").read_text()[before:]
    assert "File too large. Saved after step" in words
    assert ".pth: " in words
    assert list(good.parent.iterdir()) == [good]
    assert good.read_bytes() == content
