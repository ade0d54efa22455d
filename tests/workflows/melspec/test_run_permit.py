"""Only the run that began last writes arrays: workers of a killed run change nothing that a newer run makes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from m2dprep.artifacts.layout import LmsLayout
from m2dprep.audioprep.config import PRESETS, ConvertConfig
from m2dprep.audioprep.convert import convert_shard
from m2dprep.audioprep.discover import discover
from m2dprep.workflows.melspec.overwrite import RunPermit, SupersededError, run_permit

CONFIG = ConvertConfig(PRESETS["16k"], min_seconds=0.2)


@pytest.fixture
def layout(tmp_path: Path) -> LmsLayout:
    made = LmsLayout(tmp_path / "a_lms")
    made.temporaries.mkdir(parents=True)
    return made


def test_a_permit_is_good_until_its_run_ends_or_another_begins(layout: LmsLayout) -> None:
    with run_permit(layout) as first:
        first()
        with run_permit(layout) as second:
            second()
            with pytest.raises(SupersededError, match="another one has begun"):
                first()
        for over in (first, second):
            with pytest.raises(SupersededError):
                over()
    assert not list(layout.melspec.glob("run"))


@pytest.mark.parametrize("name", ["a.wav", "broken.wav"])
def test_a_worker_without_a_permit_neither_writes_nor_removes(tmp_path: Path, layout: LmsLayout, name: str) -> None:
    (tmp_path / "wavs").mkdir()
    soundfile.write(tmp_path / "wavs" / "a.wav", 0.1 * np.random.default_rng(0).standard_normal(8000), 16000)
    (tmp_path / "wavs" / "broken.wav").write_bytes((tmp_path / "wavs" / "a.wav").read_bytes()[:100])
    output = layout.root / name.replace(".wav", ".npy")
    output.write_text("of the newer run")
    sources = [source for source in discover(tmp_path / "wavs") if source.relative == name]
    over = RunPermit(str(layout.melspec / "run"), b"0" * 32)
    with pytest.raises(SupersededError):
        convert_shard(sources, tmp_path / "wavs", layout.root, CONFIG, permit=over)
    assert output.read_text() == "of the newer run"
    assert not list(layout.temporaries.iterdir())
