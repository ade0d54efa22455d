"""Claim: converting a clip costs little more CPU than the work that no converter can avoid.

The floor is, for every clip: read the file's bytes, add the channels, resample with soxr, take the FFT of all
frames, write as many bytes as a log-mel has. It has no window, mel filters, logarithm, statistics, checks or safety.
Prints the CPU milliseconds per clip of both, alternating in one process with one thread, and their ratio.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import scipy.fft
import soxr
from _clips import RATE, make_clips
from _machine import machine, restart_with, table

from m2dprep.audioprep.config import PRESETS, ConvertConfig
from m2dprep.audioprep.convert import convert_shard
from m2dprep.audioprep.discover import discover
from m2dprep.workflows.engine.dask_workers import WORKER_ENVIRONMENT

CLIPS, ROUNDS = 100, 7
HEADER_BYTES = 44


def floor(path: Path, output: Path) -> None:
    """The work that no converter can avoid."""
    stereo = np.frombuffer(path.read_bytes(), np.int16, offset=HEADER_BYTES).reshape(-1, 2).astype(np.float32)
    mono = stereo[:, 0] + stereo[:, 1]
    waveform = soxr.resample(mono, RATE, 16000, "HQ")
    frames = np.lib.stride_tricks.sliding_window_view(waveform, 400)[::160]
    scipy.fft.rfft(np.ascontiguousarray(frames), axis=-1)
    output.write_bytes(bytes(128 + 4 * 80 * 1001))


def cpu_milliseconds(work: Callable[[], object], outputs: Path, clips: int) -> float:
    """The CPU time of ``work`` per clip, kernel included. Its outputs are new files, as in a first run."""
    shutil.rmtree(outputs, ignore_errors=True)
    outputs.mkdir()
    os.sync()
    started = time.process_time()
    work()
    return 1000 * (time.process_time() - started) / clips


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        make_clips(root / "wavs", CLIPS)
        sources = discover(root / "wavs")
        config = ConvertConfig(PRESETS["16k"])

        def ours() -> None:
            records = convert_shard(sources, root / "wavs", root / "lms", config)
            assert all(record["status"] == "ok" for record in records)

        def theirs() -> None:
            for source in sources:
                floor(source.path, root / "floor" / f"{source.path.stem}.npy")

        pairs = [
            (cpu_milliseconds(ours, root / "lms", CLIPS), cpu_milliseconds(theirs, root / "floor", CLIPS))
            for _ in range(ROUNDS + 1)
        ][1:]
    converter, bottom = median(pair[0] for pair in pairs), median(pair[1] for pair in pairs)
    ratio = median(pair[0] / pair[1] for pair in pairs)
    print(machine())
    print(f"{CLIPS} clips, median of {ROUNDS} rounds, load {os.getloadavg()[0]:.1f} at the end\n")
    rows = [["floor", f"{bottom:.2f}", "1.00"], ["m2dprep melspec", f"{converter:.2f}", f"{ratio:.2f}"]]
    print(table(["", "CPU ms a clip", "ratio"], rows))


if __name__ == "__main__":
    restart_with(WORKER_ENVIRONMENT)  # both sides keep their memory between clips, as workers do
    main()
