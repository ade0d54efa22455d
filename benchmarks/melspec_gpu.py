"""Claim: one GPU is several times as fast as all cores of its machine, or as fast as these cores can decode for it.

Clips of 10 s, 44.1 kHz, stereo, 16 bit, in memory (tmpfs), go through the command `m2dprep melspec` with ``--device
cuda``, and with one worker per core. The rate at which as many threads merely decode shows how much of the GPU's time
is decoding. With ``--device cpu`` the GPU's code runs on the processor, if torchaudio is installed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from _clips import make_clips
from _machine import ONE_THREAD, Figures, machine, restart_with, table
from melspec import Run, ours

from m2dprep.audioprep.config import DEVICE_RESAMPLER, PRESETS, ConvertConfig
from m2dprep.audioprep.decode import decode
from m2dprep.audioprep.discover import discover

TMPFS = Path("/dev/shm")
CONFIG = ConvertConfig(PRESETS["16k"], resampler=DEVICE_RESAMPLER)


def decoding(paths: list[Path], threads: int) -> float:
    """The clips per second that ``threads`` threads of one process decode."""
    with ThreadPoolExecutor(threads) as pool:
        started = time.perf_counter()
        for _ in pool.map(lambda path: decode(path, CONFIG, ffmpeg=False, resample=False), paths):
            pass
    return len(paths) / (time.perf_counter() - started)


def device_code(src: Path, dst: Path, threads: int) -> float:
    """The clips per second of the GPU's code on the processor. Raises `UserError` without torchaudio."""
    from m2dprep.audioprep.convert_gpu import DeviceConverter

    convert = DeviceConverter(src, CONFIG, device="cpu", threads=threads)
    sources = discover(src)
    started = time.perf_counter()
    convert(sources, dst=dst)
    return len(sources) / (time.perf_counter() - started)


def as_figures(run: Run) -> dict[str, float]:
    return {"clips_per_second": run.rate, "cpu_ms_per_clip": run.cpu, "start_seconds": run.start}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clips", type=int, default=1500)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--json", type=Path, help="write the figures to this file as they are known")
    options = parser.parse_args()
    figures = Figures(options.json)
    with tempfile.TemporaryDirectory(dir=TMPFS if os.access(TMPFS, os.W_OK) else None) as name:
        root = Path(name)
        src = root / "wavs"
        paths = make_clips(src, options.clips)
        figures.add(clips=options.clips, cores=options.workers)
        figures.add(decoding_clips_per_second=decoding(paths, options.workers))
        if options.device == "cuda":
            run = ours(src, root / "data" / "gpu_lms", 1, "--device", "cuda", clips=options.clips)
            figures.add(gpu=as_figures(run))
            shutil.rmtree(root / "data")
        else:
            try:
                figures.add(gpu={"clips_per_second": device_code(src, root / "gpu_lms", options.workers)})
            except Exception as error:
                figures.add(gpu_left_out=str(error))
        run = ours(src, root / "data" / "cpu_lms", options.workers, clips=options.clips)
        figures.add(cpu=as_figures(run))
    values = figures.values
    if "gpu" in values:
        rate = values["gpu"]["clips_per_second"]
        figures.add(
            times_cpu=rate / values["cpu"]["clips_per_second"],
            share_of_decoding=min(rate / values["decoding_clips_per_second"], 1.0),
        )
    print(f"{machine()}; {options.clips:,} clips in memory\n")
    rows = [
        ["decoding alone", f"{values['decoding_clips_per_second']:,.0f}"],
        [f"melspec, {options.workers} workers", f"{values['cpu']['clips_per_second']:,.0f}"],
    ]
    if "gpu" in values:
        rows.append([f"melspec, the GPU's code on {options.device}", f"{values['gpu']['clips_per_second']:,.0f}"])
    print(table(["", "clips/s"], rows))
    if "gpu" in values:
        print(f"\n{values['times_cpu']:.2f} times the workers; {values['share_of_decoding']:.0%} of it is decoding")


if __name__ == "__main__":
    restart_with(ONE_THREAD)
    main()
