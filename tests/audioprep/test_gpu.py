"""The front end on a GPU: close to the processor's, the same records and faults; clear errors where it cannot be had.

Where torchaudio can be imported everything runs on the processor as well, through the same code.
"""

import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.log_mels.array import open_lms
from m2dprep.audioprep import convert_gpu as convert_on_device
from m2dprep.audioprep.config import DEVICE_RESAMPLER, PRESETS, ConvertConfig
from m2dprep.audioprep.convert import convert_shard, log_mel_of_file
from m2dprep.audioprep.convert_gpu import DeviceConverter
from m2dprep.audioprep.decoding.sound import AudioInfo, resampler
from m2dprep.audioprep.discover import discover
from m2dprep.audioprep.logmel import LogMel
from m2dprep.audioprep.logmel_gpu import DeviceLogMel, full_float32, load_torchaudio, require_device, require_resampling
from m2dprep.audioprep.source import Source
from m2dprep.workflows.melspec.job import MelspecOptions, run_melspec
from tests.audioprep.hangs import Hangs
from tests.devices import DEVICES

pytestmark = pytest.mark.slow

GOLDEN = Path(__file__).parents[1] / "golden" / "logmel"
CONFIG = ConvertConfig(PRESETS["16k"])
DEVICE_CONFIG = ConvertConfig(PRESETS["16k"], resampler=DEVICE_RESAMPLER)
# Mean and largest difference of log-mels; the largest are in the bins at the edge of the resampler's pass band.
SAME_RATE = (2e-5, 2e-3)
RESAMPLED = (2e-3, 1.0)


def torchaudio_missing() -> str:
    try:
        load_torchaudio()
    except UserError as error:
        return str(error)
    return ""


needs_torchaudio = pytest.mark.skipif(bool(torchaudio_missing()), reason=f"torchaudio: {torchaudio_missing()[:100]}")


def test_without_torchaudio_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchaudio", None)
    with pytest.raises(UserError, match=r'needs torchaudio, .*pip install "m2dprep\[torchaudio\]"'):
        DeviceLogMel(DEVICE_CONFIG, "cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"finds no GPU here; install torchaudio beside a CUDA build"):
        require_device("cuda")
    soundfile.write(tmp_path / "a.wav", np.zeros(1000), 16000)
    with pytest.raises(UserError, match="finds no GPU here"):
        run_melspec(tmp_path, tmp_path / "x_lms", DEVICE_CONFIG, MelspecOptions(workers=0, device="cuda"))
    assert not list(tmp_path.rglob("*.npy"))


def test_the_two_front_ends_are_not_mixed(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(1000), 16000)
    for config, device in [(CONFIG, "cuda"), (DEVICE_CONFIG, "cpu")]:
        with pytest.raises(UserError, match="does not belong to --device"):
            run_melspec(tmp_path, tmp_path / "x_lms", config, MelspecOptions(workers=0, device=device))
    with pytest.raises(UserError, match="not as 'soxr_hq'"):
        DeviceLogMel(CONFIG, "cpu")


@needs_torchaudio
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.wav")), ids=lambda path: path.stem)
def test_parity_with_the_processor(tmp_path: Path, path: Path, device: str, preset: str) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / path.name).symlink_to(path)
    config = ConvertConfig(PRESETS[preset], resampler=DEVICE_RESAMPLER)
    convert = DeviceConverter(tmp_path / "src", config, device=device, threads=2)
    (record,) = convert(discover(tmp_path / "src"), dst=tmp_path / "x_lms")
    assert record["status"] == "ok", record
    expected, info, padded = log_mel_of_file(path, ConvertConfig(PRESETS[preset]))
    found = open_lms(tmp_path / "x_lms" / record["file_name"])
    assert (found.shape, found.dtype, record["padded"]) == (expected.shape, expected.dtype, padded)
    difference = np.abs(found - expected)
    mean, largest = SAME_RATE if info.sample_rate == PRESETS[preset].sample_rate else RESAMPLED
    assert difference.mean() <= mean
    assert difference.max() <= largest


