"""What libsndfile cannot read (M4A, WebM, WMA, AAC), decoded by the programs ffmpeg and ffprobe.

ffprobe tells rate, channels and length, so that what must not be decoded is refused first; ffmpeg then writes float32
samples to an unnamed temporary file, so that an hour needs no more memory than ten seconds.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import numpy as np

from artifacts.errors import UserError
from audioprep.faults import DecodeError
from audioprep.sounds import FLOAT_FULL_SCALE

INSTALL = "install ffmpeg (with ffprobe; e.g. `apt-get install ffmpeg`)"
# A program that takes longer than this for one clip hangs.
TIMEOUT_SECONDS = 600
# What these programs say where a file was cut off.
TRUNCATION_SIGNS = (
    *("moov atom not found", "partial file", "ended prematurely", "end of file", "truncat"),
    *("buffer exhausted", "packet size too small"),
)
# What befalls the samples on their way to the temporary file says nothing about the sound.
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
# "[aac @ 0x55a0d8c16a00] " before a message: the address is another one every time.
COMPONENT = re.compile(r"^\[(\w+)[^\]]* @ 0x[0-9a-f]+\] ?")
# Containers count in milliseconds, codecs in frames of up to this length: less missing is no cut.
LENGTH_TOLERANCE_SECONDS = 0.25
# Only the file itself is opened, whatever its content refers to.
QUIET = ("-v", "error", "-protocol_whitelist", "file")


class FfmpegSound:
    """A `Sound` that ffmpeg has written to ``samples`` as interleaved native float32."""

    unit, full_scale = 1.0, FLOAT_FULL_SCALE

    def __init__(self, samples: IO[bytes], frames: int, channels: int, sample_rate: int, kind: str) -> None:
        self._samples = samples
        self.frames, self.channels, self.sample_rate, self.kind = frames, channels, sample_rate, kind
        self.decoder = f"ffmpeg {ffmpeg_version()}"

    def read(self, start: int, frames: int) -> np.ndarray:
        self._samples.seek(4 * self.channels * start)
        count = min(frames, self.frames - start) * self.channels
        return np.fromfile(self._samples, np.float32, count).reshape(-1, self.channels)


def require_ffmpeg() -> None:
    """Raise `UserError` where the programs are not installed."""
    missing = [name for name in ("ffmpeg", "ffprobe") if shutil.which(name) is None]
    if missing:
        raise UserError(f"--decoder ffmpeg needs {' and '.join(missing)}, not found in PATH; {INSTALL}.")


@contextmanager
def ffmpeg_sound(path: Path, max_seconds: float) -> Iterator[FfmpegSound]:
    """The first audio stream of ``path``; a little more than ``max_seconds`` of it at most.

    Raises `DecodeError` where it has none, it was cut off, or the programs fail or are missing, and `OSError` where
    the folder of temporary files is full.
    """
    stream = _probe(path)
    rate, channels, seconds = int(stream["sample_rate"]), int(stream["channels"]), stream["seconds"]
    kind = str(stream.get("codec_name", "unknown")).upper()
    with tempfile.TemporaryFile() as samples:
        if seconds is not None and seconds > max_seconds:
            yield FfmpegSound(samples, int(seconds * rate), channels, rate, kind)  # to be refused unread
            return
        decoding = ("-nostdin", "-i", _url(path), "-map", "0:a:0", "-t", f"{max_seconds + 1:.3f}")
        _run("ffmpeg", *decoding, "-f", "f32le", "-c:a", "pcm_f32le", "-ar", str(rate), "pipe:1", output=samples)
        frames = os.fstat(samples.fileno()).st_size // (4 * channels)
        if seconds is not None and frames / rate < min(seconds, max_seconds) - LENGTH_TOLERANCE_SECONDS:
            raise DecodeError("truncated", f"the header promises {seconds:.2f} s, {frames / rate:.2f} s were there")
        yield FfmpegSound(samples, frames, channels, rate, kind)


@lru_cache(maxsize=1)
def ffmpeg_version() -> str:
    """The version that ffmpeg says it has."""
    first = subprocess.run(["ffmpeg", "-version"], capture_output=True, text=True, check=False).stdout.split(" ", 3)
    return first[2] if len(first) > 2 else "of unknown version"


def _probe(path: Path) -> dict[str, Any]:
    """Codec, rate and channels of the first audio stream, and its ``seconds``, None where the file does not say."""
    entries = "stream=codec_name,sample_rate,channels,duration:format=duration,nb_streams"
    shown = _run("ffprobe", "-select_streams", "a:0", "-show_entries", entries, "-of", "json", _url(path))
    found = json.loads(shown or b"{}")
    if not found.get("streams"):
        raise DecodeError("no_samples", "it has no audio stream")
    stream: dict[str, Any] = found["streams"][0]
    container = found.get("format", {})
    seconds = stream.get("duration") or (container.get("duration") if container.get("nb_streams") == 1 else None)
    if not int(stream.get("sample_rate", 0)) or not int(stream.get("channels", 0)):
        raise DecodeError("bad_rate", "its header gives no usable sample rate or number of channels")
    return {**stream, "seconds": None if seconds in (None, "N/A") else float(seconds)}


def _url(path: Path) -> str:
    """``path`` as these programs take it without reading options or protocols into it."""
    return f"file:{os.path.abspath(path)}"  # noqa: PTH100


def _run(program: str, *arguments: str, output: IO[bytes] | None = None) -> bytes:
    """Run a program and return what it printed, unless ``output`` took it. Any error that it reports is a fault."""
    try:
        done = subprocess.run(
            [program, *QUIET, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output or subprocess.PIPE,
            stderr=subprocess.PIPE,
            timeout=TIMEOUT_SECONDS,
            check=False,
        )
    except FileNotFoundError as error:
        raise DecodeError("unsupported", f"{program} is not installed here; {INSTALL}") from error
    except subprocess.TimeoutExpired as error:
        raise DecodeError("malformed", f"{program} did not finish within {TIMEOUT_SECONDS} s") from error
    complaint = done.stderr.decode(errors="replace").strip()
    if done.returncode or complaint:
        for number in FULL_DISK if output else ():
            if os.strerror(number) in complaint:
                raise OSError(number, f"{os.strerror(number)} for temporary files (TMPDIR)", tempfile.gettempdir())
        cut = any(sign in complaint.lower() for sign in TRUNCATION_SIGNS)
        said = COMPONENT.sub(r"\1: ", complaint.splitlines()[0]) if complaint else f"exit code {done.returncode}"
        raise DecodeError("truncated" if cut else "malformed", f"{program}: {said}")
    return done.stdout or b""
