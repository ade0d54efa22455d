"""Clips of any length have the embeddings that the original's portable encoder gives them, of 2024 and of 2025."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from m2dprep.audioprep.config import PRESETS
from m2dprep.audioprep.logmel import LogMel
from m2dprep.m2dclap import checkpoint
from m2dprep.m2dclap.checkpoint import Checkpoint
from m2dprep.m2dclap.encode import AudioEncoder, Encoded

pytestmark = pytest.mark.slow

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "evar_encode.npz")
SECONDS = ("0.5", "2.5", "4.0", "6.1", "7.6358", "10.0", "30.0")
TOLERANCE = 2e-5


def noise(name: str, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)


def weights_of(model: str) -> dict[str, torch.Tensor]:
    """The weights that the file describes by a formula."""
    found = {}
    shapes = json.loads(str(GOLDEN[f"{model}/param_shapes"]))
    for name, shape in shapes.items():
        z = noise(name, tuple(shape))
        last = name.rpartition(".")[2]
        if last in ("pos_embed", "cls_token", "sem_token"):
            value = 0.2 * z
        elif len(shape) == 1 and last == "weight":
            value = 1 + 0.02 * z
        else:
            value = 0.02 * z
        found[name] = torch.from_numpy(value.astype(np.float32))
    found["norm_stats"] = torch.from_numpy(GOLDEN[f"{model}/norm_stats"].astype(np.float32))
    sums = [float(found[name].double().sum()) for name in sorted(found)]
    assert sums == pytest.approx(GOLDEN[f"{model}/checksums"].tolist(), abs=1e-3), "the formula is understood"
    return found


@pytest.fixture(scope="module", params=["m608", "m1001"])
def encoder(request: pytest.FixtureRequest) -> tuple[str, AudioEncoder]:
    """The model in the layout of its year, as if its file of 350 MB had been read."""
    weights = weights_of(request.param)
    if request.param == "m1001":
        weights = {f"backbone.{key}": value for key, value in weights.items()}
    path = Path(str(GOLDEN[f"{request.param}/folder"])) / "checkpoint-300.pth"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "read_file", lambda _: {"model": weights})
        read = Checkpoint.read(path)
    return request.param, AudioEncoder(read.load_audio_model(torch.device("cpu")), read.norm_stats)


def log_mel(seconds: str) -> np.ndarray:
    k = SECONDS.index(seconds)
    frames = int(16000 * float(seconds)) // 160 + 1
    f, t = np.arange(80)[:, None], np.arange(frames)[None]
    value = -7 + 3 * np.sin(2 * np.pi * (f / 23 + t / (31 + k))) * np.cos(t / 97) - f / 20
    return (value + 1.5 * noise(f"lms{seconds}", (80, frames))).astype(np.float32)[None]


def waveform(seconds: str) -> np.ndarray:
    k, n = SECONDS.index(seconds), int(16000 * float(seconds))
    t = np.arange(n) / 16000
    value = 0.2 * np.sin(2 * np.pi * (220 + 40 * k) * t) * (1 + np.sin(6 * np.pi * t)) / 2
    value += 0.1 * np.sin(2 * np.pi * (500 * t + 300 * t**2)) + 0.02 * noise(f"wav{seconds}", (n,))
    return value.astype(np.float32)


def furthest(found: torch.Tensor, expected: np.ndarray) -> float:
    return float(np.abs(found.numpy() - expected).max())


def test_log_mels_of_seven_lengths(encoder: tuple[str, AudioEncoder]) -> None:
    """The longest, in three pieces, with the wider model alone: the other one has two pieces of 10 s already."""
    name, model = encoder
    of = SECONDS if name == "m1001" else SECONDS[:-1]
    clips = [log_mel(seconds) for seconds in of]
    for clip, seconds in zip(clips, of, strict=True):
        probe = clip[0][[0, 17, 79], -1]
        assert probe == pytest.approx(GOLDEN[f"{name}/lms/{seconds}/input_probe"], abs=1e-5)
    together = model.encode(clips)
    assert together.clap is not None
    for row, seconds in enumerate(of):
        place = f"{name}/lms/{seconds}"
        assert furthest(together.stacked[row], GOLDEN[f"{place}/clip3840"]) <= TOLERANCE
        assert furthest(together.flat[row], GOLDEN[f"{place}/flat768"]) <= TOLERANCE
        assert furthest(together.clap[row], GOLDEN[f"{place}/clap768"]) <= TOLERANCE


def test_a_clip_alone_is_what_it_is_among_others(encoder: tuple[str, AudioEncoder]) -> None:
    name, model = encoder
    seconds = "7.6358" if name == "m608" else "0.5"
    alone: Encoded = model.encode([log_mel(seconds)])
    assert furthest(alone.stacked[0], GOLDEN[f"{name}/lms/{seconds}/clip3840"]) <= TOLERANCE


def test_waveforms_of_several_lengths(encoder: tuple[str, AudioEncoder]) -> None:
    name, model = encoder
    front_end = LogMel(PRESETS["16k"])
    of = [seconds for seconds in SECONDS[:-1] if f"{name}/wav/{seconds}/scene3840" in GOLDEN.files]
    assert len(of) >= 3
    clips = [front_end(waveform(seconds)) for seconds in of]
    found = model.encode(clips)
    assert found.clap is not None
    for row, (clip, seconds) in enumerate(zip(clips, of, strict=True)):
        place = f"{name}/wav/{seconds}"
        if f"{place}/logmel_every25" in GOLDEN.files:
            assert clip[0][:, ::25] == pytest.approx(np.squeeze(GOLDEN[f"{place}/logmel_every25"]), abs=1e-3)
        assert furthest(found.stacked[row], GOLDEN[f"{place}/scene3840"]) <= TOLERANCE
        assert furthest(found.clap[row], GOLDEN[f"{place}/clap768"]) <= TOLERANCE
