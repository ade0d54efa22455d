"""Log-mels of another front end are told by what their conversion noted, wherever in its folder they lie."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.layout import LmsLayout
from m2dprep.artifacts.log_mels.records import write_config
from m2dprep.audioprep.config import PRESETS, ConvertConfig
from m2dprep.audioprep.discover import PassedOver
from m2dprep.evaluation.front_ends import require_front_end
from m2dprep.evaluation.reading import ClipLoader, Crop
from m2dprep.evaluation.tagging.inputs import Reading, find_items, named_items

HEARD, OTHER = PRESETS["16k"], PRESETS["32k"]


@pytest.fixture
def converted(tmp_path: Path) -> Path:
    """``data/x_lms/sub/a.npy`` of 32 kHz, and a hand-made ``loose/a.npy`` of which nothing is known."""
    folder = tmp_path / "data/x_lms"
    for place in (folder / "sub", tmp_path / "loose"):
        place.mkdir(parents=True)
        np.save(place / "a.npy", np.zeros((1, 80, 50), np.float32))
    (folder / "_melspec").mkdir()
    write_config(LmsLayout(folder), ConvertConfig(OTHER).to_dict(), {})
    return tmp_path


@pytest.mark.parametrize("folder", ["data/x_lms", "data/x_lms/sub", "data/../data/x_lms/sub"])
def test_a_folder_anywhere_in_a_conversion(converted: Path, folder: str) -> None:
    with pytest.raises(UserError, match=r"x_lms holds log-mels of another front end .*sample_rate: 32000 → 16000"):
        require_front_end([converted / folder], HEARD)
    require_front_end([converted / folder], OTHER)


def test_paths_from_within_it(converted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(converted / "data/x_lms/sub")
    with pytest.raises(UserError, match="another front end"):
        require_front_end([Path()], HEARD)


def test_nothing_is_known_of_others(converted: Path) -> None:
    require_front_end([converted / "loose", converted / "gone", converted / "data"], HEARD)


@pytest.mark.parametrize("given", ["data", "data/x_lms", "data/x_lms/sub", "data/x_lms/sub/a.npy"])
def test_whatever_is_given_to_listen_to(converted: Path, given: str) -> None:
    with pytest.raises(UserError, match="another front end"):
        find_items([converted / given], Reading(HEARD, 10.0), None, PassedOver())
    assert len(find_items([converted / given], Reading(OTHER, 10.0), None, PassedOver())) == 1


@pytest.mark.parametrize(
    ("base", "name"), [("data", "x_lms/sub/a.npy"), ("data/x_lms", "sub/a.npy"), ("data/x_lms/sub", "a.npy")]
)
def test_a_list_may_be_relative_to_any_folder(converted: Path, base: str, name: str) -> None:
    with pytest.raises(UserError, match="another front end"):
        list(named_items([name], converted / base, Reading(HEARD, 10.0)))
    with pytest.raises(UserError, match="another front end"):
        ClipLoader(HEARD, Crop()).remember_records([converted / base / name])
    ClipLoader(HEARD, Crop(), waveforms=True).remember_records([converted / base / name])
