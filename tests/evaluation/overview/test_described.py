"""Captions in figures: words and repetitions are counted exactly, whatever the texts are and however they are cut."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.tables import CAPTIONS_SCHEMA, write_captions
from m2dprep.evaluation.overview import described as module
from m2dprep.evaluation.overview.described import described, repetitions, word_counts

TEXTS = [
    "a dog barks", "", " ", "  two  words ", "a dog barks", "tab\tand\nline", "é à", "\u00a0one word\u2003still", "x",
    "a dog barks ", "y", "x", "", "naïve café", "日本語 の 音", "\x0bno space of ASCII that RE2 knows",
]  # fmt: skip


@pytest.fixture(params=[1, 2, 5, 1 << 17])
def at_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts are taken so many at a time."""
    monkeypatch.setattr(module, "TEXTS_AT_ONCE", request.param)


@pytest.mark.parametrize("chunks", [[TEXTS], [TEXTS[:3], [], TEXTS[3:]], [[]], [["", ""]], [["   "]]])
@pytest.mark.usefixtures("at_once")
def test_words_and_repetitions(chunks: list[list[str]]) -> None:
    texts = pa.chunked_array([pa.array(chunk, pa.string()) for chunk in chunks])
    flat = [text for chunk in chunks for text in chunk]
    assert word_counts(texts).tolist() == [len(re.findall(r"[^\t\n\f\r ]+", text)) for text in flat]
    distinct, several = repetitions(texts)
    counts = Counter(flat)
    assert distinct == len(counts)
    found = {one["values"]: one["counts"] for one in several.to_pylist()}
    assert found == {text: count for text, count in counts.items() if count > 1}


def table_of(rows: int) -> pa.Table:
    columns = {
        "clip_id": [f"c{row // 2}" for row in range(rows)],
        "caption": [f"the same text {row % 7}" for row in range(rows)],
        "source": ["made"] * rows,
        "caption_index": [row % 2 for row in range(rows)],
        "split": [None] * rows,
        "labels": [["Dog", f"label {row % 3}"] for row in range(rows)],
    }
    return pa.table(columns, schema=CAPTIONS_SCHEMA)


@pytest.mark.usefixtures("at_once")
def test_the_rules_see_whole_clips_that_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[pa.Table] = []

    def note(table: pa.Table) -> pa.Table:
        seen.append(table)
        return pa.table({"rule": pa.array([], pa.string()), "clip_id": [], "caption": []})

    monkeypatch.setattr(module, "LINTED", 8)
    monkeypatch.setattr(module, "find", note)
    write_captions(tmp_path / "captions.parquet", table_of(40))
    found = described(tmp_path / "captions.parquet", seed=1)
    assert (found.captions, found.clips, found.texts, found.label_names) == (40, 20, 7, 4)
    assert found.labels[0] == ("Dog", 40)
    assert found.per_clip.tolist() == [0, 0, 20]
    assert found.words.tolist() == [0, 0, 0, 0, 40]
    assert found.commonest[0] == ("the same text 0", 6)
    (table,) = seen
    assert table.num_rows == found.linted == 8
    whole = table_of(40).to_pylist()
    assert [row for row in whole if row["clip_id"] in set(table["clip_id"].to_pylist())] == table.to_pylist()


def test_no_captions_and_damage(tmp_path: Path) -> None:
    write_captions(tmp_path / "none.parquet", table_of(0))
    assert described(tmp_path / "none.parquet", 0).captions == 0
    write_captions(tmp_path / "captions.parquet", table_of(40))
    data = np.frombuffer((tmp_path / "captions.parquet").read_bytes(), np.uint8).copy()
    data[20] ^= 0xFF
    (tmp_path / "captions.parquet").write_bytes(data.tobytes())
    with pytest.raises(UserError, match=r"captions\.parquet"):
        described(tmp_path / "captions.parquet", 0)
