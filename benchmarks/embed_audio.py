"""Claim: `embed-audio` costs little more than the model's bare forward passes.

Writes ``--clips`` sounds of ESC-50's kind (5 s, 44.1 kHz, 16-bit mono wav), and compares, in turn in one process, the
model's passes over ready, normalised batches with all of `embed-audio` after the model is loaded: finding, decoding and
resampling the sounds, log-mels in threads, batches, shards, the store on disk with its digests. The model is M2D-CLAP's
base size with random weights. They run in turn ``--repeats`` times, each with the memory of a new process, and the best
of each counts. On a busy machine, compare processor time, with one thread.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import tempfile
from pathlib import Path

import torch
from _machine import machine, table
from features import BATCH, SECONDS, measured, write_checkpoint, write_clips

from m2dprep.artifacts.process import keep_memory_of_batches
from m2dprep.evaluation.embedding.command import EmbedRequest, embed_audio
from m2dprep.evaluation.encoders import CheckpointEncoder
from m2dprep.evaluation.reading import Clip, Crop
from m2dprep.m2dclap.checkpoint import Checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=96)
    parser.add_argument("--depth", type=int, default=12, help="blocks of the model (12 is the base size)")
    parser.add_argument("--threads", type=int, default=min(2, torch.get_num_threads()))
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_memory_of_batches()  # as the command does
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "wavs").mkdir()
        paths = write_clips(folder / "wavs", options.clips)
        checkpoint = write_checkpoint(folder, options.depth)
        encoder = CheckpointEncoder(Checkpoint.read(checkpoint), device="cpu", batch_size=BATCH)
        clip = encoder.loader(Crop())(paths[0], paths[0].name)
        assert isinstance(clip, Clip)
        ready = torch.randn(options.clips, 1, 80, -(-clip.values.shape[-1] // 16) * 16)

        @torch.inference_mode()
        def bare() -> None:
            for batch in ready.split(BATCH):
                encoder.model.project_tokens(encoder.model.encode(batch)[:, 1:])

        def request(out: str) -> EmbedRequest:
            return EmbedRequest(checkpoint, [folder / "wavs"], folder / out, device="cpu", batch_size=BATCH)

        encoder.encode([clip.values])  # nothing is made for the first time below
        embed_audio(request("warm"), quiet=True)
        loading = min(measured(lambda: embed_audio(request("warm"), quiet=True)) for _ in range(2))
        rows: dict[str, tuple[float, float]] = {}
        for repeat in range(options.repeats):
            out = f"store {repeat}"
            give_back_memory()
            made = measured(lambda out=out: embed_audio(request(out), quiet=True))
            rest = (made[0] - loading[0], made[1] - loading[1])
            give_back_memory()
            for name, found in (("bare forward passes", measured(bare)), ("embed-audio, model loaded", rest)):
                rows[name] = min(found, rows.get(name, (float("inf"), 0.0)))
    rows["a finished store again (loads the model)"] = loading
    print(f"{machine()}; load {os.getloadavg()[0]:.1f}, torch threads {torch.get_num_threads()}")
    print(f"{options.clips} clips of {SECONDS:g} s, {options.depth} blocks of the base size\n")
    shown = [[name, f"{s:.2f}", f"{p:.2f}", f"{options.clips / s:.1f}"] for name, (s, p) in rows.items()]
    print(table(["", "s", "processor s", "clips/s"], shown))
    first, second = rows["bare forward passes"], rows["embed-audio, model loaded"]
    print(f"\nratio {second[0] / first[0]:.2f}, of processor time {second[1] / first[1]:.2f}")


def give_back_memory() -> None:
    """What was freed goes back to the system, so that whoever comes next asks for its memory anew, as a command does.

    A forward pass of 32 clips takes 1.4 GB, and the first one seconds longer than the others.
    """
    ctypes.CDLL(None).malloc_trim(0)


if __name__ == "__main__":
    main()
