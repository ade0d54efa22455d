"""Decodes formats that libsndfile cannot open (M4A, WebM, MP4, WMA, AAC, …) with FFmpeg's libraries, through PyAV.

The samples are those of the program ``ffmpeg``, and the same checks apply: the first audio stream counts, the stored
length must be reached, and messages about the sound are faults. Up to `MEMORY_BYTES` of samples stay in memory; those
of longer sounds go to an unnamed temporary file, so that an hour needs no more memory than a minute.
"""

from __future__ import annotations

import errno
import io
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from types import ModuleType
from typing import IO, Any, NamedTuple

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
from m2dprep.audioprep.decoding.opening import Source
from m2dprep.audioprep.decoding.sound import FLOAT_FULL_SCALE, CannotOpenError, DecodeError

READ_BYTES = 1 << 18
LIBOPUS = "libopus"
# A minute of 48 kHz stereo.
MEMORY_BYTES = 24 << 20
# Frames that are joined to one array.
BLOCK_FRAMES = 1 << 19
# Only the open file itself is read, whatever it refers to: there is no protocol of this name.
OPTIONS = {"format_whitelist": WHITELIST, "protocol_whitelist": "none"}
# Codes of FFmpeg for a damaged file, or for one that it does not know, as opposed to an error of the machine.
MACHINE = (errno.ENOMEM, errno.EMFILE, errno.ENFILE)


class Form(NamedTuple):
    """How FFmpeg stores samples of one type: as ``dtype``, with ``silence`` and ``full`` for 0.0 and 1.0."""

    dtype: str
    silence: int = 0
    full: int = 1


FORMS = {
    "u8": Form("u1", 1 << 7, 1 << 7),
    "s16": Form("i2", 0, 1 << 15),
    "s32": Form("i4", 0, 1 << 31),
    "s64": Form("i8", 0, 1 << 63),
    "flt": Form("f4"),
    "dbl": Form("f8"),
}


class LibrarySound:
    """A `Sound` that is decoded: blocks (n, channels) in memory, or interleaved in a file."""

    def __init__(self, samples: _Samples, frames: int, stream: Stream, decoder: str) -> None:
        self._samples, self.frames, self.decoder = samples, frames, decoder
        self.channels, self.sample_rate, self.kind = stream.channels, stream.rate, stream.kind
        is_int16 = samples.dtype == np.int16
        self.unit = 32768.0 if is_int16 else 1.0
        self.full_scale = 32767.0 if is_int16 else FLOAT_FULL_SCALE

    def read(self, start: int, frames: int) -> np.ndarray:
        return self._samples.read(start, min(frames, self.frames - start))


class _Samples:
    """Collects decoded frames, of some ten milliseconds each, in blocks (n, channels) of float32, or int16 as it is."""

    def __init__(self, channels: int) -> None:
        self._channels, self.frames = channels, 0
        self.dtype: np.dtype[Any] = np.dtype(np.float32)
        self._name = ""  # of the type of the samples
        self._planar, self._form, self._bytes = False, FORMS["flt"], 0
        self._filled, self._capacity = 0, 0
        self._raw = np.empty((0, 0))  # (planes, values) of the block that is being filled
        self._planes: list[memoryview] = []
        self._blocks: list[np.ndarray] = []
        self._file: IO[bytes] | None = None

    def add(self, frame: Any) -> None:
        """Copy the samples of a frame, all of which must be of one type."""
        count, name = frame.samples, frame.format.name
        if name != self._name:
            self._take_form(name, frame.format.is_planar)
        if self._filled + count > self._capacity:
            self.end_block()
            self._begin_block(count)
        first = self._filled * self._bytes
        length = count * self._bytes
        for kept, plane in zip(self._planes, frame.planes, strict=False):
            kept[first : first + length] = memoryview(plane)[:length]
        self._filled += count
        self.frames += count

    def _take_form(self, name: str, planar: bool) -> None:
        if self._name:
            raise CannotOpenError("unsupported", "the type of its samples changes within the sound")
        self._name, self._planar, self._form = name, planar, FORMS[name.removesuffix("p")]
        if self._form.dtype == "i2":
            self.dtype = np.dtype(np.int16)
        self._bytes = np.dtype(self._form.dtype).itemsize * (1 if self._planar else self._channels)

    def _begin_block(self, least: int) -> None:
        self._capacity = max(BLOCK_FRAMES, least)
        shape = (self._channels, self._capacity) if self._planar else (1, self._capacity * self._channels)
        self._raw = np.empty(shape, self._form.dtype)
        self._planes = [plane.data.cast("B") for plane in self._raw]

    def end_block(self) -> None:
        """Keep what was added so far, in memory or in the file."""
        if self._filled:
            raw, form = self._raw, self._form
            block = raw[:, : self._filled].T if self._planar else raw[0].reshape(-1, self._channels)[: self._filled]
            if self.dtype == np.float32 and form.dtype != "f4":
                block = np.subtract(block, form.silence, dtype=np.float64) / form.full
            self._keep(block.astype(self.dtype, copy=False))
        self._filled = self._capacity = 0

    def _keep(self, block: np.ndarray) -> None:
        self._blocks.append(block)
        if self._file is None and self.frames * self._channels * block.itemsize > MEMORY_BYTES:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 (see `close`)
        if self._file is not None:
            for part in self._blocks:
                self._file.write(np.ascontiguousarray(part).data)
            self._blocks = []

    def read(self, start: int, frames: int) -> np.ndarray:
        if self._file is not None:
            self._file.seek(self.dtype.itemsize * self._channels * start)
            return np.fromfile(self._file, self.dtype, frames * self._channels).reshape(-1, self._channels)
        if len(self._blocks) > 1:
            self._blocks = [np.concatenate(self._blocks)]
        return self._blocks[0][start : start + frames] if self._blocks else np.empty((0, self._channels), self.dtype)

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
        yield from _decoded(av, Stretch(content), refusal, max_seconds, said)


