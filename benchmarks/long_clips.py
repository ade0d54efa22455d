"""Claim: a fused model's time and memory do not grow with the length of a clip, as those of chunks and whole clips do.

Encodes made-up log-mels of 10, 60 and 600 s with a model of ``--dim`` and ``--depth`` and random weights (M2D-CLAP's
input, 80 x 608), in each way that there is, and loads channels of clips of these lengths for training: from .npy files
of float32 and from a pack of float16, once they have been compared with their digests. Each case runs in a fork of its
own, so that its memory is what the process grew by at its peak. Times are of the processor, with one thread, the best
of ``--repeats``.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from _machine import ONE_THREAD, machine, restart_with, table

from m2dprep.artifacts.files import write_array
from m2dprep.artifacts.log_mels.store import LogMels, find_log_mels
from m2dprep.audioprep.pack import pack
from m2dprep.m2dclap.config import ModelConfig
from m2dprep.m2dclap.encode import AudioEncoder
from m2dprep.m2dclap.fusion.channels import ChannelRule, make_channels
from m2dprep.m2dclap.inputs import Normalization
from m2dprep.m2dclap.model import M2DCLAP

SECONDS, FRAMES_PER_SECOND, WIDTH = (10, 60, 600), 100, 608
STATS = Normalization(-7.1, 4.2)
MIB = 2**20


def measured(run: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Processor seconds, and MiB by which the process grew at its peak, of a fork that runs ``run``."""
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        before, best = _resident(), float("inf")
        for _ in range(repeats):
            started = time.process_time()
            run()
            best = min(best, time.process_time() - started)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        os.write(writing, f"{best} {max(peak - before, 0) / MIB}".encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        seconds, mib = map(float, pipe.read().split())
    os.waitpid(child, 0)
    return seconds, mib


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def log_mel(seconds: int) -> np.ndarray:
    frames = seconds * FRAMES_PER_SECOND + 1
    return np.random.default_rng(seconds).normal(-7, 4, (1, 80, frames)).astype(np.float32)


def encoders(dim: int, depth: int) -> dict[str, AudioEncoder]:
    torch.manual_seed(0)
    plain = ModelConfig(embed_dim=dim, depth=depth, num_heads=dim // 64, decoder_depth=1)
    found = {}
    for name, length in (("chunks, averaged", "chunks"), ("whole", "whole")):
        found[name] = AudioEncoder(M2DCLAP(plain), STATS, length=length)
    for kind in ("daf", "aff", "iaff"):
        model = M2DCLAP(replace(plain, fusion=kind))
        torch.nn.init.ones_(model.patch_embed.gate)  # type: ignore[union-attr, arg-type]
        found[f"fused, {kind}"] = AudioEncoder(model, STATS)
    return found


def loading(folder: Path) -> dict[str, Callable[[int], object]]:
    """What makes the channels of the clip of a length, from a file and from a pack; both have been read once."""
    names = [f"long_lms/{seconds}.npy" for seconds in SECONDS]
    (folder / "long_lms").mkdir()
    for seconds, name in zip(SECONDS, names, strict=True):
        write_array(folder / name, log_mel(seconds))
    files = find_log_mels(folder, names)
    for number in range(len(SECONDS)):
        files.view(number)
    pack(folder / "long_lms", dtype="float16")
    packed = find_log_mels(folder, names)
    assert packed.packed == len(SECONDS)
    for number in range(len(SECONDS)):
        packed.view(number)
    out = np.empty((4, 80, WIDTH), np.float32)

    def make(source: LogMels, rule: ChannelRule, seconds: int) -> None:
        make_channels(source.view(SECONDS.index(seconds)), rule, out)

    found = {}
    for words, rule in (("", ChannelRule(WIDTH)), (", smoothed", ChannelRule(WIDTH, antialias=True))):
        for what, source in (("a file", files), ("a pack", packed)):
            found[f"channels from {what}{words}"] = partial(make, source, rule)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dim", type=int, default=384, help="width of the model (768 is the base size)")
    parser.add_argument("--depth", type=int, default=2, help="blocks of the model (12 is the base size)")
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args()
    restart_with(ONE_THREAD)
    clips = {seconds: log_mel(seconds) for seconds in SECONDS}
    rows = []
    for name, encoder in encoders(options.dim, options.depth).items():
        cells = []
        for seconds in SECONDS:
            took, mib = measured(partial(encoder.embed, [clips[seconds]]), options.repeats)
            cells += [f"{took:.2f} s", f"{mib:.0f} MiB"]
        rows.append([name, *cells])
    with tempfile.TemporaryDirectory() as temporary:
        for name, load in loading(Path(temporary)).items():
            cells = []
            for seconds in SECONDS:
                took, mib = measured(partial(load, seconds), 5 * options.repeats)
                cells += [f"{1000 * took:.1f} ms", f"{mib:.1f} MiB"]
            rows.append([name, *cells])
    print(f"{machine()}; load {os.getloadavg()[0]:.1f}, width {options.dim}, {options.depth} blocks\n")
    print(table(["", *(cell for seconds in SECONDS for cell in (f"{seconds} s", "memory"))], rows))


if __name__ == "__main__":
    main()
