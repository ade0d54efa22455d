"""The configuration of a conversion and its defaults: two frozen dataclasses that are stored beside the output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.settings import Range, build, check

DTYPES = ("float32", "float16")
# The resampler of `audioprep.logmel_gpu`. It identifies this whole front end, whose values are close to the CPU's.
DEVICE_RESAMPLER = "torchaudio_kaiser96"
RESAMPLERS = ("soxr_hq", "soxr_vhq", DEVICE_RESAMPLER)
FLOAT32_EPSILON = 2.0**-23


Samples = Annotated[int, Range(1, 10_000_000)]
Hertz = Annotated[float, Range(0, 5_000_000)]
Seconds = Annotated[float, Range(0, 1e9)]


@dataclass(frozen=True)
class LogMelConfig:
    """The log-mel front end: lengths in samples at ``sample_rate`` (Hz), mel range in Hz, ``eps`` added to the power.

    Raises `UserError` for values that no front end can have.
    """

    sample_rate: Samples
    n_fft: Samples
    win_length: Samples
    hop_length: Samples
    n_mels: Annotated[int, Range(1, 65536)]
    f_min: Hertz
    f_max: Hertz
    eps: Annotated[float, Range(0, 1e9, above=True)] = FLOAT32_EPSILON

    def __post_init__(self) -> None:
        check(self)
        if self.win_length > self.n_fft:
            raise UserError(f"win_length {self.win_length} is longer than n_fft {self.n_fft}.")
        if not 0 <= self.f_min < self.f_max <= self.sample_rate / 2:
            raise UserError(
                f"f_min {self.f_min:g} and f_max {self.f_max:g} must rise from 0 to half of {self.sample_rate} Hz."
            )

    def frames(self, samples: int) -> int:
        """The number of frames of a waveform of ``samples``: one at every multiple of the hop, both ends included."""
        return samples // self.hop_length + 1


# 25 ms windows every 10 ms, as M2D uses them (nttcslab/m2d).
PRESETS = {
    "16k": LogMelConfig(
        sample_rate=16000, n_fft=400, win_length=400, hop_length=160, n_mels=80, f_min=50.0, f_max=8000.0
    ),
    "32k": LogMelConfig(
        sample_rate=32000, n_fft=800, win_length=800, hop_length=320, n_mels=80, f_min=50.0, f_max=16000.0
    ),
}


@dataclass(frozen=True)
class ConvertConfig:
    """All settings that decide the bytes of a log-mel file and which sources are converted.

    Sounds shorter than ``min_seconds`` are padded with zeros to this length (6.1 s covers the model's 608 frames).
    Sounds longer than ``max_seconds`` become failures before they are decoded, because long ones take much memory.
    """

    log_mel: LogMelConfig
    min_seconds: Seconds = 6.1
    max_seconds: Seconds = 1800.0
    dtype: str = "float32"
    resampler: str = "soxr_hq"

    def __post_init__(self) -> None:
        check(self)
        if not 0 <= self.min_seconds <= self.max_seconds or self.max_seconds == 0:
            raise UserError(
                f"min_seconds {self.min_seconds:g} and max_seconds {self.max_seconds:g}: "
                "the least may be 0, the most must be above 0 and not below the least."
            )
        if self.dtype not in DTYPES:
            raise UserError(f"dtype {self.dtype!r} is not one of {', '.join(DTYPES)}.")
        if self.resampler not in RESAMPLERS:
            raise UserError(f"resampler {self.resampler!r} is not one of {', '.join(RESAMPLERS)}.")

    @property
    def min_samples(self) -> int:
        """``min_seconds`` in samples at the front end's rate."""
        return round(self.min_seconds * self.log_mel.sample_rate)

    def to_dict(self) -> dict[str, Any]:
        """The configuration as JSON values; the front end is nested under ``log_mel``."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> ConvertConfig:
        """The configuration that `to_dict` wrote. Raises `UserError`, naming them, for missing and unknown keys."""
        what = "a log-mel configuration"
        if isinstance(value, Mapping) and "log_mel" in value:
            value = {**value, "log_mel": build(LogMelConfig, value["log_mel"], what, "log_mel.")}
        return build(cls, value, what)
