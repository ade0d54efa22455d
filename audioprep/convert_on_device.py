"""A shard converted on a GPU: decoded by threads, resampled and transformed in batches, written by threads.

While one part of the shard is on the device and being written, the next one is decoded.

The records, the files and what happens to faults are those of `audioprep.convert`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from artifacts.disk_sync import sync_files
from artifacts.errors import UserError
from artifacts.lms_array import OK
from audioprep.config import ConvertConfig
from audioprep.convert import Record, as_stored, failure_record, row_of, store
from audioprep.decode import AudioInfo, decode
from audioprep.discover import Source
from audioprep.gpu import DeviceLogMel, resampled_length

# Samples of a batch at the sources' rate: 64 clips of 10 s at 48 kHz, about 1 GB on the device.
SAMPLES_PER_BATCH = 32 << 20
# Sources that are decoded before the first of them is transformed; as many again are decoded meanwhile.
SOURCES_AT_ONCE = 128


@dataclass
class Decoded:
    """A source on its way: ``waveform`` (n,) at its own rate, empty where the ``record`` is that of a failure."""

    source: Source
    info: AudioInfo = field(default_factory=AudioInfo)
    waveform: np.ndarray = field(default_factory=lambda: np.empty(0, np.float32))
    record: Record | None = None

    @property
    def sample_rate(self) -> int:
        return self.info.sample_rate or 0


class DeviceConverter:
    """What `convert_shard` is to the processor: a list of sources in, one record each out, in order."""

    def __init__(self, src: Path, config: ConvertConfig, *, device: str, threads: int, ffmpeg: bool = False) -> None:
        """Raises `UserError` where ``device`` or torchaudio is not there."""
        self._src, self._config, self._ffmpeg = src, config, ffmpeg
        self._log_mel = DeviceLogMel(config, device)
        self._threads = max(1, threads)

    def __call__(self, sources: Sequence[Source], *, dst: Path) -> list[Record]:
        """Convert ``sources`` to arrays below ``dst``, safe on disk when this returns. Raises as `convert_shard`."""
        records: list[Record] = []
        with ThreadPoolExecutor(self._threads) as pool:
            for decoded in self._decoded(sources, dst, pool):
                for batch in _batches(decoded):
                    log_mels = self._log_mel([item.waveform for item in batch], batch[0].sample_rate)
                    list(pool.map(lambda item, log_mel: self._store(item, log_mel, dst), batch, log_mels))
                records += [item.record for item in decoded if item.record is not None]
        sync_files(dst, [dst / record["file_name"] for record in records if record["status"] == OK])
        return records

    def _decoded(self, sources: Sequence[Source], dst: Path, pool: Executor) -> Iterator[list[Decoded]]:
        """The sources in parts, decoded, in order; the next part is begun before one is given out."""
        begun: deque[list[Future[Decoded]]] = deque()
        for start in range(0, len(sources), SOURCES_AT_ONCE):
            part = sources[start : start + SOURCES_AT_ONCE]
            begun.append([pool.submit(self._decode, source, dst) for source in part])
            if len(begun) > 1:
                yield [future.result() for future in begun.popleft()]
        while begun:
            yield [future.result() for future in begun.popleft()]

    def _decode(self, source: Source, dst: Path) -> Decoded:
        found = Decoded(source)
        if source.reason:
            found.record = failure_record(source, source.reason, source.message)
            return found

        def read() -> Record:
            found.waveform, found.info = decode(source.path, self._config, ffmpeg=self._ffmpeg, resample=False)
            return {}

        found.record = row_of(source.relative, dst, read) or None
        if found.record and found.record["reason"] in ("not_found", "io_error") and not self._src.is_dir():
            raise UserError(f"{self._src}: the folder has gone while its files were being converted.")
        return found

    def _store(self, item: Decoded, log_mel: np.ndarray, dst: Path) -> None:
        padded = resampled_length(len(item.waveform), item.sample_rate, self._config) < self._config.min_samples

        def write() -> Record:
            values = as_stored(log_mel, item.info, self._config)
            return store(item.source.relative, values, item.info, padded, dst, durable=False)

        item.record = row_of(item.source.relative, dst, write)
        item.waveform = item.waveform[:0]


def _batches(decoded: Sequence[Decoded]) -> Iterator[list[Decoded]]:
    """The items with a waveform, in batches of one sample rate and of lengths as equal as can be."""
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
