"""Decodes formats that libsndfile cannot open (M4A, WebM, MP4, WMA, AAC, …) with FFmpeg's libraries, through PyAV.

The samples are those of the program ``ffmpeg``, and the same checks apply: the first audio stream counts, the stored
length must be reached, and messages about the sound are faults. Up to `MEMORY_BYTES` of samples stay in memory; those
of longer sounds go to an unnamed temporary file, so that an hour needs no more memory than a minute.
"""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from types import ModuleType
from typing import IO, Any

import numpy as np

from m2dprep.audioprep.decoding.content import Content, Stretch
from m2dprep.audioprep.decoding.ffmpeg import (
    FULL_DISK,
    LENGTH_TOLERANCE_SECONDS,
    STORED_LENGTH,
    WHITELIST,
    Stream,
    with_advice,
)
from m2dprep.audioprep.decoding.following import require_no_second_beginning
from m2dprep.audioprep.decoding.messages import Speakers, fault_in, not_among_formats
from m2dprep.audioprep.decoding.sound import FLOAT_FULL_SCALE, CannotOpenError, DecodeError

READ_BYTES = 1 << 18
# A minute of 48 kHz stereo.
MEMORY_BYTES = 24 << 20
# Frames that are joined to one array.
BLOCK_FRAMES = 1 << 19
# Only the open file itself is read, whatever it refers to: there is no protocol of this name.
OPTIONS = {"format_whitelist": WHITELIST, "protocol_whitelist": "none"}
# The magnitude of full scale, and the value of silence, by the types of samples.
SCALES = {"u8": (1 << 7, 1 << 7), "s16": (1 << 15, 0), "s32": (1 << 31, 0), "s64": (1 << 63, 0)}
# Codes of FFmpeg for a damaged file, or for one that it does not know, as opposed to an error of the machine.
MACHINE = (errno.ENOMEM, errno.EMFILE, errno.ENFILE)


class LibrarySound:
    """A `Sound` that is decoded: blocks (n, channels) of float32 in memory, or interleaved in a file."""

    unit, full_scale = 1.0, FLOAT_FULL_SCALE

    def __init__(self, samples: _Samples, frames: int, stream: Stream, decoder: str) -> None:
        self._samples, self.frames, self.decoder = samples, frames, decoder
        self.channels, self.sample_rate, self.kind = stream.channels, stream.rate, stream.kind

    def read(self, start: int, frames: int) -> np.ndarray:
        return self._samples.read(start, min(frames, self.frames - start))


class _Samples:
    """Collects blocks (n, channels) of float32."""

    def __init__(self, channels: int) -> None:
        self._channels, self.frames = channels, 0
        self._blocks: list[np.ndarray] = []
        self._file: IO[bytes] | None = None

    def add(self, block: np.ndarray) -> None:
        self._blocks.append(block)
        self.frames += len(block)
        if self._file is None and self.frames * self._channels * block.itemsize > MEMORY_BYTES:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 (see `close`)
        if self._file is not None:
            for part in self._blocks:
                self._file.write(np.ascontiguousarray(part).data)
            self._blocks = []

    def read(self, start: int, frames: int) -> np.ndarray:
        if self._file is not None:
            self._file.seek(4 * self._channels * start)
            return np.fromfile(self._file, np.float32, frames * self._channels).reshape(-1, self._channels)
        if len(self._blocks) > 1:
            self._blocks = [np.concatenate(self._blocks)]
        return self._blocks[0][start : start + frames] if self._blocks else np.empty((0, self._channels), np.float32)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


@lru_cache(maxsize=1)
def libraries() -> ModuleType | None:
    """PyAV, imported when the first such file is met; None where it is not installed."""
    try:
        import av
    except ImportError:
        return None
    av.logging.set_level(av.logging.ERROR)
    av.logging.set_skip_repeated(False)
    return av


@contextmanager
def library_sound(content: Content, refusal: CannotOpenError, max_seconds: float) -> Iterator[LibrarySound]:
    """The first audio stream of a file that libsndfile refused; a little more than ``max_seconds`` of it at most.

    Raises ``refusal``, with FFmpeg's message, if FFmpeg cannot open it either or PyAV is not installed; `DecodeError`
    if it has no audio stream, was cut off or is damaged; and `OSError` if the folder of temporary files is full.
    """
    av = libraries()
    if av is None:
        raise with_advice(refusal, "PyAV is not installed here: `pip install av`, then --retry-failed")
    require_no_second_beginning(content)
    said: list[tuple[int, str, str]]
    with av.logging.Capture() as said:
        yield from _decoded(av, content, refusal, max_seconds, said)


def _decoded(
    av: ModuleType, content: Content, refusal: CannotOpenError, max_seconds: float, said: list[tuple[int, str, str]]
) -> Iterator[LibrarySound]:
    try:
        container = av.open(Stretch(content), options=OPTIONS, buffer_size=READ_BYTES, metadata_errors="replace")
    except av.FFmpegError as error:
        raise _not_opened(error, said, refusal) from error
    with container:
        stream = _stream(container, said)
        decoder = f"libavcodec {'.'.join(map(str, av.library_versions['libavcodec']))}"
        samples = _Samples(stream.channels)
        try:
            if stream.seconds is not None and stream.seconds > max_seconds:
                yield LibrarySound(samples, int(stream.seconds * stream.rate), stream, decoder)  # to be refused unread
                return
            _decode(av, container, stream, samples, max_seconds, said, refusal)
            yield LibrarySound(samples, samples.frames, stream, decoder)
        finally:
            samples.close()


