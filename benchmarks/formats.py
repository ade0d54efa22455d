"""Claim: the formats that YouTube gives cost at most about twice the CPU of 16-bit WAV.

Converts the same clips (10 s, stereo, coloured noise with tones) from each format in one process with one thread, the
formats taking turns. Prints the CPU milliseconds per clip; the part of them that decodes to mono at the clip's own
rate, with all checks; and what the decoder's library alone takes, without a check or a copy. The ratio is that to WAV
of 44.1 kHz; the bound is what it would be if decoding cost nothing beside the library. The targets: FLAC 1.5, all
others 2.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from statistics import median

import miniaudio
import numpy as np
import soundfile
from _machine import machine, restart_with, table
from melspec_floor import cpu_milliseconds

from m2dprep.audioprep.config import PRESETS, ConvertConfig
from m2dprep.audioprep.convert import convert_shard
from m2dprep.audioprep.decode import decode
from m2dprep.audioprep.decoding.libraries import LIBOPUS
from m2dprep.audioprep.discover import discover
from m2dprep.audioprep.source import Source
from m2dprep.workflows.engine.dask_workers import WORKER_ENVIRONMENT

CLIPS, ROUNDS, SECONDS = 12, 5, 10
WAV = "WAV 44.1 kHz"
# Name, suffix, codec, bits per second, sample rate, target.
FORMATS = [
    (WAV, "wav", "pcm_s16le", 0, 44100, None),
    ("WAV 48 kHz", "wav", "pcm_s16le", 0, 48000, None),
    ("FLAC", "flac", "flac", 0, 44100, 1.5),
    ("MP3", "mp3", "libmp3lame", 128_000, 44100, 2.0),
    ("M4A (AAC)", "m4a", "aac", 128_000, 44100, 2.0),
    ("Ogg Opus", "opus", "libopus", 128_000, 48000, 2.0),
    ("WebM (Opus)", "webm", "libopus", 128_000, 48000, 2.0),
    ("WMA", "wma", "wmav2", 128_000, 44100, 2.0),
]


def clip(number: int, rate: int) -> np.ndarray:
    """Stereo (n, 2): noise whose spectrum falls as that of most recordings does, with a chord and slow changes."""
    rng, count = np.random.default_rng(number), SECONDS * rate
    time = np.arange(count) / rate
    spectrum = np.fft.rfft(rng.standard_normal((count, 2)), axis=0)
    spectrum /= np.maximum(np.fft.rfftfreq(count, 1 / rate), 50)[:, None]
    noise = np.fft.irfft(spectrum, count, axis=0)
    noise *= 0.1 / noise.std()
    chord = sum(0.05 * np.sin(2 * np.pi * rng.uniform(100, 2000) * time) for _ in range(4))
    loudness = 0.6 + 0.4 * np.sin(2 * np.pi * rng.uniform(0.2, 2) * time)
    samples: np.ndarray = (noise + chord[:, None]) * loudness[:, None]
    return samples.astype(np.float32)


def encode(path: Path, samples: np.ndarray, rate: int, codec: str, bits: int) -> None:
    import av

    if path.suffix == ".wav":
        soundfile.write(path, samples, rate, subtype="PCM_16")
        return
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout="stereo")
        if bits:
            stream.bit_rate = bits
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples.T), format="fltp", layout="stereo")
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        container.mux([*stream.encode(frame), *stream.encode(None)])


def make(root: Path) -> dict[str, list[Source]]:
    """The sources of every format, in a folder each."""
    made = {}
    for name, suffix, codec, bits, rate, _ in FORMATS:
        folder = root / name
        folder.mkdir()
        for number in range(CLIPS):
            encode(folder / f"{number:03d}.{suffix}", clip(number, rate), rate, codec, bits)
        made[name] = discover(folder)
    return made


def converting(sources: Sequence[Source], root: Path, config: ConvertConfig) -> float:
    def work() -> None:
        records = convert_shard(sources, Path(sources[0].root), root / "lms", config)
        assert all(record["status"] == "ok" for record in records), records[0]["message"]

    return cpu_milliseconds(work, root / "lms", len(sources))


def decoding(sources: Sequence[Source], root: Path, config: ConvertConfig) -> float:
    def work() -> None:
        for source in sources:
            decode(source.path, config, resample=False)

    return cpu_milliseconds(work, root / "lms", len(sources))


def alone(sources: Sequence[Source], root: Path) -> float:
    """The library that decodes such files, its samples not even looked at."""

    def work() -> None:
        for source in sources:
            if source.path.suffix in (".wav", ".mp3"):
                soundfile.read(source.path, dtype="float32" if source.path.suffix == ".mp3" else "int16")
            elif source.path.suffix == ".flac":
                miniaudio.flac_read_file_s16(str(source.path))
            else:
                run_decoder(source.path)

    return cpu_milliseconds(work, root / "lms", len(sources))


def run_decoder(path: Path) -> None:
    import av

    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        context = stream.codec_context
        if path.suffix == ".opus":
            context = av.CodecContext.create(LIBOPUS, "r")
            context.extradata = stream.codec_context.extradata
            context.sample_rate, context.layout = stream.codec_context.sample_rate, stream.codec_context.layout
            context.options = {"request_sample_fmt": "flt"}
        context.thread_count = 1
        for packet in container.demux(stream):
            context.decode(packet)


def main() -> None:
    config = ConvertConfig(PRESETS["16k"])
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        made = make(root)
        rounds = [
            {
                each: (converting(sources, root, config), decoding(sources, root, config), alone(sources, root))
                for each, sources in made.items()
            }
            for _ in range(ROUNDS + 1)
        ][1:]
    print(machine())
    print(f"{CLIPS} clips of {SECONDS} s, median of {ROUNDS} rounds, load {os.getloadavg()[0]:.1f} at the end\n")
    rows = []
    for each, _, _, _, _, target in FORMATS:
        total, decoded, library = (median(found[each][part] for found in rounds) for part in range(3))
        ratio = median(found[each][0] / found[WAV][0] for found in rounds)
        bound = median((found[WAV][0] - found[WAV][1] + found[each][2]) / found[WAV][0] for found in rounds)
        said = "" if target is None else f"{target:.1f} {'met' if ratio <= target else 'missed'}"
        rows.append([each, f"{total:.2f}", f"{decoded:.2f}", f"{library:.2f}", f"{ratio:.2f}", f"{bound:.2f}", said])
    print(table(["", "CPU ms per clip", "of it decoding", "library alone", "ratio", "its bound", "target"], rows))


if __name__ == "__main__":
    restart_with(WORKER_ENVIRONMENT)
    main()
