"""Claim: the features of a data set cost little more than the model's bare forward passes.

Writes ``--clips`` sounds of ESC-50's kind (5 s, 44.1 kHz, 16-bit mono wav), and compares, in turn in one process, the
model's passes over ready, normalised batches with `evaluation.features`: decoding, resampling and log-mels in threads,
batches, the store on disk with its digests. The model is M2D-CLAP's base size with random weights, and both have
``--threads`` of PyTorch's. They run in turn ``--repeats`` times, and the best of each counts. On a busy machine,
compare processor time, with one thread.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
import torch
from _machine import machine, table

from m2dprep.evaluation.encoders import CheckpointEncoder
from m2dprep.evaluation.features import features
from m2dprep.evaluation.reading import Clip, Crop
from m2dprep.m2dclap.audio_model import AudioModel
from m2dprep.m2dclap.checkpoint import Checkpoint
from m2dprep.m2dclap.config import ModelConfig

RATE, SECONDS, BATCH = 44100, 5.0, 32


def write_clips(folder: Path, count: int) -> list[Path]:
    rng = np.random.default_rng(0)
    paths = []
    for number in range(count):
        paths.append(folder / f"{number:04}.wav")
        noise = rng.normal(scale=0.1, size=int(RATE * SECONDS)).clip(-1, 1)
        soundfile.write(paths[-1], noise, RATE, subtype="PCM_16")
    return paths


def write_checkpoint(folder: Path, depth: int) -> Path:
    """A model of the base size with random weights, and its head for captions."""
    torch.manual_seed(0)
    config = ModelConfig(depth=depth)
    heads = {
        f"audio_proj.{layer}.{part}": torch.randn(*([768, 768] if part == "weight" else [768])) * 0.02
        for layer in (0, 2)
        for part in ("weight", "bias")
    }
    path = folder / "m2d_clap_vit_base-80x608p16x16p16k-random" / "checkpoint-0.pth"
    path.parent.mkdir()
    torch.save({"model": {**AudioModel(config, {}).state_dict(), **heads}}, path)
    return path


def measured(run: Callable[[], object]) -> tuple[float, float]:
    """Seconds, and processor seconds of all threads."""
    started, before = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - started, time.process_time() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=200)
    parser.add_argument("--depth", type=int, default=12, help="blocks of the model (12 is the base size)")
    parser.add_argument("--threads", type=int, default=min(2, torch.get_num_threads()))
    parser.add_argument("--repeats", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        paths = write_clips(folder, options.clips)
        names = [path.name for path in paths]
        encoder = CheckpointEncoder(Checkpoint.read(write_checkpoint(folder, options.depth)), batch_size=BATCH)
        loader = encoder.loader(Crop(SECONDS))
        clip = loader(paths[0], names[0])
        assert isinstance(clip, Clip)
        patches = -(-clip.values.shape[-1] // 16) * 16
        ready = torch.randn(options.clips, 1, 80, patches)

        @torch.inference_mode()
        def bare() -> None:
            for batch in ready.split(BATCH):
                tokens = encoder.model.encode(batch.to(next(encoder.model.parameters()).device))[:, 1:]
                encoder.model.project_tokens(tokens)

        encoder.encode([clip.values])  # nothing is made for the first time below
        rows: dict[str, tuple[float, float]] = {}
        for repeat in range(options.repeats):

            def stored(place: Path = folder / f"features {repeat}") -> object:
                return features(encoder, paths, names, Crop(SECONDS), place, quiet=True)

            for name, run in (("bare forward passes", bare), ("features", stored), ("features, again", stored)):
                rows[name] = min(measured(run), rows.get(name, (float("inf"), 0.0)))
    print(f"{machine()}; load {os.getloadavg()[0]:.1f}, torch threads {torch.get_num_threads()}")
    print(f"{options.clips} clips of {SECONDS:g} s, {options.depth} blocks of the base size\n")
    shown = [[name, f"{s:.2f}", f"{p:.2f}", f"{options.clips / s:.1f}"] for name, (s, p) in rows.items()]
    print(table(["", "s", "processor s", "clips/s"], shown))
    wall, processor = (rows["features"][n] / rows["bare forward passes"][n] for n in (0, 1))
    print(f"\nratio {wall:.2f}, of processor time {processor:.2f}")


if __name__ == "__main__":
    main()
