"""Claim: two workers convert nearly twice what one does, and several times what a tuned pool of librosa and torch does.

Clips of 10 s, 44.1 kHz, stereo, 16 bit, through the command `m2dprep melspec` with 1 and with 2 workers, and through a
pool of 2 processes that call ``librosa.load(sr=16000)`` and a mel spectrogram of torch's STFT for every file, one
thread a process, tables made once. The three take turns. Steady rates are those between 10 % and 90 % of the arrays;
start-up is the time from the command to the first array.
"""

from __future__ import annotations

import contextlib
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

import numpy as np
import psutil
import soundfile
from _machine import ONE_THREAD, machine, restart_with, table

CLIPS = int(os.environ.get("BENCH_CLIPS", "1000"))
POOL_CLIPS = max(40, CLIPS // 4)
ROUNDS = 3
DIFFERENT_CLIPS = 50
SECONDS, RATE = 10, 44100


@dataclass
class Run:
    """One run: clips a second in its middle, CPU milliseconds a clip, seconds to the first array, MiB of a worker."""

    rate: float
    cpu: float
    start: float
    memory: float


def make_clips(folder: Path) -> list[Path]:
    folder.mkdir()
    rng = np.random.default_rng(0)
    paths = [folder / f"{number:05d}.wav" for number in range(CLIPS)]
    for number, path in enumerate(paths):
        if number < DIFFERENT_CLIPS:
            samples = 0.1 * rng.standard_normal((SECONDS * RATE, 2))
            soundfile.write(path, samples, RATE, subtype="PCM_16")
        else:
            shutil.copyfile(paths[number % DIFFERENT_CLIPS], path)
    return paths


def watched(start: Callable[[], object], finished: Callable[[], bool], folder: Path, clips: int) -> Run:
    """Run something that writes ``clips`` arrays to ``folder`` and watch it from outside."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    start()
    seen: list[tuple[float, int]] = []
    memory = 0.0
    while not finished():
        count = sum(name.endswith(".npy") for name in os.listdir(folder)) if folder.is_dir() else 0  # noqa: PTH208
        seen.append((time.perf_counter() - started, count))
        memory = max(memory, largest_worker())
        time.sleep(0.05)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    made = len(list(folder.glob("*.npy")))
    if made != clips:
        raise SystemExit(f"{made} of {clips} arrays were made")
    low = next((t, n) for t, n in seen if n >= 0.1 * clips)
    high = next((t, n) for t, n in seen if n >= 0.9 * clips)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Run(
        rate=(high[1] - low[1]) / (high[0] - low[0]),
        cpu=1000 * cpu / clips,
        start=next(t for t, n in seen if n > 0),
        memory=memory,
    )


def largest_worker() -> float:
    """Resident memory in MiB of the largest process that was spawned below this one to work."""
    largest = 0.0
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if any("spawn_main" in word for word in process.cmdline()):
                largest = max(largest, process.memory_info().rss / 2**20)
    return largest


def ours(src: Path, dst: Path, workers: int) -> Run:
    """The command, as a user runs it."""
    shutil.rmtree(dst, ignore_errors=True)
    command = [sys.executable, "-m", "cli.main", "melspec", str(src), str(dst), "--workers", str(workers)]
    running: list[subprocess.Popen[bytes]] = []

    def start() -> None:
        running.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=Path(__file__).parents[1]))

    return watched(start, lambda: running[0].poll() is not None, dst, CLIPS)


def librosa_and_torch(path: Path, dst: Path) -> None:
    """What a careful user writes: one load, one STFT, one product with the filters, one save."""
    import librosa
    import torch

    if not hasattr(librosa_and_torch, "tables"):
        torch.set_num_threads(1)
        filters = librosa.filters.mel(sr=16000, n_fft=400, n_mels=80, fmin=50, fmax=8000)
        librosa_and_torch.tables = (torch.hann_window(400), torch.from_numpy(filters))  # type: ignore[attr-defined]
    window, filters = librosa_and_torch.tables  # type: ignore[attr-defined]
    waveform, _ = librosa.load(path, sr=16000)
    spectrum = torch.stft(torch.from_numpy(waveform), 400, 160, window=window, return_complex=True)
    log_mel = torch.log(filters @ spectrum.abs().square() + torch.finfo(torch.float32).eps)
    np.save(dst / f"{path.stem}.npy", log_mel[None].numpy())


def pool(paths: list[Path], dst: Path, processes: int) -> Run:
    shutil.rmtree(dst, ignore_errors=True)
    dst.mkdir()
    thread = threading.Thread(target=run_pool, args=(paths, dst, processes))
    return watched(thread.start, lambda: not thread.is_alive(), dst, len(paths))


def run_pool(paths: list[Path], dst: Path, processes: int) -> None:
    with multiprocessing.get_context("spawn").Pool(processes) as workers:
        workers.starmap(librosa_and_torch, [(path, dst) for path in paths], chunksize=4)
        workers.close()
        workers.join()


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        paths = make_clips(root / "wavs")
        one, two, other = [], [], []
        for _ in range(ROUNDS):
            one.append(ours(root / "wavs", root / "data" / "one_lms", 1))
            two.append(ours(root / "wavs", root / "data" / "two_lms", 2))
            other.append(pool(paths[:POOL_CLIPS], root / "pool", 2))
    print(machine())
    print(f"{CLIPS} clips, {ROUNDS} rounds, load {os.getloadavg()[0]:.1f} at the end\n")
    rows = [
        [
            label,
            f"{median(run.rate for run in runs):.0f}",
            f"{median(run.cpu for run in runs):.1f}",
            f"{median(run.start for run in runs):.1f}",
            f"{max(run.memory for run in runs):.0f}",
        ]
        for label, runs in [("melspec, 1 worker", one), ("melspec, 2 workers", two), ("librosa + torch, 2", other)]
    ]
    print(table(["", "clips/s", "CPU ms a clip, all included", "start-up s", "MiB a worker"], rows))
    print(f"\n2 workers / 1 worker: {median(b.rate / a.rate for a, b in zip(one, two, strict=True)):.2f}")
    print(f"2 workers / librosa + torch: {median(b.rate / a.rate for a, b in zip(other, two, strict=True)):.2f}")


if __name__ == "__main__":
    restart_with(ONE_THREAD)
    main()
