"""Merging tables, the captions of a clip, and training lists without evaluation clips."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m2dprep.artifacts.errors import FingerprintConflictError, UserError
from m2dprep.artifacts.tables import CAPTIONS_SCHEMA, read_captions, read_file_list, write_captions, write_file_list
from m2dprep.captions.assembly import GROUP_ROWS, Assembly, write_assembly
from m2dprep.captions.build import merge_sets
from m2dprep.captions.files import captions_of, merge_files
from m2dprep.captions.sources.exclusion import ExclusionList
from m2dprep.captions.training_list import write_training_list

Row = tuple[str, str, str]


def table(rows: list[Row], split: str | None = None) -> pa.Table:
    values = [
        {"clip_id": clip, "caption": text, "source": source, "caption_index": 0, "split": split, "labels": None}
        for clip, source, text in rows
    ]
    return pa.Table.from_pylist(values, schema=CAPTIONS_SCHEMA)


ROWS = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("st"), st.sampled_from("xyz")), max_size=6)


@pytest.mark.slow
@given(st.lists(ROWS, min_size=1, max_size=3))
def test_merging_equals_one_row_at_a_time(sets: list[list[Row]]) -> None:
    by_clip: dict[str, dict[tuple[str, str], None]] = {}
    for clip, source, text in (row for rows in sets for row in rows):
        by_clip.setdefault(clip, {})[source, text] = None
    expected = [(clip, *row, index) for clip, rows in by_clip.items() for index, row in enumerate(rows)]
    merged = merge_sets([table(rows) for rows in sets])
    rows = merged.assembly.table().to_pylist()
    assert [(row["clip_id"], row["source"], row["caption"], row["caption_index"]) for row in rows] == expected
    assert merged.read == merged.assembly.rows + merged.repeated
    assert merged.clips == len(by_clip)
    assert merged.by_source == {s: n for s in "st" if (n := sum(row["source"] == s for row in rows))}


def test_merging_files_with_exclusions(tmp_path: Path) -> None:
    write_captions(tmp_path / "a.parquet", table([("a", "s", "1"), ("b", "s", "2")]))
    write_captions(tmp_path / "b.parquet", table([("b", "t", "3"), ("c", "t", "4"), ("b", "s", "2")]))
    sets, output = [tmp_path / "a.parquet", tmp_path / "b.parquet"], tmp_path / "new" / "c.parquet"
    merged = merge_files(sets, output, [ExclusionList("list", ("a",))])
    assert (merged.read, merged.assembly.rows, merged.repeated, merged.excluded_captions) == (5, 3, 1, 1)
    before = output.read_bytes()
    with pytest.raises(FingerprintConflictError, match="--overwrite"):
        merge_files(sets, output)
    merge_files(sets, output, [ExclusionList("list", ("a",))], overwrite=True)
    assert output.read_bytes() == before
    with pytest.raises(UserError, match="no such file"):
        merge_files([tmp_path / "missing"], tmp_path / "d.parquet")


def test_a_clip_is_shown_by_any_of_its_names(tmp_path: Path) -> None:
    path = tmp_path / "c.parquet"
    write_captions(path, table([("YXqu1CeA2c4", "s", "1"), ("b", "s", "2"), ("YXqu1CeA2c4", "t", "3")]))
    for name in ("YXqu1CeA2c4", "YXqu1CeA2c4_000044", "sub/YYXqu1CeA2c4.wav"):
        assert [row["caption"] for row in captions_of(path, name)] == ["1", "3"]
    with pytest.raises(UserError, match="no captions of 'nobody'"):
        captions_of(path, "nobody")


def test_evaluation_clips_leave_the_training_list(tmp_path: Path) -> None:
    captions, files, output = tmp_path / "c.parquet", tmp_path / "files_a.csv", tmp_path / "out.csv"
    write_captions(captions, pa.concat_tables([table([("eval", "s", "1")], "eval"), table([("b", "s", "2")], "train")]))
    names = ["lms/any/eval.npy", "lms/eval_segments/x.npy", "lms/b.npy", "lms/c.npy"]
    write_file_list(files, names)
    exclude = [ExclusionList("list", ("c", "x"))]
    counts = write_training_list(files, captions, output, exclude)
    assert read_file_list(output) == ["lms/b.npy"]
    assert (counts.files, counts.kept, counts.of_eval_segments) == (4, 1, 2)
    assert [(list_counts.removed, list_counts.names_without_clip) for list_counts in counts.excluded] == [(1, 1)]
    assert write_training_list(files, captions, output, exclude, keep_eval=True, overwrite=True).kept == 2
    with pytest.raises(UserError, match="no file is left"):
        write_training_list(files, captions, output, [ExclusionList("list", ("b", "c"))])


def test_a_table_is_written_in_groups(tmp_path: Path) -> None:
    rows = 2 * GROUP_ROWS + 3
    whole = pa.table(
        {
            "clip_id": pa.array(range(rows)).cast(pa.string()),
            "caption": pa.repeat("x", rows),
            "source": pa.repeat("s", rows),
            "caption_index": pa.repeat(pa.scalar(0, pa.int32()), rows),
            "split": pa.nulls(rows, pa.string()),
            "labels": pa.nulls(rows, pa.list_(pa.string())),
        }
    ).cast(CAPTIONS_SCHEMA)
    path = tmp_path / "c.parquet"
    write_assembly(path, Assembly(rows, lambda start, stop: whole.slice(start, stop - start)))
    assert read_captions(path).equals(whole)
