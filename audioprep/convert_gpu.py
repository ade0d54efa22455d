"""Converts a shard of sources on a GPU: threads decode, the GPU resamples and transforms batches, and threads write.

While one part of the shard is on the device and being written, the next part is decoded; `Backlog` limits how far
decoding runs ahead. Records, files and the treatment of faults are those of `audioprep.convert`.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from m2dprep.artifacts.files import sync_files
from m2dprep.artifacts.log_mels.array import OK
from m2dprep.artifacts.reading import reading
from m2dprep.audioprep.config import ConvertConfig
from m2dprep.audioprep.convert import (
    Record,
    as_stored,
    failure_record,
    row_of,
    stop_if_unreadable,
    store,
)
from m2dprep.audioprep.decode import decode
from m2dprep.audioprep.decoding.sound import AudioInfo, DecodeError
from m2dprep.audioprep.logmel_gpu import DeviceLogMel, OutOfMemoryError, require_resampling, resampled_length
from m2dprep.audioprep.remote.address import Address
from m2dprep.audioprep.retries import GAVE_NOTHING, read_with_retries, require_there
from m2dprep.audioprep.source import Source
from m2dprep.audioprep.time_limit import Claim, limited, no_claim


class Backlog:
    """Counts sources that are decoded and not yet written, and makes decoding threads wait for the writer.

    A thread waits before it decodes another source until there are fewer than ``sources``, with fewer than ``samples``
    in total. The source that is needed next never waits, so decoding in order cannot deadlock.
    """

    def __init__(self, sources: int, samples: int) -> None:
        self._max_sources, self._max_samples = sources, samples
        self._sources = self._samples = self._needed = 0
        self._closed = False
        self._changed = threading.Condition()

    def begin(self, number: int) -> bool:
        """Wait until source ``number`` (0, 1, …) may be decoded. Returns False if it is no longer needed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or number <= self._needed or self._has_room())
            self._sources += 1
            return not self._closed

    def _has_room(self) -> bool:
        return self._sources < self._max_sources and self._samples < self._max_samples

    def add(self, samples: int) -> None:
        """Count ``samples`` more decoded samples."""
        with self._changed:
            self._samples += samples

    def need(self, number: int) -> None:
        """Note that the writer waits for source ``number``."""
        with self._changed:
            self._needed = number
            self._changed.notify_all()

    def remove(self, sources: int, samples: int) -> None:
        """Subtract written ``sources`` with ``samples`` in total."""
        with self._changed:
            self._sources -= sources
            self._samples -= samples
            self._changed.notify_all()

    def close(self) -> None:
        """Release all waiting threads: nothing is needed any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


# Samples per batch at the sources' rate: 64 clips of 10 s at 48 kHz, about 1 GB on the device.
SAMPLES_PER_BATCH = 32 << 20
# Limits of a part of the shard, which is decoded before its first source is transformed: so many sources, or so many
# samples in total (1 GB of memory). Only one further part is decoded meanwhile; besides these two, at most one source
# per thread is in memory.
SOURCES_AT_ONCE = 128
SAMPLES_AT_ONCE = 256 << 20


@dataclass
class Decoded:
    """A source on its way: ``waveform`` (n,) at its own rate, empty if ``record`` is that of a failure."""

    source: Source
    info: AudioInfo = field(default_factory=AudioInfo)
    waveform: np.ndarray = field(default_factory=lambda: np.empty(0, np.float32))
    record: Record | None = None

    @property
    def sample_rate(self) -> int:
        return self.info.sample_rate or 0


class DeviceConverter:
    """`convert_shard` for a GPU: takes a list of sources and returns one record for each, in order."""

    def __init__(
        self,
        src: Path | Address,
        config: ConvertConfig,
        *,
        device: str,
        threads: int,
        ffmpeg: bool | None = None,
        read_timeout: float = 0.0,
    ) -> None:
        """Raises `UserError` if ``device`` or torchaudio is not available."""
        self._src, self._config, self._ffmpeg, self._read_timeout = src, config, ffmpeg, read_timeout
        self._log_mel = DeviceLogMel(config, device)
        self._threads = max(1, threads)

    def __call__(self, sources: Sequence[Source], *, dst: Path) -> list[Record]:
        """Convert ``sources`` to arrays below ``dst``, safe on disk when this returns. Raises as `convert_shard`."""
        records = list(stop_if_unreadable(self._records(sources, dst)))
        sync_files(dst, [dst / record["file_name"] for record in records if record["status"] == OK])
        return records

    def _records(self, sources: Sequence[Source], dst: Path) -> Iterator[Record]:
        with ThreadPoolExecutor(self._threads) as writers, closing(self._decoded(sources, dst)) as parts:
            for decoded in parts:
                for batch in _batches(decoded):
                    log_mels = self._transformed(batch)
                    list(writers.map(lambda item, log_mel: self._store(item, log_mel, dst), batch, log_mels))
                yield from (item.record for item in decoded if item.record is not None)

    def _decoded(self, sources: Sequence[Source], dst: Path) -> Generator[list[Decoded], None, None]:
        """Yield the decoded sources in parts, in order; the next part is decoded while the caller has one.

        Parts depend only on the sources, not on the speed of threads, so that batches are the same in every run.
        """
        backlog = Backlog(2 * SOURCES_AT_ONCE, 2 * SAMPLES_AT_ONCE)
        decoders = ThreadPoolExecutor(self._threads)
        try:
            begun = deque(decoders.submit(self._decode, *one, dst, backlog) for one in enumerate(sources))
            part: list[Decoded] = []
            samples = 0
            for number in range(len(sources)):
                backlog.need(number)
                part.append(begun.popleft().result())
                samples += len(part[-1].waveform)
                if len(part) == SOURCES_AT_ONCE or samples >= SAMPLES_AT_ONCE or not begun:
                    yield part
                    backlog.remove(len(part), samples)
                    part, samples = [], 0
        finally:
            backlog.close()
            decoders.shutdown(cancel_futures=True)

    def _decode(self, number: int, source: Source, dst: Path, backlog: Backlog) -> Decoded:
        found = Decoded(source)
        if source.reason:
            found.record = failure_record(source, source.reason, source.message)
        if not backlog.begin(number) or found.record is not None:
            return found

        def read() -> Record:
            decoded = self._in_time(source)
            if decoded is None:
                source.input(self._src).give_up()
                message = f"{GAVE_NOTHING} {self._read_timeout:g} s"
                return failure_record(source, "read_timeout", message, look=False)
            waveform, found.info = decoded
            require_resampling(found.info, self._config)
            found.waveform = waveform
            return {}

        found.record = row_of(source, dst, read) or None
        backlog.add(len(found.waveform))
        if found.record:
            require_there(self._src, found.record["reason"])
        return found

    def _in_time(self, source: Source) -> tuple[np.ndarray, AudioInfo] | None:
        """A source's waveform and info; None if it was not read in time and its thread was abandoned."""

        def work(source: Source, claim: Claim) -> tuple[np.ndarray, AudioInfo]:
            where = source.input(self._src)
            return read_with_retries(where, lambda: decode(where, self._config, ffmpeg=self._ffmpeg, resample=False))

        if not self._read_timeout:
            with reading(str(source.path)):
                return work(source, no_claim)
        return next(limited(work, [source], self._read_timeout, lambda _: None))

    def _transformed(self, batch: Sequence[Decoded]) -> list[np.ndarray | None]:
        """The log-mels of a batch. A batch that is too large for the device is halved; None for a source alone."""
        try:
            return [*self._log_mel([item.waveform for item in batch], batch[0].sample_rate)]
        except OutOfMemoryError:
            pass  # the memory of the failed batch is freed with the error, so only after this block
        if len(batch) == 1:
            return [None]
        half = len(batch) // 2
        return self._transformed(batch[:half]) + self._transformed(batch[half:])

    def _store(self, item: Decoded, log_mel: np.ndarray | None, dst: Path) -> None:
        padded = resampled_length(len(item.waveform), item.sample_rate, self._config) < self._config.min_samples

        def write() -> Record:
            if log_mel is None:
                raise DecodeError(
                    "too_long",
                    f"{len(item.waveform):,} samples do not fit the memory of the GPU; convert it with --device cpu to "
                    "a folder of its own",
                    item.info,
                )
            values = as_stored(log_mel, item.info, self._config)
            return store(item.source, values, item.info, padded, dst, durable=False)

        item.record = row_of(item.source, dst, write)
        item.waveform = np.empty(0, np.float32)  # a slice would keep the samples


def _batches(decoded: Sequence[Decoded]) -> Iterator[list[Decoded]]:
    """The items with a waveform, in batches of one sample rate and of similar lengths."""
    waiting = [item for item in decoded if len(item.waveform)]
    waiting.sort(key=lambda item: (item.sample_rate, len(item.waveform)))
    batch: list[Decoded] = []
    for item in waiting:
        full = (len(batch) + 1) * len(item.waveform) > SAMPLES_PER_BATCH
        if batch and (full or batch[0].sample_rate != item.sample_rate):
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch
