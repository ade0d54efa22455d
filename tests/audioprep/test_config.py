"""The configuration: both presets, a round trip through JSON, and refusals that name the value."""

import json
from dataclasses import replace

import pytest

from m2dprep.artifacts.digests import fingerprint
from m2dprep.artifacts.errors import UserError
from m2dprep.audioprep.config import PRESETS, ConvertConfig, LogMelConfig


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_have_25_ms_windows_every_10_ms(preset: str) -> None:
    config = PRESETS[preset]
    assert config.win_length == config.n_fft == config.sample_rate // 40
    assert config.hop_length == config.sample_rate // 100
    assert (config.n_mels, config.f_min, config.f_max) == (80, 50.0, config.sample_rate / 2)
    assert config.eps == 2.0**-23


@pytest.mark.parametrize("preset", PRESETS)
def test_configuration_survives_json(preset: str) -> None:
    config = ConvertConfig(PRESETS[preset], min_seconds=0, dtype="float16")
    restored = ConvertConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert restored == config
    assert fingerprint(restored.to_dict()) == fingerprint(config.to_dict())


def test_whole_numbers_and_floats_share_a_fingerprint() -> None:
    config = PRESETS["16k"]
    same = LogMelConfig(16000, 400, 400, 160, 80, f_min=50, f_max=8000)
    assert fingerprint(ConvertConfig(config).to_dict()) == fingerprint(ConvertConfig(same).to_dict())


def test_padding_length() -> None:
    assert ConvertConfig(PRESETS["16k"]).min_samples == 97600
    assert ConvertConfig(PRESETS["32k"]).min_samples == 195200


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"hop_length": 0}, "hop_length is 0"),
        ({"n_mels": 80.0}, "n_mels is 80.0"),
        ({"sample_rate": True}, "sample_rate is True"),
        ({"win_length": 512}, "win_length 512"),
        ({"f_max": 9000.0}, "f_max 9000"),
        ({"f_min": 8000.0}, "f_min 8000"),
        ({"f_min": float("nan")}, "f_min is nan"),
        ({"eps": 0.0}, "eps is 0.0"),
    ],
)
def test_impossible_front_ends_are_refused(change: dict, named: str) -> None:
    with pytest.raises(UserError, match=named):
        replace(PRESETS["16k"], **change)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"min_seconds": -1.0}, "min_seconds is -1"),
        ({"max_seconds": 1.0}, "max_seconds 1"),
        ({"min_seconds": 0.0, "max_seconds": 0.0}, "max_seconds 0"),
        ({"dtype": "float64"}, "float64"),
        ({"resampler": "kaiser"}, "kaiser"),
    ],
)
def test_impossible_conversions_are_refused(change: dict, named: str) -> None:
    with pytest.raises(UserError, match=named):
        ConvertConfig(PRESETS["16k"], **change)


def test_unknown_and_missing_keys_are_named() -> None:
    value = ConvertConfig(PRESETS["16k"]).to_dict()
    with pytest.raises(UserError, match=r"unknown mono"):
        ConvertConfig.from_dict({**value, "mono": True})
    with pytest.raises(UserError, match=r"missing log_mel\.n_fft"):
        ConvertConfig.from_dict({"log_mel": {k: v for k, v in value["log_mel"].items() if k != "n_fft"}})
    with pytest.raises(UserError, match=r"missing log_mel"):
        ConvertConfig.from_dict({})
    with pytest.raises(UserError, match="not a table"):
        ConvertConfig.from_dict({"log_mel": "16k"})
