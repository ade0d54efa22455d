"""Claim: two workers are nearly twice as fast as one, and several times as fast as a tuned pool of librosa and torch.

Clips of 10 s, 44.1 kHz, stereo, 16 bit go through the command `m2dprep melspec` with 1 and with 2 workers. They also go
through a pool of 2 processes that call ``librosa.load(sr=16000)`` and make a mel spectrogram with torch for every file,
with one thread per process and tables made once: by convolution, like the front end of the original, and by STFT, as
most would. The ways take turns. Steady rates are those between 10 % and 90 % of the arrays; start-up is the time from
the command to the first array. The work that no converter can avoid (`melspec_floor`), in 1 and in 2 independent
processes, shows how two cores of this machine compare with one, and by how much the pool could be outdone at all.
"""

from __future__ import annotations

import contextlib
import functools
import math
import multiprocessing
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
from _clips import make_clips
from _machine import ONE_THREAD, machine, restart_with, table
from melspec_floor import floor

from m2dprep.artifacts.process import keep_freed_memory

CLIPS = int(os.environ.get("BENCH_CLIPS", "1000"))
POOL_CLIPS = max(40, CLIPS // 4)
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "5"))
ONE, TWO = "melspec, 1 worker", "melspec, 2 workers"
CONVOLUTION, STFT = "librosa + torch convolution, 2", "librosa + torch STFT, 2"
FLOOR_ONE, FLOOR_TWO = "the floor, 1 process", "the floor, 2 processes"


@dataclass
class Run:
    """One run: steady clips per second, CPU milliseconds per clip, seconds to the first array, MiB per worker."""

    rate: float
    cpu: float
    start: float = math.nan
    memory: float = math.nan


def cpu_of_children() -> float:
    """The CPU seconds of the processes that this one has waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def watched(start: Callable[[], object], finished: Callable[[], bool], folder: Path, clips: int) -> Run:
    """Run something that writes ``clips`` arrays to ``folder``.

    The arrays' modification times give the rates; meanwhile only the memory in use is measured, twice a second.
    """
    os.sync()  # so that this run does not write the data of the run before
    cpu_before, started = cpu_of_children(), time.time()
    start()
    memory = 0.0
    while not finished():
        memory = max(memory, largest_worker())
        time.sleep(0.5)
    cpu = cpu_of_children() - cpu_before
    written = sorted(path.stat().st_mtime_ns / 1e9 for path in folder.glob("*.npy"))
    if len(written) != clips:
        raise SystemExit(f"{len(written)} of {clips} arrays were made")
    low, high = clips // 10, clips - clips // 10 - 1
    return Run(
        rate=(high - low) / (written[high] - written[low]),
        cpu=1000 * cpu / clips,
        start=written[0] - started,
        memory=memory,
    )


def largest_worker() -> float:
    """The resident memory, in MiB, of the largest worker process below this one."""
    largest = 0.0
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if any("spawn_main" in word for word in process.cmdline()):
                largest = max(largest, process.memory_info().rss / 2**20)
    return largest


def ours(src: Path, dst: Path, workers: int, *options: str, clips: int = CLIPS) -> Run:
    """The command, as a user runs it."""
    shutil.rmtree(dst, ignore_errors=True)
    command = [sys.executable, "-m", "m2dprep", "melspec", str(src), str(dst), "--workers", str(workers), *options]
    running: list[subprocess.Popen[bytes]] = []

    def start() -> None:
        running.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=Path(__file__).parents[1]))

    return watched(start, lambda: running[0].poll() is not None, dst, clips)


@functools.cache
def tables() -> tuple[Any, Any, Any]:
    """The window (400,), the windowed cosines and sines (402, 1, 400), and the mel filters (80, 201)."""
    import librosa
    import torch

    torch.set_num_threads(1)
    window = torch.hann_window(400)
    angles = 2 * np.pi * np.outer(np.arange(201), np.arange(400)) / 400
    waves = torch.from_numpy(np.concatenate([np.cos(angles), np.sin(angles)]).astype(np.float32)) * window
    filters = librosa.filters.mel(sr=16000, n_fft=400, n_mels=80, fmin=50, fmax=8000)
    return window, waves[:, None], torch.from_numpy(filters)


def librosa_and_torch(path: Path, dst: Path, by_convolution: bool) -> None:
    """A careful user's code: one load, one spectrum, one product with the filters, one save."""
    import librosa
    import torch
    from torch.nn import functional as F

    window, waves, filters = tables()
    waveform = torch.from_numpy(librosa.load(path, sr=16000)[0])
    with torch.inference_mode():
        if by_convolution:
            padded = F.pad(waveform[None, None], (200, 200), mode="reflect")
            power = F.conv1d(padded, waves, stride=160)[0].square().view(2, 201, -1).sum(dim=0)
        else:
            power = torch.stft(waveform, 400, 160, window=window, return_complex=True).abs().square()
        log_mel = torch.log(filters @ power + torch.finfo(torch.float32).eps)
    np.save(dst / f"{path.stem}.npy", log_mel[None].numpy())


