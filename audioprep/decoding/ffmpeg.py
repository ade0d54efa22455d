"""Decodes formats that libsndfile cannot open (M4A, WebM, WMA, AAC, …) with the program ffmpeg.

This is for files that FFmpeg's libraries (`audioprep.decoding.libraries`) could not open, and for --decoder ffmpeg.

ffprobe tells rate, channels and length, so that unsuitable files are refused before decoding. ffmpeg then writes
float32 samples to an unnamed temporary file, so that an hour needs no more memory than ten seconds.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import IO, NamedTuple

import numpy as np

from m2dprep.artifacts.errors import UserError
from m2dprep.audioprep.decoding.content import Content
from m2dprep.audioprep.decoding.following import require_no_second_beginning
from m2dprep.audioprep.decoding.messages import Fault, Speakers, fault_in, not_among_formats
from m2dprep.audioprep.decoding.sound import FLOAT_FULL_SCALE, CannotOpenError, DecodeError

INSTALL = "install ffmpeg (with ffprobe; e.g. `apt-get install ffmpeg`)"
# A program that takes longer than this for one clip hangs.
TIMEOUT_SECONDS = 600
# Errors of writing the samples to the temporary file, which say nothing about the sound.
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
# Containers count in milliseconds, codecs in frames of up to this length: less missing is no cut.
LENGTH_TOLERANCE_SECONDS = 0.25
# Formats, by ffmpeg's names, in which the file states the length of each stream, which shows whether it was cut off.
# For all other formats, ffprobe estimates the length from the file's size.
STORED_LENGTH = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "asf", "wv", "tta", "ape", "mpc", "mpc8", "nistsphere")
# In these formats, the packets show a cut: the last one is not whole, or `audioprep.decoding.opening` has checked.
FRAMED = ("aac", "amr", "amrnb", "amrwb", "mp3", "ac3", "eac3", "ogg", "flac", "wav", "w64", "aiff", "caf", "au", "avi")
# Only the file itself is opened, whatever it refers to, and only as one of these formats.
WHITELIST = ",".join((*STORED_LENGTH, *FRAMED))
SAFELY = ("-v", "error", "-protocol_whitelist", "file", "-format_whitelist", WHITELIST)


class FfmpegSound:
    """A `Sound` that ffmpeg has written to ``samples`` as interleaved native float32."""

    unit, full_scale = 1.0, FLOAT_FULL_SCALE

    def __init__(self, samples: IO[bytes], frames: int, stream: Stream) -> None:
        self._samples = samples
        self.frames, self.channels, self.sample_rate, self.kind = frames, stream.channels, stream.rate, stream.kind
        self.decoder = f"ffmpeg {ffmpeg_version()}"

    def read(self, start: int, frames: int) -> np.ndarray:
        self._samples.seek(4 * self.channels * start)
        count = min(frames, self.frames - start) * self.channels
        return np.fromfile(self._samples, np.float32, count).reshape(-1, self.channels)


class Stream(NamedTuple):
    """The first audio stream of a file. ``seconds`` is the stored length, None if no length is stored."""

    kind: str
    rate: int
    channels: int
    seconds: float | None
    speakers: Speakers


def require_ffmpeg() -> None:
    """Raise `UserError` if the programs are not installed."""
    missing = [name for name in ("ffmpeg", "ffprobe") if shutil.which(name) is None]
    if missing:
        raise UserError(f"--decoder ffmpeg needs {' and '.join(missing)}, not found in PATH; {INSTALL}.")


def has_ffmpeg() -> bool:
    """Whether the programs are installed."""
    return all(shutil.which(name) is not None for name in ("ffmpeg", "ffprobe"))


def with_advice(refusal: CannotOpenError, advice: str) -> CannotOpenError:
    """The same failure with advice on what can be done about it."""
    return CannotOpenError(refusal.reason, f"{refusal.message}; {advice}", refusal.seconds)


@contextmanager
def ffmpeg_sound(content: Content, refusal: CannotOpenError, max_seconds: float) -> Iterator[FfmpegSound]:
    """The first audio stream of a file that libsndfile refused; a little more than ``max_seconds`` of it at most.

    Raises ``refusal``, with ffmpeg's message, if ffmpeg cannot open it either or is not installed; `DecodeError` if it
    has no audio stream, was cut off or is damaged; and `OSError` if the folder of temporary files is full.
    """
    stream = _probe(content, refusal)
    require_no_second_beginning(content)
    with tempfile.TemporaryFile() as samples:
        if stream.seconds is not None and stream.seconds > max_seconds:
            yield FfmpegSound(samples, int(stream.seconds * stream.rate), stream)  # to be refused unread
            return
        taken = ("-nostdin", "-i", _url(content), "-map", "0:a:0", "-t", f"{max_seconds + 1:.3f}")
        made = ("-f", "f32le", "-c:a", "pcm_f32le", "-ar", str(stream.rate), "-ac", str(stream.channels), "pipe:1")
        done = _run(content, "ffmpeg", *taken, *made, output=samples)
        _require_space(done)
        if fault := _fault_in(done, stream.speakers):
            raise DecodeError(fault.reason, f"ffmpeg: {fault.words}")
        frames = os.fstat(samples.fileno()).st_size // (4 * stream.channels)
        _require_length(content, stream, refusal.seconds, frames / stream.rate, max_seconds)
        yield FfmpegSound(samples, frames, stream)


@lru_cache(maxsize=1)
def ffmpeg_version() -> str:
    """The version that ffmpeg reports."""
    first = subprocess.run(["ffmpeg", "-version"], capture_output=True, text=True, check=False).stdout.split(" ", 3)
    return first[2] if len(first) > 2 else "of unknown version"


def _probe(content: Content, refusal: CannotOpenError) -> Stream:
    """The first audio stream according to ffprobe."""
    entries = "stream=index,codec_type,codec_name,sample_rate,channels,duration:format=format_name,duration,nb_streams"
    try:
        done = _run(content, "ffprobe", "-show_entries", entries, "-of", "json", _url(content))
    except FileNotFoundError as error:
        raise with_advice(
            refusal, f"ffmpeg might read it, but is not installed here: {INSTALL}, then --retry-failed"
        ) from error
    found = {} if done.returncode else json.loads(done.stdout or b"{}")
    if "format" not in found:
        raise _not_opened(done, refusal)
    container, streams = found["format"], found.get("streams", [])
    audio = [stream for stream in streams if stream.get("codec_type") == "audio"]
    others = {str(stream.get("codec_name")) for stream in streams if stream.get("codec_type") != "audio"}
    if not audio:
        raise DecodeError("no_samples", "it has no audio stream")
    first = audio[0]
    speakers = Speakers(container["format_name"], first["index"], frozenset(others))
    if (fault := _fault_in(done, speakers)) and fault.reason == "truncated":
        raise DecodeError(fault.reason, f"ffprobe: {fault.words}")
    if not int(first.get("sample_rate", 0)) or not int(first.get("channels", 0)):
        raise DecodeError("bad_rate", "its header gives no usable sample rate or number of channels")
    kind = str(first.get("codec_name", "unknown")).upper()
    seconds = _stored_seconds(container, first) if container["format_name"] in STORED_LENGTH else None
    return Stream(kind, int(first["sample_rate"]), int(first["channels"]), seconds, speakers)


def _not_opened(done: subprocess.CompletedProcess[bytes], refusal: CannotOpenError) -> DecodeError:
    """The failure of a file that ffprobe cannot open either; its message decides the reason if libsndfile gave none."""
    if other := not_among_formats(_said(done)):
        return with_advice(refusal, f"ffmpeg takes it for {other}, whose end cannot be checked")
    fault = _fault_in(done, Speakers())
    if fault is None:
        return with_advice(refusal, "nor could ffprobe open it")
    reason = fault.reason if refusal.reason == "unsupported" else refusal.reason
    return DecodeError(reason, f"{refusal.message}; ffprobe: {fault.words}")


def _stored_seconds(container: dict[str, str], stream: dict[str, str]) -> float | None:
    seconds = stream.get("duration") or (container.get("duration") if container.get("nb_streams") == 1 else None)
    return None if seconds in (None, "N/A") else float(seconds)


def _require_length(
    content: Content, stream: Stream, counted: float | None, decoded: float, max_seconds: float
) -> None:
    """Raise `DecodeError` if the decoder gave less than was ``counted`` or stored, and no pause explains it."""
    for seconds, said in ((counted, "its frames hold"), (stream.seconds, "the header promises")):
        if seconds is None or decoded >= min(seconds, max_seconds) - LENGTH_TOLERANCE_SECONDS:
            continue
        # A pause is not a cut: with pauses, the last packet still ends at the stored length.
        if seconds == stream.seconds and _last_packet_ends(content) >= seconds - LENGTH_TOLERANCE_SECONDS:
            continue
        raise DecodeError("truncated", f"{said} {seconds:.2f} s, {decoded:.2f} s were there")


def _last_packet_ends(content: Content) -> float:
    """The time in seconds at which the last packet of the first audio stream ends."""
    entries = ("-select_streams", "a:0", "-show_entries", "packet=pts_time,duration_time", "-of", "csv=p=0")
    done = _run(content, "ffprobe", *entries, _url(content))
    ends = [0.0]
    for line in done.stdout.decode(errors="replace").splitlines():
        times = [float(time) for time in line.split(",") if time and time != "N/A"]
        if times:
            ends.append(sum(times[:2]))
    return max(ends)


def _url(content: Content) -> str:
    """The open file's URL for these programs: it has no name in which they could see a suffix or options."""
    return f"file:/dev/fd/{content.file()}"


