"""The examples of docs/python.md, on a tiny model and made sounds."""

from __future__ import annotations

import doctest
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import soundfile

from m2dprep.artifacts.tables import CAPTIONS_SCHEMA, write_captions
from m2dprep.evaluation import text_towers
from tests.cli.invocation import run
from tests.evaluation.made_clips import tone, write_checkpoint
from tests.evaluation.search.fake_words import FakeEncoder

pytestmark = pytest.mark.slow

PAGE = Path(__file__).parents[3] / "docs/python.md"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as the page has it: a run, two sounds, their captions, log-mels and embeddings."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(text_towers, "load_encoder", lambda name, **_: FakeEncoder())
    write_checkpoint(tmp_path / "runs/base")
    (tmp_path / "sounds").mkdir()
    for folder in (tmp_path, tmp_path / "sounds"):
        soundfile.write(folder / "dog.wav", tone(0, 1.0), 16000)
        soundfile.write(folder / "rain.flac", np.stack([tone(2, 1.0), tone(1, 1.0)], axis=1), 16000)
    columns = {
        "clip_id": ["dog", "rain"], "caption": ["a dog barks", "it rains"], "source": ["made"] * 2,
        "caption_index": [0, 0], "split": ["train"] * 2, "labels": [["Dog"], ["Rain"]],
    }  # fmt: skip
    (tmp_path / "data").mkdir()
    write_captions(tmp_path / "data/captions.parquet", pa.table(columns, schema=CAPTIONS_SCHEMA))
    assert run("melspec", "sounds", "data/sounds_lms", "--workers", 0, "--min-seconds", 0.1).exit_code == 0
    assert run("embed-audio", "runs/base", "sounds", "sounds_emb", "--device", "cpu").exit_code == 0
    return tmp_path


@pytest.mark.usefixtures("place")
def test_the_examples_of_the_page() -> None:
    result = doctest.testfile(str(PAGE), module_relative=False, encoding="utf-8")
    assert result.failed == 0
    assert result.attempted > 20
