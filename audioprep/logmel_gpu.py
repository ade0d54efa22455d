"""The log-mel front end on a GPU: torchaudio's resampler and mel spectrogram, in batches.

Its values are close to those of `audioprep.logmel` but not equal, because the resampler and the order of sums differ.
The configuration (`ConvertConfig.resampler`) therefore says which of the two made a folder.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from m2dprep.artifacts.errors import UserError
from m2dprep.audioprep.config import DEVICE_RESAMPLER, ConvertConfig
from m2dprep.audioprep.decoding.sound import AudioInfo, DecodeError

# Raised for a batch that is too large for the device's memory.
OutOfMemoryError = torch.OutOfMemoryError

INSTALL = (
    'install torchaudio beside a CUDA build of torch of the same release (pip install "m2dprep[torchaudio]", with the '
    "index of wheels that https://pytorch.org/get-started names for your CUDA), or leave --device at cpu"
)
# The windowed sinc that `DEVICE_RESAMPLER` names: its log-mels are the closest to those of soxr's HQ (docs/melspec.md).
RESAMPLING_WIDTH, ROLLOFF = 96, 0.957
RESAMPLING = {
    "lowpass_filter_width": RESAMPLING_WIDTH,
    "rolloff": ROLLOFF,
    "resampling_method": "sinc_interp_kaiser",
    "beta": 14.0,
}
# The resampler keeps all its filters, one per phase: gigabytes for rates with a small common divisor (11,127 to
# 16,000 Hz: 181 million values). 44.1 and 48 kHz and their fractions need fewer than half a million values.
MAX_FILTER_VALUES = 1 << 22
RESAMPLERS_KEPT = 16


def load_torchaudio() -> Any:
    """The package torchaudio. Raises `UserError`, which says what to install, if it cannot be imported."""
    try:
        import torchaudio
    except (ImportError, OSError, RuntimeError) as error:  # its extension does not load with another build of torch
        raise UserError(f"--device cuda needs torchaudio, which cannot be used ({error}); {INSTALL}.") from error
    return torchaudio


def require_device(device: str) -> torch.device:
    """``device`` as a torch device. Raises `UserError` if this machine or this build of torch has none."""
    wanted = torch.device(device)
    if wanted.type == "cuda" and not torch.cuda.is_available():
        built = f"torch {torch.__version__} finds no GPU here"
        raise UserError(f"--device {device}: {built}; {INSTALL}.")
    load_torchaudio()
    return wanted


def resampled_length(samples: int, sample_rate: int, config: ConvertConfig) -> int:
    """The number of samples at the front end's rate that result from ``samples`` at ``sample_rate``."""
    return -(-samples * config.log_mel.sample_rate // sample_rate)


def require_resampling(info: AudioInfo, config: ConvertConfig) -> None:
    """Raise `DecodeError` if resampling from the rate of ``info`` takes more than `MAX_FILTER_VALUES` values."""
    sample_rate, rate_out = info.sample_rate or 0, config.log_mel.sample_rate
    divisor = math.gcd(sample_rate, rate_out)
    width = math.ceil(RESAMPLING_WIDTH * sample_rate / (min(sample_rate, rate_out) * ROLLOFF))
    values = rate_out // divisor * (2 * width + sample_rate // divisor)
    if sample_rate != rate_out and values > MAX_FILTER_VALUES:
        raise DecodeError(
            "bad_rate",
            f"{sample_rate} Hz is too far from a simple ratio to {rate_out} Hz for --device cuda ({values:,} filter "
            "values); convert it with --device cpu to a folder of its own",
            info,
        )


@contextmanager
def full_float32() -> Iterator[None]:
    """Compute products in full float32: TF32, cuDNN's default for convolutions, keeps 10 bits of a factor's mantissa.

    This holds for the whole process during the block; the earlier settings are then restored.
    """
    convolutions, matmul = _convolutions(), torch.get_float32_matmul_precision()
    owner, name, off = convolutions
    before = getattr(owner, name)
    setattr(owner, name, off)
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        setattr(owner, name, before)
        torch.set_float32_matmul_precision(matmul)


def _convolutions() -> tuple[Any, str, str | bool]:
    """The object, the attribute and the value that switch off TF32 in convolutions. From torch 2.9 on the old name is
    deprecated, and must not be mixed with the new one."""
    cudnn: Any = torch.backends.cudnn
    return (cudnn.conv, "fp32_precision", "ieee") if hasattr(cudnn, "conv") else (cudnn, "allow_tf32", False)


class DeviceLogMel:
    """Maps waveforms at their own sample rates to log-mels, in batches of equal rate, on ``device``."""

    def __init__(self, config: ConvertConfig, device: str) -> None:
        if config.resampler != DEVICE_RESAMPLER:
            raise UserError(f"--device {device} resamples as {DEVICE_RESAMPLER!r}, not as {config.resampler!r}.")
        self.config = config
        self._device = require_device(device)
        self._torchaudio = load_torchaudio()
        self._resamplers: dict[int, torch.nn.Module] = {}
        front_end = config.log_mel
        self._mel = self._torchaudio.transforms.MelSpectrogram(
            sample_rate=front_end.sample_rate,
            n_fft=front_end.n_fft,
            win_length=front_end.win_length,
            hop_length=front_end.hop_length,
            f_min=front_end.f_min,
            f_max=front_end.f_max,
            n_mels=front_end.n_mels,
            power=2.0,
            norm="slaney",
            mel_scale="slaney",
        ).to(self._device)

    @torch.inference_mode()
    @full_float32()
    def __call__(self, waveforms: Sequence[np.ndarray], sample_rate: int) -> list[np.ndarray]:
        """``waveforms``, each float32 (n_i,) at ``sample_rate`` → float32 (1, n_mels, T_i) each.

        Each result depends only on its own waveform, which is padded with zeros to the minimum length and reflected at
        its own ends. Raises `OutOfMemoryError` if the batch is too large for the device.
        """
        batch = torch.zeros(len(waveforms), max(map(len, waveforms)))
        for row, waveform in zip(batch, waveforms, strict=True):
            row[: len(waveform)] = torch.from_numpy(waveform)
        resampled = self._resample(batch.to(self._device, non_blocking=True), sample_rate)
        lengths = [resampled_length(len(waveform), sample_rate, self.config) for waveform in waveforms]
        results: list[np.ndarray] = []
        start = 0
        while start < len(lengths):  # only equal lengths can share a transform, because the ends are reflected
            stop = next((i for i in range(start, len(lengths)) if lengths[i] != lengths[start]), len(lengths))
            results += self._log_mels(resampled[start:stop, : lengths[start]])
            start = stop
        return results

    def _resample(self, batch: torch.Tensor, rate_in: int) -> torch.Tensor:
        """(B, n) at ``rate_in`` → (B, ceil(n · rate out / rate in))."""
        rate_out = self.config.log_mel.sample_rate
        if rate_in == rate_out:
            return batch
        if rate_in not in self._resamplers:
            if len(self._resamplers) == RESAMPLERS_KEPT:
                del self._resamplers[next(iter(self._resamplers))]
            resampler = self._torchaudio.transforms.Resample(rate_in, rate_out, **RESAMPLING)
            self._resamplers[rate_in] = resampler.to(self._device)
        resampled: torch.Tensor = self._resamplers[rate_in](batch)
        return resampled

    def _log_mels(self, waveforms: torch.Tensor) -> list[np.ndarray]:
        """(B, n) at the front end's rate → B arrays (1, n_mels, T)."""
        missing = max(self.config.min_samples - waveforms.shape[1], 0)
        # torch cannot reflect more samples than there are; numpy repeats the reflection for shorter waveforms.
        waveforms = torch.nn.functional.pad(waveforms, (0, missing))
        if waveforms.shape[1] <= self.config.log_mel.n_fft // 2:
            half = self.config.log_mel.n_fft // 2
            padded = np.pad(waveforms.cpu().numpy(), ((0, 0), (half, half)), mode="reflect")
            power = self._uncentred(torch.from_numpy(padded).to(self._device))
        else:
            power = self._mel(waveforms)
        log_mels = torch.log(power + self.config.log_mel.eps).cpu().numpy()
        return [log_mel[None] for log_mel in log_mels]

    def _uncentred(self, padded: torch.Tensor) -> torch.Tensor:
        """The mel power of waveforms whose ends are reflected already."""
        spectrogram = self._mel.spectrogram
        spectrogram.center = False
        try:
            power: torch.Tensor = self._mel(padded)
        finally:
            spectrogram.center = True
        return power
