"""The facts of a conversion are those of its records: counted once, in one pass, whatever the order of parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.layout import LmsLayout
from m2dprep.artifacts.log_mels.records import append_records
from m2dprep.artifacts.tables import CAPTIONS_SCHEMA, write_captions
from m2dprep.evaluation.overview.conversion import conversion, digest_numbers
from m2dprep.evaluation.overview.described import described


def row(source: str, **values: Any) -> dict[str, Any]:
    name = source.rpartition(".")[0]
    own = {"file_name": f"{name}.npy", "source": source, "clip_id": name, "status": "ok", "sample_rate": 16000,
           "channels": 1, "seconds": 10.0, "padded": False, "silent": False, "clipped": False, "peak": 0.5,
           "decoder": "pcm", "source_bytes": 100, "source_digest": None}  # fmt: skip
    return {**own, **values}


def failed(source: str, reason: str, **values: Any) -> dict[str, Any]:
    nothing = dict.fromkeys(("sample_rate", "channels", "seconds", "padded", "silent", "clipped", "peak", "decoder"))
    return row(source, status="failed", reason=reason, message=f"{reason}: why", **nothing, **values)


def layout_with(folder: Path, *parts: list[dict[str, Any]]) -> LmsLayout:
    layout = LmsLayout(folder)
    layout.melspec.mkdir(parents=True)
    for part in parts:
        append_records(layout, part)
    return layout


def test_everything_is_counted(tmp_path: Path) -> None:
    rows = [
        row("dog/a.wav", source_digest="00000000000000aa"),
        row("dog/b.flac", seconds=2.5, silent=True, peak=0.0, sample_rate=44100),
        row("cat/c.wav", clipped=True, peak=1.0, channels=2, source_digest="ffffffffffffffff"),
        row("cat/d.wav", padded=True, seconds=1.0, source_digest="00000000000000aa"),
        row("e.wav", reason="kept", message="truncated: why", source_digest="ffffffffffffffff"),
        *(failed(f"dog/{n}.wav", "truncated") for n in range(5)),
        failed("dog/empty.wav", "empty_file", source_bytes=None),
    ]
    found = conversion(layout_with(tmp_path / "x_lms", rows), sample=3, seed=0)
    assert (found.sources, found.converted, found.failed, found.kept) == (11, 5, 6, 1)
    assert found.reasons == {"truncated": 5, "empty_file": 1, "kept": 1}
    assert [one.file_name for one in found.examples["truncated"]] == ["dog/0.wav", "dog/1.wav", "dog/2.wav"]
    assert found.examples["kept"][0].message == "truncated: why"
    assert sorted(found.seconds.tolist()) == [1.0, 2.5, 10.0, 10.0, 10.0]
    assert found.rates.counts == {"16000": 4, "44100": 1}
    assert found.channels.counts == {"1": 4, "2": 1}
    assert found.suffixes.counts == {"wav": 10, "flac": 1}
    assert found.folders.counts == {"dog": 8, "cat": 2, "unknown": 1}
    assert found.flags == {"silent": 1, "clipped": 1, "padded": 1}
    assert found.flagged["silent"] == ["dog/b.flac"]
    assert found.source_bytes == 1000
    assert (found.equal.groups, found.equal.sources) == (2, 4)
    assert sorted(map(sorted, found.equal.examples)) == [["cat/c.wav", "e.wav"], ["cat/d.wav", "dog/a.wav"]]
    assert "dog/b.flac" not in [clip.source for clip in found.sample], "silence is nothing to hear"


def test_only_the_last_row_of_a_source_counts(tmp_path: Path) -> None:
    layout = layout_with(tmp_path / "x_lms", [failed("a.wav", "empty_file"), row("b.wav")], [row("a.wav")])
    found = conversion(layout, sample=9, seed=0)
    assert (found.sources, found.converted, found.failed, found.reasons) == (2, 2, 0, {})
    assert sorted(clip.source for clip in found.sample) == ["a.wav", "b.wav"]


def test_a_seed_draws_the_same_clips_and_another_one_others(tmp_path: Path) -> None:
    layout = layout_with(tmp_path / "x_lms", [row(f"{n:03}.wav") for n in range(200)])
    drawn = [[clip.source for clip in conversion(layout, sample=10, seed=seed).sample] for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(set(drawn[0])) == 10
    assert conversion(layout, sample=0, seed=1).sample == []


def test_nothing_converted_is_no_error_and_no_records_are_one(tmp_path: Path) -> None:
    found = conversion(layout_with(tmp_path / "x_lms", [failed("a.wav", "empty_file")]), sample=3, seed=0)
    assert (found.converted, len(found.seconds), found.sample) == (0, 0, [])
    with pytest.raises(UserError, match="no records"):
        conversion(LmsLayout(tmp_path / "y_lms"), sample=3, seed=0)


def test_digests_become_numbers() -> None:
    column = pa.chunked_array([["00000000000000ff", None], pa.array([], pa.string()), ["8000000000000000", "ab"]])
    assert digest_numbers(column).tolist() == [255, 0, 1 << 63, 0]


def captions(path: Path, rows: list[dict[str, Any]]) -> Path:
    own = {"source": "auto_acd", "caption_index": 0, "split": None, "labels": ["Dog"]}
    write_captions(path, pa.Table.from_pylist([{**own, **one} for one in rows], schema=CAPTIONS_SCHEMA))
    return path


def test_captions_are_counted(tmp_path: Path) -> None:
    path = captions(
        tmp_path / "captions.parquet",
        [
            {"clip_id": "a", "caption": "a dog barks loudly", "labels": ["Dog", "Bark"], "split": "eval"},
            {"clip_id": "a", "caption": "the sound of Dog", "caption_index": 1, "source": "label"},
            {"clip_id": "b", "caption": "the sound of Dog", "source": "label", "labels": None},
            {"clip_id": "c", "caption": "the page www.example.com", "labels": []},
        ],
    )
    found = described(path, 0)
    assert (found.captions, found.clips, found.texts, found.label_names) == (4, 3, 3, 2)
    assert found.words.tolist() == [0, 0, 0, 1, 3]
    assert found.per_clip.tolist() == [0, 2, 1]
    assert found.sources == [("auto_acd", 2), ("label", 2)]
    assert found.splits == [("none", 3), ("eval", 1)]
    assert found.labels == [("Dog", 2), ("Bark", 1)]
    assert found.commonest == [("the sound of Dog", 2)]
    assert found.findings == {"url": 1}
    assert found.examples["url"] == [("c", "the page www.example.com")]


def test_rules_are_applied_to_some_whole_clips_of_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("m2dprep.evaluation.overview.described.LINTED", 1000)
    rows = 1200
    columns = {
        "clip_id": np.char.mod("%06d", np.arange(rows) // 2),
        "caption": np.where(np.arange(rows) % 2, "the dog barks", "the dog barks"),
        "source": np.full(rows, "label"),
        "caption_index": np.arange(rows, dtype=np.int32) % 2,
    }
    table = pa.table(
        {**{name: pa.array(values) for name, values in columns.items()},
         "split": pa.nulls(rows, pa.string()), "labels": pa.nulls(rows, pa.list_(pa.string()))}
    )  # fmt: skip
    write_captions(tmp_path / "captions.parquet", table)
    found = described(tmp_path / "captions.parquet", 0)
    assert 0 < found.linted <= 1000
    assert found.findings == {"duplicate": found.linted // 2}, "clips are looked at whole"


def test_no_captions_are_no_error(tmp_path: Path) -> None:
    assert described(captions(tmp_path / "captions.parquet", []), 0).captions == 0