def _run(
    content: Content, program: str, *arguments: str, output: IO[bytes] | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run a program on the open file, printing to ``output``. Raises `FileNotFoundError` if it is not installed."""
    try:
        return subprocess.run(
            [program, *SAFELY, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output or subprocess.PIPE,
            stderr=subprocess.PIPE,
            timeout=TIMEOUT_SECONDS,
            check=False,
            pass_fds=(content.file(),),
        )
    except subprocess.TimeoutExpired as error:
        raise DecodeError("malformed", f"{program} did not finish within {TIMEOUT_SECONDS} s") from error


def _said(done: subprocess.CompletedProcess[bytes]) -> list[str]:
    return done.stderr.decode(errors="replace").splitlines()


def _fault_in(done: subprocess.CompletedProcess[bytes], speakers: Speakers) -> Fault | None:
    """What is wrong with the sound according to a finished program; None if nothing is."""
    return fault_in(_said(done), speakers, f"exit code {done.returncode}" if done.returncode else "")


def _require_space(done: subprocess.CompletedProcess[bytes]) -> None:
    """Raise `OSError` if the samples did not fit into the folder of temporary files."""
    for number in FULL_DISK:
        if os.strerror(number) in done.stderr.decode(errors="replace"):
            raise OSError(number, f"{os.strerror(number)} for temporary files (TMPDIR)", tempfile.gettempdir())
