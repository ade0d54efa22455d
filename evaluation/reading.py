"""Reads the clips of a task as the protocol wants them: cut or padded to a length, whole, or as 16-bit files were."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import soundfile

from m2dprep.artifacts.errors import Failure, UserError
from m2dprep.artifacts.log_mels.array import read_lms
from m2dprep.artifacts.log_mels.first_reads import recorded_digests
from m2dprep.audioprep.config import ConvertConfig, LogMelConfig
from m2dprep.audioprep.convert import front_end, log_mel_of_file
from m2dprep.audioprep.decode import decode
from m2dprep.audioprep.decoding.sound import DecodeError
from m2dprep.audioprep.retries import read_with_retries
from m2dprep.audioprep.source import Input
from m2dprep.evaluation.front_ends import require_front_end

# One frame of a log-mel, and four hours.
MIN_SECONDS, MAX_SECONDS = 0.01, 4 * 3600.0


@dataclass(frozen=True)
class Crop:
    """How long clips are made: ``seconds`` (None: as they are), and where longer ones are cut, ``start`` or ``random``.

    Shorter ones get zeros at their end. A random start depends on the seed and the file's name alone; EVAR draws one in
    the order of its loader. ``sixteen_bit`` passes the resampled sound through the kind of file that EVAR stores it in:
    16-bit wav, or Ogg Vorbis for what is Ogg.
    """

    seconds: float | None = None
    where: Literal["start", "random"] = "start"
    seed: int = 42
    sixteen_bit: bool = False

    def __post_init__(self) -> None:
        if self.seconds is not None and not MIN_SECONDS <= self.seconds <= MAX_SECONDS:
            raise UserError(f"clips of {self.seconds:g} s; a length is {MIN_SECONDS:g} to {MAX_SECONDS:,g} s.")

    def samples(self, rate: int) -> int | None:
        """The length in samples, rounded down as in EVAR."""
        return None if self.seconds is None else int(rate * self.seconds)

    def start(self, length: int, wanted: int, name: str) -> int:
        """The first sample of a sound of ``length`` that is longer than ``wanted``."""
        if self.where == "start":
            return 0
        digest = hashlib.blake2b(f"{self.seed}/{name}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little") % (length - wanted)


class Clip(NamedTuple):
    """What was read, and whether the file was longer than the crop."""

    values: np.ndarray
    longer: bool


class ClipLoader:
    """Reads a clip as a waveform (n,) of the front end's rate, or as its log-mel (1, n_mels, T); thread-safe.

    Log-mel ``.npy`` files are cut and padded in frames, with the value of silence.
    """

    def __init__(self, log_mel: LogMelConfig, crop: Crop, *, waveforms: bool = False) -> None:
        self._crop, self._waveforms = crop, waveforms
        self._config = ConvertConfig(log_mel, min_seconds=0.0, max_seconds=MAX_SECONDS)
        self._digests: dict[Path, np.ndarray] = {}

    @property
    def log_mel(self) -> LogMelConfig:
        """The front end; of a reader of waveforms, only its rate counts."""
        return self._config.log_mel

    def remember_records(self, paths: Iterable[Path]) -> None:
        """Compare those log-mels of ``paths`` that a conversion has recorded with their digests when they are read.

        Raises `UserError` if the records cannot be read, or are of another front end than this one.
        """
        arrays = [path for path in paths if _is_array(path)]
        if not self._waveforms:  # which reads no log-mels
            require_front_end({path.parent for path in arrays}, self.log_mel)
        self._digests = recorded_digests(arrays)

    def __call__(self, path: Path, name: str) -> Clip | Failure:
        """The clip, or the reason why it cannot be read; ``name`` is its name in the table."""
        try:
            clip = self._stored(path, name) if _is_array(path) else self._sound(path, name)
        except DecodeError as error:
            return Failure(name, error.reason, error.message)
        except UserError as error:
            return Failure(name, "not_a_log_mel", str(error))
        if clip is None:
            return Failure(name, "damaged", "it is damaged, or was replaced: its digest is not that of its record")
        if not np.isfinite(clip.values).all():
            return Failure(name, "nonfinite", "not all its values are finite numbers")
        return clip

    def _sound(self, path: Path, name: str) -> Clip:
        config = self._config.log_mel
        wanted = self._crop.samples(config.sample_rate)
        if wanted is None and not self._waveforms and not self._crop.sixteen_bit:
            return Clip(read_with_retries(Input(path), lambda: log_mel_of_file(path, self._config))[0], False)
        waveform, _ = read_with_retries(Input(path), lambda: decode(path, self._config))
        if self._crop.sixteen_bit:
            waveform = through_file(waveform, config.sample_rate, path.suffix)
        longer = wanted is not None and len(waveform) > wanted
        if wanted is not None:
            waveform = self._cut(waveform, wanted, name, 0.0)
        return Clip(waveform if self._waveforms else front_end(config)(waveform), longer)

    def _stored(self, path: Path, name: str) -> Clip | None:
        """None if the file is not what its record says."""
        config = self._config.log_mel
        if self._waveforms:
            raise UserError(f"{path} is a log-mel; this model needs the sound itself.")
        found = read_lms(path, n_mels=config.n_mels)
        if path in self._digests and int(found.digest, 16) not in self._digests[path]:
            return None
        log_mel = np.asarray(found.array, np.float32)
        samples = self._crop.samples(config.sample_rate)
        if samples is None:
            return Clip(log_mel, False)
        wanted = config.frames(samples)
        longer = log_mel.shape[-1] > wanted
        return Clip(self._cut(log_mel, wanted, name, float(np.log(config.eps))), longer)

    def _cut(self, values: np.ndarray, wanted: int, name: str, silence: float) -> np.ndarray:
        length = values.shape[-1]
        if length > wanted:
            start = self._crop.start(length, wanted, name)
            return values[..., start : start + wanted]
        return np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, wanted - length)], constant_values=silence)


def _is_array(path: Path) -> bool:
    return path.suffix.lower() == ".npy"


def through_file(waveform: np.ndarray, rate: int, suffix: str) -> np.ndarray:
    """A waveform written and read again as libsndfile does it: 16-bit wav, or Ogg Vorbis if ``suffix`` is ``.ogg``."""
    file = io.BytesIO()
    kind = "OGG" if suffix.lower() in (".ogg", ".oga") else "WAV"
    soundfile.write(file, waveform, rate, format=kind, subtype="VORBIS" if kind == "OGG" else "PCM_16")
    file.seek(0)
    found: np.ndarray = soundfile.read(file, dtype="float32")[0]
    return found