def sounds_and_faults(src: Path) -> list[Source]:
    src.mkdir()
    rng = np.random.default_rng(0)
    for number, (rate, seconds, channels) in enumerate(
        [(16000, 1, 1), (44100, 2, 2), (44100, 0.001, 1), (44100, 2, 1), (8000, 7, 1), (16000, 0.001, 2)]
    ):
        soundfile.write(src / f"{number}.wav", rng.uniform(-0.5, 0.5, (round(rate * seconds), channels)), rate)
    soundfile.write(src / "silent.wav", np.zeros(44100), 44100)
    (src / "cut.wav").write_bytes((src / "1.wav").read_bytes()[:5000])
    (src / "text.wav").write_text("text")
    (src / "folder.wav").mkdir()
    return discover(src)


@needs_torchaudio
@pytest.mark.parametrize("device", DEVICES)
def test_the_records_are_those_of_the_processor(tmp_path: Path, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    src = tmp_path / "src"
    sources = sounds_and_faults(src)
    monkeypatch.setattr("m2dprep.audioprep.convert_gpu.SAMPLES_PER_BATCH", 200_000)
    monkeypatch.setattr("m2dprep.audioprep.convert_gpu.SOURCES_AT_ONCE", 7)
    found = DeviceConverter(src, DEVICE_CONFIG, device=device, threads=3)(sources, dst=tmp_path / "device_lms")
    expected = convert_shard(sources, src, tmp_path / "lms", CONFIG)
    for ours, theirs in zip(found, expected, strict=True):
        for name in theirs:
            if name in ("mean", "m2", "bin_mean", "bin_m2") and theirs[name] is not None:
                np.testing.assert_allclose(ours[name], theirs[name], rtol=0.05, atol=0.05 * (theirs["n"] or 1))
            else:
                assert ours[name] == theirs[name], (theirs["source"], name)


class ProcessorsLogMel:
    """The processor's front end in the place of the device's: what is around it then has to give the same bytes."""

    def __init__(self, config: ConvertConfig, device: str) -> None:
        self.config = config

    def __call__(self, waveforms: Sequence[np.ndarray], sample_rate: int) -> list[np.ndarray]:
        log_mels = []
        for waveform in waveforms:
            resampled = resampler(sample_rate, 16000, "HQ", True)(waveform, True)
            missing = max(0, self.config.min_samples - len(resampled))
            log_mels.append(LogMel(self.config.log_mel)(np.pad(resampled, (0, missing))))
        return log_mels


@pytest.mark.parametrize("at_once", [1, 3, 4, 128])
def test_batches_change_nothing(tmp_path: Path, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    src = tmp_path / "src"
    sources = sounds_and_faults(src)
    monkeypatch.setattr("m2dprep.audioprep.convert_gpu.DeviceLogMel", ProcessorsLogMel)
    monkeypatch.setattr("m2dprep.audioprep.convert_gpu.SAMPLES_PER_BATCH", 200_000)
    monkeypatch.setattr("m2dprep.audioprep.convert_gpu.SOURCES_AT_ONCE", at_once)
    found = DeviceConverter(src, CONFIG, device="cuda", threads=3)(sources, dst=tmp_path / "device_lms")
    assert found == convert_shard(sources, src, tmp_path / "lms", CONFIG)
    written = sorted((tmp_path / "lms").glob("*.npy"))
    assert len(written) == 7
    for path in written:
        assert path.read_bytes() == (tmp_path / "device_lms" / path.name).read_bytes()


def test_little_is_decoded_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts and what is decoded beside them are bounded in samples, however many threads there are."""
    (tmp_path / "src").mkdir()
    for number in range(12):
        soundfile.write(tmp_path / "src" / f"{number:02}.wav", np.full(10_000, 0.1), 16000)
    held: list[int] = []
    lock, waiting, original = threading.Lock(), [0], convert_on_device.decode

    def counting(*arguments: Any, **options: Any) -> Any:
        with lock:
            waiting[0] += 1
            held.append(waiting[0])
        return original(*arguments, **options)

    class SlowLogMel(ProcessorsLogMel):
        def __call__(self, waveforms: Sequence[np.ndarray], sample_rate: int) -> list[np.ndarray]:
            time.sleep(0.05)
            with lock:
                waiting[0] -= len(waveforms)
            return super().__call__(waveforms, sample_rate)

    monkeypatch.setattr(convert_on_device, "DeviceLogMel", SlowLogMel)
    monkeypatch.setattr(convert_on_device, "decode", counting)
    monkeypatch.setattr(convert_on_device, "SAMPLES_AT_ONCE", 15_000)  # a part of two, and two beside it
    convert = DeviceConverter(tmp_path / "src", CONFIG, device="cuda", threads=2)
    records = convert(discover(tmp_path / "src"), dst=tmp_path / "x_lms")
    assert [record["status"] for record in records] == ["ok"] * 12
    assert max(held) <= 2 + 2 + 2  # a part at work, a part beside it, and one a thread
    monkeypatch.setattr(SlowLogMel, "__call__", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        convert(discover(tmp_path / "src"), dst=tmp_path / "x_lms")  # and does not hang


@pytest.mark.parametrize(("hanging", "threads"), [(["1.wav"], 1), (["0.wav", "4.wav", "silent.wav"], 2)])
def test_sources_that_hang_are_rows_as_on_the_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hanging: list[str], threads: int
) -> None:
    """The threads that they hang in are left behind, and write nothing when they wake."""
    src = tmp_path / "src"
    sources = sounds_and_faults(src)
    expected = convert_shard(sources, src, tmp_path / "lms", CONFIG)
    original, hangs = convert_on_device.decode, Hangs(monkeypatch)

    def decode(where: Any, *arguments: Any, **options: Any) -> Any:
        if where.path.name in hanging:
            hangs.hang()
        return original(where, *arguments, **options)

    monkeypatch.setattr(convert_on_device, "DeviceLogMel", ProcessorsLogMel)
    monkeypatch.setattr(convert_on_device, "decode", decode)
    convert = DeviceConverter(src, CONFIG, device="cuda", threads=threads, read_timeout=2)
    found = convert(sources, dst=tmp_path / "device_lms")
    late = [record for record in found if record["reason"] == "read_timeout"]
    assert [record["source"] for record in late] == hanging
    assert {record["message"] for record in late} == {"reading it gave nothing for 2 s"}
    assert [one for one in found if one not in late] == [one for one in expected if one["source"] not in hanging]
    hangs.wake_and_wait()
    assert not any((tmp_path / "device_lms" / Path(name).with_suffix(".npy")).exists() for name in hanging)
    again = DeviceConverter(src, CONFIG, device="cuda", threads=threads, read_timeout=2)
    assert again(sources, dst=tmp_path / "device_lms") == expected


def test_a_batch_that_does_not_fit_the_device_is_halved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    src = tmp_path / "src"
    sources = sounds_and_faults(src)
    expected = convert_shard(sources, src, tmp_path / "lms", CONFIG)

    class SmallDevice(ProcessorsLogMel):
        def __call__(self, waveforms: Sequence[np.ndarray], sample_rate: int) -> list[np.ndarray]:
            if len(waveforms) > 1 or len(waveforms[0]) > 60_000:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().__call__(waveforms, sample_rate)

    monkeypatch.setattr(convert_on_device, "DeviceLogMel", SmallDevice)
    (tmp_path / "device_lms").mkdir()
    (tmp_path / "device_lms/1.npy").write_bytes(b"of an earlier run")
    found = DeviceConverter(src, CONFIG, device="cuda", threads=3)(sources, dst=tmp_path / "device_lms")
    too_long = {record["source"]: record["message"] for record in found if record["reason"] == "too_long"}
    assert sorted(too_long) == ["1.wav", "3.wav"], "two seconds of 44.1 kHz"
    assert too_long["1.wav"].startswith("88,200 samples do not fit the memory of the GPU; convert it with --device cpu")
    assert not (tmp_path / "device_lms/1.npy").exists()
    others = [record for record in found if record["source"] not in too_long]
    assert others == [record for record in expected if record["source"] not in too_long]


def test_rates_without_a_simple_ratio_are_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for rate in (8000, 11025, 12000, 22050, 24000, 37800, 44100, 48000, 88200, 96000, 176400, 192000):
        for preset in PRESETS.values():
            require_resampling(AudioInfo(sample_rate=rate), ConvertConfig(preset))
    (tmp_path / "src").mkdir()
    for rate in (16000, 11127):
        soundfile.write(tmp_path / "src" / f"{rate}.wav", np.full(20_000, 0.1), rate)
    monkeypatch.setattr(convert_on_device, "DeviceLogMel", ProcessorsLogMel)
    convert = DeviceConverter(tmp_path / "src", CONFIG, device="cuda", threads=2)
    odd, plain = convert(discover(tmp_path / "src"), dst=tmp_path / "x_lms")
    assert (odd["reason"], odd["sample_rate"], plain["status"]) == ("bad_rate", 11127, "ok")
    assert "181,264,000 filter values" in odd["message"]
    assert "--device cpu" in odd["message"]


def test_products_are_not_rounded_to_tf32() -> None:
    """The resampler is a convolution, and cuDNN's convolutions round their factors to 10 bits unless told not to."""

    def settings() -> tuple[str, str]:
        return torch.backends.cudnn.conv.fp32_precision, torch.get_float32_matmul_precision()

    before = settings()
    with full_float32():
        assert settings() == ("ieee", "highest")
    with pytest.raises(ZeroDivisionError), full_float32():
        raise ZeroDivisionError
    assert settings() == before
    assert torch.backends.cudnn.allow_tf32 == (before[0] == "tf32")


@needs_torchaudio
def test_the_front_end_computes_in_full_float32_and_keeps_few_resamplers(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[tuple[str, str]] = set()
    convolve = torch.nn.functional.conv1d

    def recording(*arguments: Any, **options: Any) -> torch.Tensor:
        seen.add((torch.backends.cudnn.conv.fp32_precision, torch.get_float32_matmul_precision()))
        return convolve(*arguments, **options)

    monkeypatch.setattr(torch.nn.functional, "conv1d", recording)
    monkeypatch.setattr("m2dprep.audioprep.logmel_gpu.RESAMPLERS_KEPT", 2)
    front_end = DeviceLogMel(DEVICE_CONFIG, "cpu")
    for rate in (8000, 32000, 48000, 8000):
        front_end([np.ones(4000, np.float32)], rate)
    assert seen == {("ieee", "highest")}
    assert list(front_end._resamplers) == [48000, 8000]


@needs_torchaudio
@pytest.mark.parametrize("device", DEVICES)
def test_neighbours_in_a_batch_change_nothing(device: str) -> None:
    rng = np.random.default_rng(1)
    waveforms = [rng.standard_normal(count).astype(np.float32) for count in (3, 900, 44100, 44100, 50000)]
    front_end = DeviceLogMel(ConvertConfig(PRESETS["16k"], min_seconds=0.0, resampler=DEVICE_RESAMPLER), device)
    together = front_end(waveforms, 44100)
    for waveform, log_mel in zip(waveforms, together, strict=True):
        np.testing.assert_allclose(log_mel, front_end([waveform], 44100)[0], atol=2e-3)


@needs_torchaudio
def test_a_run_resumes_and_its_configuration_is_another(tmp_path: Path) -> None:
    src, dst = tmp_path / "src", tmp_path / "x_lms"
    src.mkdir()
    for number in range(3):
        soundfile.write(src / f"{number}.wav", np.random.default_rng(number).uniform(-0.5, 0.5, 8000), 8000)
    on_device = MelspecOptions(workers=2, device="cpu:0")  # not "cpu": the device's code, on the processor
    assert run_melspec(src, dst, DEVICE_CONFIG, on_device).done == 3
    (dst / "1.npy").unlink()
    again = run_melspec(src, dst, DEVICE_CONFIG, on_device)
    assert (again.done, again.skipped) == (1, 2)
    with pytest.raises(UserError, match="resampler: 'torchaudio_kaiser96' → 'soxr_hq'"):
        run_melspec(src, dst, CONFIG, MelspecOptions(workers=0))