def pool(paths: list[Path], dst: Path, processes: int, by_convolution: bool) -> Run:
    shutil.rmtree(dst, ignore_errors=True)
    dst.mkdir()
    thread = threading.Thread(target=run_pool, args=(paths, dst, processes, by_convolution))
    return watched(thread.start, lambda: not thread.is_alive(), dst, len(paths))


def run_pool(paths: list[Path], dst: Path, processes: int, by_convolution: bool) -> None:
    with multiprocessing.get_context("spawn").Pool(processes) as workers:
        workers.starmap(librosa_and_torch, [(path, dst, by_convolution) for path in paths], chunksize=4)
        workers.close()
        workers.join()


def floors(paths: list[Path], dst: Path, processes: int) -> Run:
    """Run plain processes that do the unavoidable work, each over all ``paths``."""
    dst.mkdir(exist_ok=True)
    os.sync()
    workers = [
        multiprocessing.get_context("fork").Process(target=run_floor, args=(paths, dst / f"{number}.npy"))
        for number in range(processes)
    ]
    cpu_before, started = cpu_of_children(), time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    clips = processes * len(paths)
    rate = clips / (time.perf_counter() - started)
    return Run(rate, 1000 * (cpu_of_children() - cpu_before) / clips)


def run_floor(paths: list[Path], output: Path) -> None:
    keep_freed_memory()  # like our own workers
    for path in paths:
        floor(path, output)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        paths = make_clips(root / "wavs", CLIPS)
        runs: dict[str, list[Run]] = {}
        for _ in range(ROUNDS):
            for name, run in [
                (ONE, ours(root / "wavs", root / "data" / "one_lms", 1)),
                (TWO, ours(root / "wavs", root / "data" / "two_lms", 2)),
                (CONVOLUTION, pool(paths[:POOL_CLIPS], root / "pool", 2, True)),
                (STFT, pool(paths[:POOL_CLIPS], root / "pool", 2, False)),
                (FLOOR_ONE, floors(paths[:POOL_CLIPS], root / "floor", 1)),
                (FLOOR_TWO, floors(paths[:POOL_CLIPS], root / "floor", 2)),
            ]:
                runs.setdefault(name, []).append(run)
    print(machine())
    print(f"{CLIPS} clips, {ROUNDS} rounds, load {os.getloadavg()[0]:.1f} at the end\n")
    rows = [
        [
            name,
            f"{median(run.rate for run in same):.0f}",
            f"{median(run.cpu for run in same):.1f}",
            f"{median(run.start for run in same):.1f}",
            f"{max(run.memory for run in same):.0f}",
        ]
        for name, same in runs.items()
    ]
    print(
        table(["", "clips/s", "CPU ms a clip, all included", "start-up s", "MiB a worker"], rows).replace("nan", "   ")
    )
    print()
    for below, aboves in [
        (ONE, [TWO]),
        (FLOOR_ONE, [FLOOR_TWO]),
        (CONVOLUTION, [TWO, FLOOR_TWO]),
        (STFT, [TWO, FLOOR_TWO]),
    ]:
        for above in aboves:
            ratio = median(b.rate / a.rate for a, b in zip(runs[below], runs[above], strict=True))
            print(f"{above} / {below}: {ratio:.2f}")


if __name__ == "__main__":
    restart_with(ONE_THREAD)
    main()
