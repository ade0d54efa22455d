"""The demo's set: deterministic, correct in its formats, and with the traps of the real tables."""

import csv
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.signal
import soundfile

from m2dprep.workflows import sound_set as sound_set_module
from m2dprep.workflows.sound_set import (
    ANEW,
    CLASSES,
    HELD_OUT,
    TRAIN,
    SoundClass,
    make_sound_set,
    synthesise_clip,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def sound_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("set")
    make_sound_set(root, train_per_class=3, held_out_per_class=1, seed=7, workers=0)
    return root


def files(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_equal_seeds_give_equal_bytes_and_others_do_not(
    sound_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_sound_set(tmp_path / "same", train_per_class=3, held_out_per_class=1, seed=7, workers=0)
    assert files(tmp_path / "same") == files(sound_set)
    monkeypatch.setattr(sound_set_module, "SECONDS", SHORT)
    make_sound_set(tmp_path / "other", train_per_class=3, held_out_per_class=1, seed=8, workers=0)
    assert files(tmp_path / "other").keys() != files(sound_set).keys()


class StoppedError(Exception):
    """Stands for the end of a process."""


# Functions that a run calls, and the call that never comes back; of renames, whether it is killed or goes on with an
# error. 17 renames bring a set to its place: one says that it is whole, 8 put the old one aside.
STOPS = [("synthesise_clip", 3), ("_write_acalt4", 1)]
STOPS += [(how, number) for how in ("killed at rename", "refused rename") for number in (1, 2, 10, 17)]
NUMBERS = {"train_per_class": 1, "held_out_per_class": 1, "seed": 8, "workers": 0}


# How long a sound is makes no difference to how a set is put in its place, but to how long that takes.
SHORT = 0.5


@pytest.fixture(scope="module")
def two_sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A set, and the other one that is to replace it, of short sounds."""
    roots = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("another")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sound_set_module, "SECONDS", SHORT)
        make_sound_set(roots[0], train_per_class=2, held_out_per_class=1, seed=7, workers=0)
        make_sound_set(roots[1], **NUMBERS)
    return roots


@pytest.mark.parametrize(("function", "number"), STOPS)
def test_a_set_stays_until_the_one_that_replaces_it_is_whole(
    two_sets: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, number: int
) -> None:
    root, (one, another) = tmp_path / "set", two_sets
    monkeypatch.setattr(sound_set_module, "SECONDS", SHORT)
    shutil.copytree(one, root)
    before, calls, killed = files(root), itertools.count(1), function == "killed at rename"
    place, name = (Path, "rename") if "rename" in function else (sound_set_module, function)
    original = getattr(place, name)

    def stopping(*given: Any) -> Any:
        call = next(calls)
        if call == number or (killed and call > number):
            raise StoppedError if killed or place is not Path else OSError(13, "Permission denied")
        return original(*given)

    with monkeypatch.context() as patched, pytest.raises((StoppedError, OSError)):
        patched.setattr(place, name, stopping)
        make_sound_set(root, **NUMBERS, overwrite=True)
    if not killed or number <= 2:
        assert {name: content for name, content in files(root).items() if not name.startswith(ANEW)} == before
    make_sound_set(root, **NUMBERS, overwrite=not killed or number == 1)
    assert files(root) == files(another)


def test_clips_are_ten_seconds_in_several_formats(sound_set: Path) -> None:
    infos = [soundfile.info(path) for path in sorted((sound_set / "audio").rglob("*.wav"))]
    assert len(infos) == 4 * len(CLASSES)
    assert {info.duration for info in infos} == {10.0}
    assert {info.channels for info in infos} == {1, 2}
    assert len({info.samplerate for info in infos}) >= 4
    assert len({info.subtype for info in infos}) == 3


def test_segments_name_every_clip_and_only_known_labels(sound_set: Path) -> None:
    mids = {entry["id"] for entry in json.loads((sound_set / "ontology.json").read_text())}
    for part in (TRAIN, HELD_OUT):
        lines = (sound_set / f"{part}.csv").read_text().splitlines()
        assert all(line.startswith("#") for line in lines[:3])
        rows = list(csv.reader(lines[3:], skipinitialspace=True))
        assert {f"Y{row[0]}" for row in rows} == {path.stem for path in (sound_set / "audio" / part).iterdir()}
        assert {mid for row in rows for mid in row[3].split(",")} <= mids


def test_caption_tables_leave_clips_out_and_hold_an_unknown_id(sound_set: Path) -> None:
    rows = list(csv.DictReader((sound_set / "auto_acd_train.csv").open()))
    clips = list((sound_set / "audio" / TRAIN).iterdir())
    assert 0 < len(rows) - 1 < len(clips)
    assert rows[-1]["youtube_id"] == "Ynot-in-sets"
    acalt4 = list(csv.DictReader((sound_set / "acalt4.csv").open()))
    assert 0 < len(acalt4) < len(clips)
    assert all(all(row.values()) and len(row) == 5 for row in acalt4)


@pytest.mark.parametrize("sound", CLASSES, ids=lambda sound: sound.name)
def test_every_sound_is_finite_in_range_and_different_each_time(sound: SoundClass) -> None:
    one, other = (synthesise_clip(sound, np.random.default_rng(seed), 16000, 2, 2.0) for seed in (1, 2))
    assert one.shape == (32000, 2)
    assert one.dtype == np.float32
    assert np.isfinite(one).all()
    assert 0.01 < np.abs(one).max() <= 1.0
    assert not np.array_equal(one, other)


def spectrum(name: str) -> tuple[np.ndarray, np.ndarray]:
    sound = next(sound for sound in CLASSES if sound.name == name)
    waveform = sound.synthesise(np.random.default_rng(3), np.arange(160000) / 16000)
    return scipy.signal.welch(waveform, 16000, nperseg=4096)


def test_white_is_flat_and_pink_falls_three_decibels_an_octave() -> None:
    for name, slope in (("White noise", 0.0), ("Pink noise", -1.0)):
        frequency, power = spectrum(name)
        band = (frequency > 100) & (frequency < 7000)
        assert np.polyfit(np.log(frequency[band]), np.log(power[band]), 1)[0] == pytest.approx(slope, abs=0.1)


def test_a_sine_wave_is_one_frequency_and_a_dial_tone_two() -> None:
    for name, tones in (("Sine wave", 1), ("Dial tone", 2)):
        _, power = spectrum(name)
        assert len(scipy.signal.find_peaks(power, height=power.max() / 100)[0]) == tones
