"""A byte order mark, as Windows programs write it, is not part of any text that we read."""

from __future__ import annotations

from pathlib import Path

import pytest

from m2dprep.artifacts.tables import read_file_list
from m2dprep.captions.sources.exclusion import read_exclusion
from m2dprep.captions.sources.json_readers import read_jsonl
from m2dprep.evaluation.clip_set import ClipSet
from m2dprep.workflows.melspec.plan import find_sources
from m2dprep.workflows.recipe.entries import read_recipe_file

BOM = "\ufeff"


@pytest.fixture
def write(tmp_path: Path):
    def write_text(text: str) -> Path:
        path = tmp_path / "text"
        path.write_text(BOM + text, encoding="utf-8")
        return path

    return write_text


def test_lists_and_tables(write, tmp_path: Path) -> None:
    assert read_file_list(write("file_name\na.npy\n")) == ["a.npy"]
    assert [source.relative for source in find_sources(tmp_path, tmp_path, write("source\na.wav\n"))] == ["a.wav"]
    assert read_exclusion(write("abc\ndef\n")).names == ("abc", "def")
    assert read_exclusion(write('["abc"]')).names == ("abc",)
    assert read_jsonl(write('{"id": "a", "text": "b"}\n'), "id", ["text"]) == [("a", "b")]
    assert read_recipe_file(write("data: x\n")).mapping("a recipe").keys() == {"data"}


def test_classes(tmp_path: Path, write) -> None:
    (tmp_path / "a.wav").touch()
    (tmp_path / "clips.csv").write_text(f"{BOM}file_name,label\na.wav,cat\nb.wav,dog\n", encoding="utf-8")
    assert ClipSet.read(tmp_path / "clips.csv", classes_file=write("cat\ndog\n")).classes == ["cat", "dog"]
