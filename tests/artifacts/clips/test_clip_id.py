"""Clip ids by the form of a name, never by its first letter."""

from __future__ import annotations

from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m2dprep.artifacts.clips.clip_id import clip_id, file_stem, youtube_id

YOUTUBE_IDS = st.text("abcXYZ0189_-", min_size=11, max_size=11)

FORMS = {
    # name: clip id
    "Y--PJHxphWEs.wav": "--PJHxphWEs",
    "YYXqu1CeA2c4.wav": "YXqu1CeA2c4",
    # a VGGSound clip whose id starts with Y keeps it
    "YXqu1CeA2c4_000044.wav": "YXqu1CeA2c4",
    # an AudioSet id may itself hold an underscore
    "YmAJAqzo-Y_Y.wav": "mAJAqzo-Y_Y",
    # 12 characters and 6 digits: only the VGGSound form takes six digits after 11 characters
    "Y--PJHxphWEs_30.000_40.000.flac": "--PJHxphWEs",
    "--PJHxphWEs_30.000.wav": "--PJHxphWEs_30.000",
    "YXqu1CeA2c4.wav": "YXqu1CeA2c4",  # a bare id of 11 characters that starts with Y
    "dog barking.ogg": "dog barking",
    "sub/folder/rain.npy": "rain",
    "Yellow.wav": "Yellow",
}


@pytest.mark.slow
@given(st.lists(st.sampled_from(["a", "b.wav", "..", ".", "", "/"])).map("/".join))
def test_paths_are_taken_apart_as_pathlib_does(path: str) -> None:
    expected = PurePosixPath(path)
    assert file_stem(path) == file_stem(expected.name)


@pytest.mark.parametrize("name", list(FORMS))
def test_forms(name: str) -> None:
    assert clip_id(name) == FORMS[name]


@given(YOUTUBE_IDS, st.integers(0, 999_999))
def test_every_youtube_id_comes_back_from_both_forms(identifier: str, start: int) -> None:
    assert youtube_id(f"{identifier}_{start:06d}") == identifier
    assert clip_id(f"folder/{identifier}_{start:06d}.npy") == identifier
    assert youtube_id(f"Y{identifier}") == identifier
    assert youtube_id(identifier) is None


def test_stems_keep_times_and_hidden_names() -> None:
    assert file_stem("a_30.000.wav") == "a_30.000"
    assert file_stem("a_30.000") == "a_30.000"
    assert file_stem(".wav") == ".wav"
    assert file_stem("a.tar.gz") == "a.tar"
