"""JSON that nobody vouches for: one line that names the file, whatever is wrong with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from m2dprep.artifacts.embeddings.store import META, EmbeddingStore
from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.json_files import load_json, read_json, read_json_object
from m2dprep.artifacts.layout import LmsLayout
from m2dprep.artifacts.log_mels.pack import read_pack_meta
from m2dprep.artifacts.log_mels.records import read_config
from m2dprep.captions.embedding.model_files import ModelFiles, require_no_code
from m2dprep.training.data_dir import read_norm_stats
from m2dprep.workflows.recipe.state import read_state

BAD = {
    "deep nesting": b"[" * 100_000,
    "deep nesting of objects": b'{"a":' * 100_000,
    "a number of many digits": b'{"mean": 1' + b"0" * 6000 + b"}",
    "a number beyond 64 bits": b'{"mean": 1' + b"0" * 40 + b"}",
    "a number beyond all": b'{"mean": 1e999}',
    "NaN": b'{"mean": NaN}',
    "infinity": b'{"mean": -Infinity}',
    "half a character": b'{"mean": "\\ud83d"}',
    "half a character as a key": b'{"\\udc00": 1}',
    "other bytes than UTF-8": b'{"a": "\xff"}',
    "cut off": b'{"a": ',
    "nothing": b"",
    "a text": b"version https://git-lfs.github.com/spec/v1",
}


def in_folder(read: Callable[[Path], Any]) -> Callable[[Path], Any]:
    return lambda path: read(path.parent)


READERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "the reader": ("x.json", lambda path: read_json(path, "a file")),
    "statistics": ("norm_stats.json", read_norm_stats),
    "a store of embeddings": (META, in_folder(EmbeddingStore.open)),
    "a pack": ("meta.json", in_folder(read_pack_meta)),
    "a conversion": ("_melspec/config.json", lambda path: read_config(LmsLayout(path.parent.parent))),
    "a recipe's state": ("state.json", in_folder(read_state)),
}


@pytest.mark.parametrize("bad", list(BAD))
@pytest.mark.parametrize("reader", list(READERS))
def test_what_is_not_sound_is_a_line_that_names_the_file(tmp_path: Path, reader: str, bad: str) -> None:
    name, read = READERS[reader]
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(BAD[bad])
    with pytest.raises(UserError) as raised:
        read(tmp_path / name)
    assert str(tmp_path / name) in str(raised.value)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 500


def test_what_is_sound_is_read(tmp_path: Path) -> None:
    value = {"a": [1, -2.5, 2**64 - 1, None, True], "\U0001f436": "\U0001f436"}
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False), "\ufeff" + json.dumps(value)):
        (tmp_path / "x.json").write_text(text, encoding="utf-8")
        assert load_json(tmp_path / "x.json") == read_json_object(tmp_path / "x.json", "a file") == value
    (tmp_path / "x.json").write_text("[1]")
    with pytest.raises(UserError, match=r"x\.json cannot be read as a file: it holds a list, not an object"):
        read_json_object(tmp_path / "x.json", "a file")
    with pytest.raises(UserError, match="no such file"):
        read_json(tmp_path / "missing.json", "a file")


@pytest.mark.parametrize("bad", ["deep nesting", "half a character", "other bytes than UTF-8", "cut off", "nothing"])
@pytest.mark.parametrize("name", ["config.json", "modules.json", "1_Pooling/config.json", "tokenizer_config.json"])
def test_configurations_of_models_are_read_as_strictly(tmp_path: Path, name: str, bad: str) -> None:
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / name).write_bytes(BAD[bad])
    with pytest.raises(UserError, match=f"{name} cannot be read as a configuration of a text encoder"):
        require_no_code(ModelFiles("m", tmp_path, None))


def test_configurations_of_models_have_numbers_for_no_limit(tmp_path: Path) -> None:
    """Tokenizers write 1e30 in full, and some models infinity."""
    (tmp_path / "tokenizer_config.json").write_text('{"model_max_length": 1' + "0" * 30 + ', "x": [0.0, Infinity]}')
    require_no_code(ModelFiles("m", tmp_path, None))