@contextmanager
def opus_sound(source: Source, max_seconds: float) -> Iterator[LibrarySound]:
    """An Ogg file of Opus, which has been checked, decoded by PyAV's libopus. Raises `DecodeError` if it cannot be.

    It is the library that libsndfile uses too, so the samples are the same. FFmpeg's own decoder differs from it.
    """
    av, refusal = libraries(), CannotOpenError("unsupported", "PyAV's libopus does not read it")
    if av is None or LIBOPUS not in av.codecs_available:
        raise refusal
    file = source.file if isinstance(source.file, io.RawIOBase) else io.FileIO(source.file, closefd=False)
    file.seek(0)
    with av.logging.Capture() as said:
        for sound in _decoded(av, file, refusal, max_seconds, said, LIBOPUS):
            if sound.frames != source.opus:
                raise refusal
            yield sound


def _decoded(
    av: ModuleType,
    file: io.RawIOBase,
    refusal: CannotOpenError,
    max_seconds: float,
    said: list[tuple[int, str, str]],
    decoder: str | None = None,
) -> Iterator[LibrarySound]:
    try:
        container = av.open(file, options=OPTIONS, buffer_size=READ_BYTES, metadata_errors="replace")
    except av.FFmpegError as error:
        raise _not_opened(error, said, refusal) from error
    with container:
        stream = _stream(container, said)
        version = ".".join(map(str, av.library_versions["libavcodec"]))
        name = " ".join(filter(None, ("libavcodec", version, decoder)))
        samples = _Samples(stream.channels)
        try:
            if stream.seconds is not None and stream.seconds > max_seconds:
                yield LibrarySound(samples, int(stream.seconds * stream.rate), stream, name)  # to be refused unread
                return
            context = _context(av, container.streams.audio[0].codec_context, decoder)
            _decode(av, container, context, stream, samples, max_seconds, said, refusal)
            yield LibrarySound(samples, samples.frames, stream, name)
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


def _context(av: ModuleType, found: Any, decoder: str | None) -> Any:
    """What decodes the stream whose decoder ``found`` is: that one, or the named ``decoder``, giving float32."""
    context = found
    if decoder is not None:
        context = av.CodecContext.create(decoder, "r")
        context.extradata, context.sample_rate, context.layout = found.extradata, found.sample_rate, found.layout
        context.options = {"request_sample_fmt": "flt"}
    context.thread_count = 1  # messages of other threads would be lost
    return context


def _codec(stream: Any) -> str:
    return stream.codec_context.name if stream.codec_context is not None else "unknown"


def _decode(
    av: ModuleType,
    container: Any,
    context: Any,
    stream: Stream,
    samples: _Samples,
    max_seconds: float,
    said: list[tuple[int, str, str]],
    refusal: CannotOpenError,
) -> None:
    """Decode the stream into ``samples`` and require that it is whole."""
    first, rate, channels = container.streams.audio[0], stream.rate, stream.channels
    enough, ends, failed = int((max_seconds + 1) * rate), 0, ""
    try:
        for packet in container.demux(first):
            if (at := packet.pts) is not None:
                ends = max(ends, at + (packet.duration or 0))
            for frame in context.decode(packet):
                if frame.sample_rate != rate or frame.layout.nb_channels != channels:
                    raise CannotOpenError("unsupported", "the rate or the channels change within the sound")
                samples.add(frame)
            if samples.frames >= enough:
                break
    except av.FFmpegError as error:
        _require_machine(error)
        failed = f"{error.strerror or error}"
    samples.end_block()
    if fault := fault_in(_lines(said), stream.speakers, failed):
        raise DecodeError(fault.reason, f"FFmpeg: {fault.words}")
    decoded = samples.frames / stream.rate
    for seconds, source, reached in (
        (refusal.seconds, "its frames hold", 0.0),
        (stream.seconds, "the header promises", float(ends * first.time_base)),
    ):
        # A pause is not a cut: with pauses, the last packet still ends at the stored length.
        if seconds is not None and max(decoded, reached) < min(seconds, max_seconds) - LENGTH_TOLERANCE_SECONDS:
            raise DecodeError("truncated", f"{source} {seconds:.2f} s, {decoded:.2f} s were there")


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
