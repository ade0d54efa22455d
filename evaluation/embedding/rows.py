"""From sounds to the rows of a store: what a shard of sounds comes to, in this process or in a worker."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from m2dprep.artifacts.embeddings.audio_store import BOTH, CLAP, CONVENTIONAL
from m2dprep.artifacts.embeddings.audio_writer import SourceRows
from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.process import keep_memory_of_batches
from m2dprep.audioprep.decoding.sound import DecodeError
from m2dprep.evaluation.encoders import CheckpointEncoder
from m2dprep.evaluation.tagging.inputs import Item
from m2dprep.evaluation.tagging.opening import Open, open_item, opened_ahead, reading_threads
from m2dprep.evaluation.tagging.sounds import Segment, Windows
from m2dprep.m2dclap.checkpoint import Checkpoint
from m2dprep.m2dclap.encode import Encoded
from m2dprep.m2dclap.fusion.kinds import INTERPOLATED

STACKED, FLAT = "stacked", "flat"
DIGITS = 6
# Log-mels are encoded together until there are so many frames: ten seconds of 32 clips have a tenth of them.
MOST_FRAMES = 320_000
# Chunks of the model's width in a piece of a long sound.
CHUNKS_PER_PIECE = 16


@dataclass(frozen=True)
class RowSettings:
    """What the rows of a store are: ``contents`` (clap, features or both), the kind of ``features`` (stacked or flat),
    whole sounds or ``windows``, and the type they are stored as; and after how many seconds without a byte a sound is
    given up (0: never)."""

    contents: str = CLAP
    features: str = STACKED
    windows: Windows | None = None
    dtype: str = "float16"
    read_timeout: float = 0.0


@dataclass(frozen=True)
class RowRequest:
    """What a worker needs to make rows: a checkpoint, by its file and the ``digest`` that this must have, and settings;
    ``length`` and ``positions`` are those of `AudioEncoder`."""

    checkpoint: Path
    settings: RowSettings
    device: str = "auto"
    batch_size: int = 32
    length: str | None = None
    positions: str = INTERPOLATED
    digest: str = ""

    def encoder(self) -> CheckpointEncoder:
        """The model. Raises the errors of `CheckpointEncoder`."""
        return CheckpointEncoder(
            self.checkpoint,
            device=self.device,
            batch_size=self.batch_size,
            length=self.length,
            positions=self.positions,
        )


Numbered = tuple[int, Item]


def make_shard(shard: Sequence[Numbered], request: RowRequest) -> list[SourceRows]:
    """The rows of some sounds, with the model that this process keeps. Raises `UserError` if it is another one."""
    maker = _maker(request)
    if maker.encoder.digest != request.digest:
        raise UserError(f"{request.checkpoint} is not the same file for a worker: its digest differs.")
    with ThreadPoolExecutor(reading_threads()) as pool:
        opened = opened_ahead([item for _, item in shard], pool, maker.opened, 2 * reading_threads())
        try:
            return maker.rows(shard, opened)
        finally:
            opened.close()


@lru_cache(maxsize=1)
def _maker(request: RowRequest) -> RowMaker:
    keep_memory_of_batches()
    return RowMaker(request.encoder(), request.settings)


@dataclass
class _Result:
    """What a sound has come to so far."""

    number: int
    segments: Sequence[Segment] = ()
    embeddings: list[np.ndarray] = field(default_factory=list)
    features: list[np.ndarray] = field(default_factory=list)
    failure: tuple[str, str] | None = None

    def rows(self) -> SourceRows:
        if self.failure is not None or not self.segments:
            return SourceRows(self.number, failure=self.failure or ("no_samples", "it holds no samples"))
        starts = [round(one.start_seconds, DIGITS) for one in self.segments]
        seconds = [round(one.end_seconds - one.start_seconds, DIGITS) for one in self.segments]
        features = np.stack(self.features) if self.features else None
        return SourceRows(self.number, starts, seconds, np.stack(self.embeddings), features)


class RowMaker:
    """Opens sounds and encodes them. Batches do not reach across shards, so that a shard always gives the same rows."""

    def __init__(self, encoder: CheckpointEncoder, settings: RowSettings) -> None:
        """Raises `UserError` if the checkpoint has no head for captions and CLAP embeddings are wanted."""
        if settings.contents != CONVENTIONAL:
            require_captions_head(encoder.checkpoint)
        self.encoder, self._settings, self._batch_size = encoder, settings, encoder.batch_size
        self._most_frames = CHUNKS_PER_PIECE * encoder.checkpoint.config.input_size[1]
        self._waiting: list[tuple[_Result, np.ndarray]] = []
        self._frames = 0

    def opened(self, item: Item) -> Open:
        """A sound, opened; runs in a thread."""
        return open_item(item, self._settings.windows, self._most_frames, self._settings.read_timeout)

    def rows(self, shard: Sequence[Numbered], opened: Iterator[Open]) -> list[SourceRows]:
        """The rows of each sound of a shard, whose sounds come next in ``opened``."""
        results = [_Result(number) for number, _ in shard]
        for result in results:
            sound = next(opened)
            try:
                self._add(result, sound)
            finally:
                sound.close()
        self._flush()
        return [result.rows() for result in results]

    def _add(self, result: _Result, sound: Open) -> None:
        result.failure, result.segments = sound.failure, sound.segments
        if sound.failure is not None:
            return
        try:
            with closing(self._log_mels(sound)) as log_mels:
                for log_mel in log_mels:
                    self._waiting.append((result, log_mel))
                    self._frames += log_mel.shape[-1]
                    if len(self._waiting) >= self._batch_size or self._frames >= MOST_FRAMES:
                        self._flush()
        except DecodeError as error:
            result.failure = (error.reason, error.message)

    def _log_mels(self, sound: Open) -> Generator[np.ndarray, None, None]:
        """The log-mel (1, n_mels, T) of each segment; those of a long sound are made by a thread, some ahead."""
        most = self._most_frames
        made = (_joined(list(sound.pieces(number, most))) for number in range(len(sound.segments)))
        if sound.prepared is not None or sound.sound is None:
            return made
        frames = max(map(sound.sound.frames, sound.segments), default=1)
        return _ahead(made, max(1, min(2 * self._batch_size, MOST_FRAMES // max(1, frames))))

    def _flush(self) -> None:
        """Encode what waits."""
        waiting, self._waiting, self._frames = self._waiting, [], 0
        if not waiting:
            return
        encoded = self.encoder.encode_all(
            [log_mel for _, log_mel in waiting], clap=self._settings.contents != CONVENTIONAL
        )
        for (result, _), embedding, features in zip(waiting, *self._parts(encoded), strict=True):
            result.embeddings.append(embedding)
            if features is not None:
                result.features.append(features)
            if not all(np.isfinite(one).all() for one in (embedding, features) if one is not None):
                result.failure = ("nonfinite", f"what the model makes of it is not finite as {self._settings.dtype}")

    def _parts(self, encoded: Encoded) -> tuple[np.ndarray, Sequence[np.ndarray | None]]:
        """The embeddings (n, D) and the features (n, D2), or n times None, as they are stored."""
        dtype, contents = self._settings.dtype, self._settings.contents
        with np.errstate(over="ignore"):
            clap = None if encoded.clap is None else unit_rows(encoded.clap).astype(dtype)
            if clap is not None and contents != BOTH:
                return clap, [None] * len(clap)
            chosen = encoded.flat if self._settings.features == FLAT else encoded.stacked
            conventional = chosen.float().cpu().numpy().astype(dtype)
        return (conventional, [None] * len(conventional)) if clap is None else (clap, list(conventional))


def _joined(pieces: Sequence[np.ndarray]) -> np.ndarray:
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces, axis=-1)


def _ahead(values: Iterator[np.ndarray], count: int) -> Generator[np.ndarray, None, None]:
    """The values in their order; a thread makes up to ``count`` of them ahead."""
    with ThreadPoolExecutor(1) as pool:
        waiting = deque(pool.submit(next, values, None) for _ in range(count))
        try:
            while (value := waiting.popleft().result()) is not None:
                waiting.append(pool.submit(next, values, None))
                yield value
        finally:
            for future in waiting:
                future.cancel()


def unit_rows(rows: torch.Tensor) -> np.ndarray:
    """Rows (N, D) as float32 of length 1."""
    found: np.ndarray = F.normalize(rows.float(), dim=-1).cpu().numpy()
    return found


def require_captions_head(checkpoint: Checkpoint) -> None:
    """Raise `UserError` if a checkpoint has no head for captions."""
    if not checkpoint.has_clap_head:
        raise UserError(
            f"{checkpoint.path} has no head for captions ({checkpoint.layout or 'an encoder alone'}) and makes "
            'conventional features alone: --contents features, or kind="stacked" in Python.'
        )


def make_here(maker: RowMaker, shards: Sequence[Sequence[Numbered]]) -> Generator[list[SourceRows], None, None]:
    """The rows of each shard, made in this process: threads open the sounds of later ones meanwhile."""
    items = [item for shard in shards for _, item in shard]
    with ThreadPoolExecutor(reading_threads()) as pool:
        opened = opened_ahead(items, pool, maker.opened, 2 * reading_threads())
        try:
            for shard in shards:
                yield maker.rows(shard, opened)
        finally:
            opened.close()


def worker_function(request: RowRequest) -> partial[list[SourceRows]]:
    """`make_shard` for workers."""
    return partial(make_shard, request=request)
