"""One notion of what a file's name is without its suffix, from the scan to the captions."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m2dprep.artifacts.clips.clip_id import (
    AUDIO_SUFFIXES,
    LOG_MEL_SUFFIX,
    clip_id,
    file_stem,
    has_audio_suffix,
    without_suffix,
)
from m2dprep.artifacts.clips.readings import paths
from m2dprep.audioprep.discover import discover
from m2dprep.audioprep.source import output_name
from m2dprep.captions.sources.exclusion import ExclusionList, keep_clips

NAMES = {
    "a.wav": "a",
    "x/y.b.FLAC": "x/y.b",
    "blues.00000.au": "blues.00000",  # GTZAN
    "blues.00000": "blues.00000",
    "Y0123456789a_30.000.wav": "Y0123456789a_30.000",
    "Y0123456789a_30.000": "Y0123456789a_30.000",
    "0123456789a.mp4": "0123456789a",
    "song.mp+": "song",
    "clip.3gp": "clip",
    "noise.dat": "noise",  # some format that no list knows
    "Yabc.d": "Yabc.d",  # one letter is no suffix
    "some.folder": "some.folder",
    "St. Pancras": "St. Pancras",
    "a.tar.gz": "a.tar",
    ".wav": ".wav",
    "b/.wav": "b/.wav",
    "a.": "a.",
    "folder.wav/inside": "folder.wav/inside",
}


@pytest.mark.parametrize(("name", "stem"), NAMES.items())
def test_one_suffix_is_dropped_and_nothing_else(name: str, stem: str) -> None:
    assert without_suffix(name) == stem
    assert output_name(name) == f"{stem}.npy"


@pytest.mark.slow
@pytest.mark.parametrize("suffix", sorted(AUDIO_SUFFIXES))
def test_every_suffix_means_the_same_to_all(suffix: str, tmp_path: Path) -> None:
    for name in (f"part/rain.01.{suffix}", f"part/rain.01.{suffix.upper()}"):
        assert has_audio_suffix(name)
        assert output_name(name) == "part/rain.01.npy"
        assert file_stem(name) == clip_id(name) == clip_id(output_name(name)) == "rain.01"
        assert paths(pa.array([name])).to_pylist() == ["part/rain.01"]
        kept, _ = keep_clips(pa.array(["rain.01", "rain.02"]), [ExclusionList("list", (name,))])
        assert kept.tolist() == [False, True]
    (tmp_path / f"rain.{suffix}").touch()
    assert [source.relative for source in discover(tmp_path)] == [f"rain.{suffix}"]


def test_a_log_mel_is_no_source_but_has_a_suffix(tmp_path: Path) -> None:
    assert LOG_MEL_SUFFIX not in AUDIO_SUFFIXES
    assert paths(pa.array(["lms/blues.00000.npy"])).to_pylist() == ["lms/blues.00000"]


@given(st.lists(st.text("ab.1 _", min_size=1, max_size=6), min_size=1, max_size=3).map("/".join))
def test_a_clip_keeps_its_id_from_the_source_to_the_array(name: str) -> None:
    if name.rpartition("/")[2] not in (".", ".."):
        assert file_stem(output_name(name)) == file_stem(name)