def _stream(container: Any, said: list[tuple[int, str, str]]) -> Stream:
    """The first audio stream. Raises `DecodeError` if there is none, or the file is cut off."""
    if not container.streams.audio:
        raise DecodeError("no_samples", "it has no audio stream")
    first = container.streams.audio[0]
    others = {_codec(stream) for stream in container.streams if stream.type != "audio"}
    speakers = Speakers(container.format.name, first.index, frozenset(others))
    if (fault := fault_in(_lines(said), speakers)) and fault.reason == "truncated":
        raise DecodeError(fault.reason, f"FFmpeg: {fault.words}")
    if first.codec_context is None:
        raise CannotOpenError("unsupported", "FFmpeg's libraries have no decoder for its sound")
    rate, channels = first.codec_context.sample_rate, first.codec_context.channels
    if not rate or not channels:
        raise DecodeError("bad_rate", "its header gives no usable sample rate or number of channels")
    seconds = None
    if container.format.name in STORED_LENGTH:
        if first.duration is not None:
            seconds = float(first.duration * first.time_base)
        elif container.duration is not None and len(container.streams) == 1:
            seconds = container.duration / 1_000_000
    return Stream(first.codec_context.name.upper(), rate, channels, seconds, speakers)


def _codec(stream: Any) -> str:
    return stream.codec_context.name if stream.codec_context is not None else "unknown"


def _decode(
    av: ModuleType,
    container: Any,
    stream: Stream,
    samples: _Samples,
    max_seconds: float,
    said: list[tuple[int, str, str]],
    refusal: CannotOpenError,
) -> None:
    """Decode the stream into ``samples`` and require that it is whole."""
    first = container.streams.audio[0]
    first.codec_context.thread_count = 1  # messages of other threads would be lost
    enough = int((max_seconds + 1) * stream.rate)
    fifo, ends, failed = _Joined(av, stream), 0.0, ""
    try:
        for packet in container.demux(first):
            if packet.pts is not None:
                ends = max(ends, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            for frame in packet.decode():
                if frame.sample_rate != stream.rate or frame.layout.nb_channels != stream.channels:
                    raise CannotOpenError("unsupported", "the rate or the channels change within the sound")
                for block in fifo.add(frame):
                    samples.add(block)
            if samples.frames + fifo.waiting >= enough:
                break
    except av.FFmpegError as error:
        _require_machine(error)
        failed = f"{error.strerror or error}"
    for block in fifo.rest():
        samples.add(block)
    if fault := fault_in(_lines(said), stream.speakers, failed):
        raise DecodeError(fault.reason, f"FFmpeg: {fault.words}")
    decoded = samples.frames / stream.rate
    for seconds, source, reached in (
        (refusal.seconds, "its frames hold", 0.0),
        (stream.seconds, "the header promises", ends),
    ):
        # A pause is not a cut: with pauses, the last packet still ends at the stored length.
        if seconds is not None and max(decoded, reached) < min(seconds, max_seconds) - LENGTH_TOLERANCE_SECONDS:
            raise DecodeError("truncated", f"{source} {seconds:.2f} s, {decoded:.2f} s were there")


class _Joined:
    """Joins decoded frames, of some ten milliseconds each, to blocks (n, channels) of float32."""

    def __init__(self, av: ModuleType, stream: Stream) -> None:
        self._fifo, self._channels = av.AudioFifo(), stream.channels
        self.waiting = 0

    def add(self, frame: Any) -> Iterator[np.ndarray]:
        frame.pts = None
        self._fifo.write(frame)
        self.waiting = self._fifo.samples
        if self.waiting >= BLOCK_FRAMES:
            yield from self.rest()

    def rest(self) -> Iterator[np.ndarray]:
        self.waiting = 0
        if (frame := self._fifo.read()) is not None:
            yield self._block(frame)

    def _block(self, frame: Any) -> np.ndarray:
        values = frame.to_ndarray()
        block = values.T if frame.format.is_planar else values.reshape(-1, self._channels)
        name = frame.format.name.removesuffix("p")
        if name in SCALES:
            scale, silence = SCALES[name]
            block = np.subtract(block, silence, dtype=np.float64) / scale
        return block.astype(np.float32, copy=False)


def _not_opened(error: Exception, said: list[tuple[int, str, str]], refusal: CannotOpenError) -> DecodeError:
    """The failure of a file that FFmpeg cannot open either; its message decides the reason if libsndfile gave none."""
    _require_machine(error)
    lines = _lines(said)
    if other := not_among_formats(lines):
        return with_advice(refusal, f"ffmpeg takes it for {other}, whose end cannot be checked")
    fault = fault_in(lines, Speakers(), str(getattr(error, "strerror", None) or error))
    assert fault is not None
    reason = fault.reason if refusal.reason == "unsupported" else refusal.reason
    return CannotOpenError(reason, f"{refusal.message}; FFmpeg: {fault.words}", refusal.seconds)


def _require_machine(error: Exception) -> None:
    """Raise ``error`` as an `OSError` if the machine is to blame for it, not the file."""
    number = getattr(error, "errno", None)
    if number in (*MACHINE, *FULL_DISK):
        raise OSError(number, str(getattr(error, "strerror", error))) from error


def _lines(said: list[tuple[int, str, str]]) -> list[str]:
    """The messages as the program ``ffmpeg`` writes them."""
    return [f"[{name} @ 0x0] {line}" if name else line for _, name, text in said for line in text.splitlines()]
