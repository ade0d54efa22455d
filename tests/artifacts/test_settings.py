"""Every key of every dataclass of settings refuses what it cannot be: wrong types, not finite, out of range."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any

import pytest

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.settings import Range, build, kinds_of, typed
from m2dprep.audioprep.config import PRESETS, ConvertConfig, LogMelConfig
from m2dprep.m2dclap.config import ModelConfig
from m2dprep.training.config import RunOptions, SavePlan, TrainConfig, ValidationOptions

SETTINGS: list[Any] = [ModelConfig(), TrainConfig(), PRESETS["16k"], ConvertConfig(PRESETS["16k"])]
SETTINGS += [RunOptions("tiny"), SavePlan(every_steps=3, every_minutes=1.0), ValidationOptions()]
KEYS = [(settings, field.name) for settings in SETTINGS for field in fields(settings)]
NOT_FINITE = [math.nan, math.inf, -math.inf]
NEVER = ["192", "1e-6", "0.9, 0.95", "", None, [], {}, [1], [1, 2, 3], ["a", "b"], 10**400, -(10**9), 1e300, object()]


@pytest.mark.parametrize(("settings", "key"), KEYS, ids=[f"{type(one).__name__}.{key}" for one, key in KEYS])
def test_every_key_refuses_what_it_cannot_be(settings: Any, key: str) -> None:
    own = getattr(settings, key)
    for value in [*NEVER, *NOT_FINITE, not isinstance(own, bool), [math.nan, 0.5], [True, True], [0.5, "0.9"]]:
        if isinstance(own, str) and isinstance(value, str):
            continue
        if isinstance(own, bool) and isinstance(value, bool):
            continue
        if own is None or (value is None and key in ("every_steps", "every_minutes")):  # it may be left out
            continue
        with pytest.raises(UserError, match=key):
            replace(settings, **{key: value})


@pytest.mark.parametrize(("settings", "key"), KEYS, ids=[f"{type(one).__name__}.{key}" for one, key in KEYS])
def test_whole_numbers_are_no_others(settings: Any, key: str) -> None:
    own = getattr(settings, key)
    if isinstance(own, int) and not isinstance(own, bool):
        for value in (1.5, 3.0, float(own), True):
            with pytest.raises(UserError, match=f"{key} is .*a whole number"):
                replace(settings, **{key: value})


def test_a_text_for_a_number_is_told_how_to_write_it() -> None:
    with pytest.raises(
        UserError, match=r"embed_dim is '192'; it must be a whole number .*write numbers without quotes"
    ):
        ModelConfig(embed_dim="192")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"betas is '0\.9, 0\.95'; it must be a list of 2 numbers"):
        TrainConfig(betas="0.9, 0.95")  # type: ignore[arg-type]


def test_what_is_right_is_taken() -> None:
    assert TrainConfig(betas=[0, 0.5], blr=1).betas == (0.0, 0.5)  # type: ignore[arg-type]
    assert isinstance(TrainConfig(blr=1).blr, float)
    assert typed(int | None, None, "jobs") is None
    assert typed(tuple[str, ...], ["a", "b"], "lines") == ("a", "b")
    assert str(Range(0, 1, above=True)) == "above 0 to 1"
    assert str(Range(0, 1, below=True)) == "from 0 and below 1"


def test_tables_from_files_name_what_they_are() -> None:
    with pytest.raises(UserError, match=r"the front end has other keys: unknown x; missing eps|missing sample_rate"):
        build(LogMelConfig, {"x": 1}, "the front end")
    with pytest.raises(UserError, match="the front end is 3, not a table"):
        build(LogMelConfig, 3, "the front end")
    values = {field.name: getattr(PRESETS["16k"], field.name) for field in fields(LogMelConfig)}
    with pytest.raises(UserError, match="the front end: n_mels is 'many'"):
        build(LogMelConfig, {**values, "n_mels": "many"}, "the front end")
    assert set(kinds_of(LogMelConfig)) == set(values)
