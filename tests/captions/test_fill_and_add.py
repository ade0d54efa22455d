"""Merging: equal to a row-by-row reference, everything accounted for, rows in a stated order."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m2dprep.artifacts.clips.clip_id import youtube_id
from m2dprep.artifacts.clips.readings import youtube_ids
from m2dprep.artifacts.errors import FingerprintConflictError, UserError
from m2dprep.artifacts.files import temporary_path
from m2dprep.artifacts.tables import CAPTIONS_SCHEMA, read_captions, write_captions, write_file_list
from m2dprep.artifacts.text_files import Tally
from m2dprep.captions.assembly import Coverage
from m2dprep.captions.build import AddOptions, FillOptions, add, fill
from m2dprep.captions.files import add_file, captions_of, fill_file, merge_files
from m2dprep.captions.lint import check_file
from m2dprep.captions.sources.audioset import SEGMENTS_SCHEMA, Segments
from m2dprep.captions.sources.caption_rows import CAPTION_ROWS
from m2dprep.captions.sources.exclusion import ExclusionList
from m2dprep.captions.training_list import write_training_list

pytestmark = pytest.mark.slow


def rows_of(pairs: list[tuple[str, str]]) -> pa.Table:
    return pa.Table.from_pylist([{"id": clip, "caption": text} for clip, text in pairs], schema=CAPTION_ROWS)


def segments_of(clips: list[tuple[str, list[str]]], start: float = 30.0) -> Segments:
    rows = [{"clip_id": clip, "start_seconds": start, "split": "s", "labels": labels} for clip, labels in clips]
    return Segments(pa.Table.from_pylist(rows, schema=SEGMENTS_SCHEMA), len(rows), Tally(0), Tally(0))


def balanced(coverage: Coverage) -> None:
    """Every caption that was read is in exactly one of the counts."""
    source = coverage.source
    assert source is not None
    assert source.rows == source.without_id + source.empty + source.unmatched + source.duplicates + source.used
    assert coverage.captions == sum(coverage.by_source.values())


def triples(table: pa.Table) -> list[tuple[str, str, str, int]]:
    assert table.schema == CAPTIONS_SCHEMA
    return [(row["clip_id"], row["caption"], row["source"], row["caption_index"]) for row in table.to_pylist()]


IDS = [f"{letter}{'x' * 10}" for letter in "YAB-"]
NAMES = st.sampled_from([form for i in IDS for form in (i, f"Y{i}", f"{i}_000030", f"{i}_000077")] + ["", "nobody"])
TEXTS = st.sampled_from(["", " ", "one", "two", 'x could be: "three"', "  two "])


@given(
    st.lists(st.sampled_from(IDS), unique=True, min_size=1).map(
        lambda ids: [(i, ["L"] if i[0] != "B" else []) for i in ids]
    ),
    st.lists(st.tuples(NAMES, TEXTS), min_size=1, max_size=12),
)
def test_fill_equals_one_row_at_a_time(clips: list[tuple[str, list[str]]], rows: list[tuple[str, str]]) -> None:
    known = {clip for clip, _ in clips}
    candidates: dict[str, list[tuple[int, int, str]]] = {}
    for position, (name, text) in enumerate(rows):
        caption = {"": "", " ": "", 'x could be: "three"': "three"}.get(text, text.strip())
        clip = name if name in known else youtube_id(name)
        if name and caption and clip in known:
            rank = 0 if name == clip or (name.startswith("Y") and len(name) == 12) else 1 if name.endswith("30") else 2
            candidates.setdefault(clip, []).append((rank, position, caption))
    expected = []
    for clip, labels in clips:
        if clip in candidates:
            expected.append((clip, min(candidates[clip])[2], "auto_acd", 0))
        elif labels:
            expected.append((clip, "The sound of L.", "label", 0))
    if not candidates:
        with pytest.raises(UserError, match=r"not one id|holds no caption"):
            fill(segments_of(clips), rows_of(rows))
        return
    merged = fill(segments_of(clips), rows_of(rows))
    assert triples(merged.captions) == expected
    balanced(merged.coverage)
    assert merged.coverage.clips == len(clips) - merged.coverage.without_caption.count


def test_fill_without_auto_acd() -> None:
    merged = fill(segments_of([("a", ["L", "M"]), ("b", [])]), None)
    assert triples(merged.captions) == [("a", "The sound of L, and M.", "label", 0)]
    assert merged.coverage.source is None
    assert merged.coverage.without_caption == Tally(1, ("b",))
    assert merged.unmatched.num_rows == 0


def test_auto_acd_of_another_set_is_refused_with_both_kinds_of_ids() -> None:
    with pytest.raises(UserError, match=r"not one id of auto_acd is that of a clip. Its ids: q, r; the clips': a"):
        fill(segments_of([("a", ["L"])]), rows_of([("q", "x"), ("r", "y")]))


CLIPS = ["c1", "c2", "c3"]
TABLES = st.lists(st.tuples(st.sampled_from(CLIPS), st.sampled_from(["old", "other"]), TEXTS), min_size=1, max_size=6)


@given(TABLES, st.lists(st.tuples(st.sampled_from([*CLIPS, "sub/c1.wav", "nobody", ""]), TEXTS), max_size=8))
def test_add_equals_one_row_at_a_time(table: list[tuple[str, str, str]], rows: list[tuple[str, str]]) -> None:
    existing = pa.Table.from_pylist(
        [
            {"clip_id": clip, "caption": text, "source": source, "caption_index": 0, "split": clip, "labels": [clip]}
            for clip, source, text in table
        ],
        schema=CAPTIONS_SCHEMA,
    )
    by_clip: dict[str, list[tuple[str, str]]] = {}
    for clip, source, text in table:
        by_clip.setdefault(clip, []).append((text, source))
    known, matched = set(by_clip), 0
    for name, text in rows:
        # a name with a folder means the clip without one, unless another name means it more literally
        clip = "c1" if name == "sub/c1.wav" and "c1" not in {other for other, _ in rows} else name
        caption = "three" if "three" in text else text.strip()
        if clip in known and caption:
            matched += 1
            if (caption, "new") not in by_clip[clip]:
                by_clip[clip].append((caption, "new"))
    if not matched:
        with pytest.raises(UserError, match=r"not one id|holds no caption"):
            add(existing, rows_of(rows), "new")
        return
    merged = add(existing, rows_of(rows), "new")
    expected = [(clip, *row, index) for clip, items in by_clip.items() for index, row in enumerate(items)]
    assert triples(merged.captions) == expected
    assert all(row["split"] == row["clip_id"] for row in merged.captions.to_pylist())
    assert all(row["labels"] == [row["clip_id"]] for row in merged.captions.to_pylist())
    balanced(merged.coverage)
    # adding again is refused; replacing by the same captions gives the same table
    with pytest.raises(UserError, match="--replace"):
        add(merged.captions, rows_of(rows), "new")
    assert add(merged.captions, rows_of(rows), "new", replace=True).captions.equals(merged.captions)


def test_replace_says_which_clips_it_leaves_without_a_caption() -> None:
    table = add(None, rows_of([("a", "1"), ("b", "2")]), "s").captions
    merged = add(table, rows_of([("b", "3")]), "s", replace=True)
    assert triples(merged.captions) == [("b", "3", "s", 0)]
    assert merged.coverage.without_caption == Tally(1, ("a",))


def test_a_new_table_of_ones_own() -> None:
    rows = rows_of([("b.wav", "1"), ("sub/a.FLAC", "2"), ("b.wav", "3"), ("", "4"), ("c", " ")])
    merged = add(None, rows, "mine")
    assert triples(merged.captions) == [("b", "1", "mine", 0), ("b", "3", "mine", 1), ("sub/a", "2", "mine", 0)]
    assert merged.captions["split"].null_count == 3
    assert merged.captions["labels"].null_count == 3
    assert merged.coverage.without_caption == Tally(1, ("c",))
    balanced(merged.coverage)


def test_two_ids_may_not_become_one_clip() -> None:
    merged = add(None, rows_of([("b", "0"), ("x/a.wav", "1"), ("y/a.wav", "2")]), "mine")
    assert triples(merged.captions) == [("b", "0", "mine", 0), ("x/a", "1", "mine", 0), ("y/a", "2", "mine", 0)]
    with pytest.raises(UserError, match=r"'x/a.wav' and './x/a.flac' would both be the clip 'x/a'"):
        add(None, rows_of([("b", "0"), ("x/a.wav", "1"), ("./x/a.flac", "2")]), "mine")


def test_nothing_to_add() -> None:
    with pytest.raises(UserError, match="holds no caption: each of its 2 rows"):
        add(None, rows_of([("a", " "), ("", "x")]), "mine")


@pytest.mark.parametrize("source", ["", " ", "a b", "-x", "a\n", "ü"])
def test_names_of_sources(source: str) -> None:
    with pytest.raises(UserError, match="cannot name a source"):
        add(None, rows_of([("a", "1")]), source)


@given(st.lists(st.text("Yab_-0123456789.", max_size=20)))
def test_ids_of_columns_are_those_of_names(names: list[str]) -> None:
    names += ["YXqu1CeA2c4_000044", "YmAJAqzo-Y_Y", "Yaaaaaaaaaaa_30.000_40.000", "aaaaaaaaaaa"]
    assert youtube_ids(pa.array(names, pa.string())).to_pylist() == [youtube_id(name) for name in names]


@given(
    st.lists(st.sampled_from(IDS), unique=True, min_size=1).map(lambda ids: [(i, ["L"] * (i[0] != "B")) for i in ids]),
    st.lists(st.tuples(NAMES, TEXTS), min_size=1, max_size=8),
    st.lists(st.tuples(NAMES, TEXTS), min_size=1, max_size=12),
    st.integers(1, 5),
    st.booleans(),
)
def test_filling_with_acalt4_is_filling_and_adding(
    clips: list[tuple[str, list[str]]],
    first: list[tuple[str, str]],
    second: list[tuple[str, str]],
    group_rows: int,
    neutral: bool,
) -> None:
    options = FillOptions(debias=neutral)
    try:
        filled = fill(segments_of(clips), rows_of(first), options)
        added = add(filled.captions, rows_of(second), "acalt4", options=AddOptions(debias=neutral))
    except UserError as error:
        with pytest.raises(UserError, match=re.escape(str(error))):
            fill(segments_of(clips), rows_of(first), options, rows_of(second))
        return
    together = fill(segments_of(clips), rows_of(first), options, rows_of(second))
    assert together.captions.equals(added.captions)
    with mock.patch("m2dprep.captions.assembly.GROUP_ROWS", group_rows):
        assert together.captions.equals(added.captions), "also where a clip's captions are of two groups"
    assert together.unmatched.equals(pa.concat_tables([filled.unmatched, added.unmatched]))
    ours, theirs = together.coverage, added.coverage
    assert (ours.clips, ours.captions, ours.by_source) == (theirs.clips, theirs.captions, theirs.by_source)
    assert (ours.source, ours.added) == (filled.coverage.source, theirs.source)
    assert (ours.segments, ours.without_caption) == (filled.coverage.segments, filled.coverage.without_caption)


def fill_inputs(folder: Path) -> tuple[Path, list[Path], Path, Path]:
    (folder / "eval_segments.csv").write_text('#\na, 0, 10, "/m/1"\nb, 0, 10, "/m/1"\n')
    (folder / "labels.csv").write_text("index,mid,display_name\n0,/m/1,One\n")
    (folder / "train.csv").write_text("youtube_id,caption\na,A caption.\n")
    return folder / "data" / "c.parquet", [folder / "eval_segments.csv"], folder / "labels.csv", folder / "train.csv"


def test_filling_again_changes_nothing(tmp_path: Path) -> None:
    inputs = fill_inputs(tmp_path)
    fill_file(*inputs)
    before, written = inputs[0].read_bytes(), inputs[0].stat().st_mtime_ns
    assert not fill_file(*inputs).changed
    assert (inputs[0].read_bytes(), inputs[0].stat().st_mtime_ns) == (before, written)
    assert fill_file(*inputs, overwrite=True).changed
    assert inputs[0].read_bytes() == before
    assert [path.name for path in inputs[0].parent.iterdir()] == ["c.parquet"]


def test_acalt4_in_one_step_is_acalt4_in_two_and_another_table_is_a_conflict(tmp_path: Path) -> None:
    inputs = fill_inputs(tmp_path)
    table, other = tmp_path / "acalt4.csv", tmp_path / "other.csv"
    table.write_text("youtube_id,caption1,caption2,caption3,caption4\nb,1,2,3,4\n")
    other.write_text("youtube_id,caption1,caption2,caption3,caption4\nb,1,2,3,5\n")
    fill_file(*inputs)
    add_file(inputs[0], rows_of([("b", "1"), ("b", "2"), ("b", "3"), ("b", "4")]), "acalt4", tmp_path / "two.parquet")
    in_two = (tmp_path / "two.parquet").read_bytes()
    with pytest.raises(FingerprintConflictError, match=r"1 from label.*--overwrite"):
        fill_file(*inputs, [table])
    fill_file(*inputs, [table], overwrite=True)
    assert inputs[0].read_bytes() == in_two
    with pytest.raises(FingerprintConflictError, match=r"4 from acalt4.*--overwrite"):
        fill_file(*inputs, [other])
    assert inputs[0].read_bytes() == in_two


def test_what_a_killed_writer_left_goes_with_the_next_write(tmp_path: Path) -> None:
    inputs = fill_inputs(tmp_path)
    ended = subprocess.Popen(["true"])
    ended.wait()
    leftover = temporary_path(inputs[0].parent)
    leftover.parent.mkdir()
    leftover.with_name(leftover.name.replace(f"-{os.getpid()}-", f"-{ended.pid}-")).touch()
    fill_file(*inputs)
    assert [path.name for path in inputs[0].parent.iterdir()] == ["c.parquet"]


def test_filling_something_else_is_a_conflict(tmp_path: Path) -> None:
    inputs = fill_inputs(tmp_path)
    fill_file(*inputs)
    before = inputs[0].read_bytes()
    inputs[3].write_text("youtube_id,caption\na,Another caption.\n")
    with pytest.raises(FingerprintConflictError, match=r"1 from auto_acd, 1 from label.*--overwrite"):
        fill_file(*inputs)
    assert inputs[0].read_bytes() == before
    fill_file(*inputs, overwrite=True)
    assert read_captions(inputs[0])["caption"][0].as_py() == "Another caption."


def test_an_add_that_fails_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "c.parquet"
    with pytest.raises(UserError, match="no such file"):
        add_file(path, rows_of([("a", "1")]), "s", tmp_path / "new.parquet")
    add_file(None, rows_of([("a", "1")]), "s", path)
    before = path.read_bytes()
    for rows, source in (([("nobody", "1")], "t"), ([("a", "2")], "s"), ([("a", "1")], "bad name")):
        with pytest.raises(UserError):
            add_file(path, rows_of(rows), source, tmp_path / "new.parquet")
    with pytest.raises(UserError, match="never changed"):
        add_file(path, rows_of([("a", "2")]), "t", path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_row_order_survives_an_ungrouped_table(tmp_path: Path) -> None:
    rows = [("b", "1", 0), ("a", "2", 0), ("b", "3", 1)]
    table = pa.Table.from_pylist(
        [{"clip_id": c, "caption": t, "source": "s", "caption_index": i} for c, t, i in rows], schema=CAPTIONS_SCHEMA
    )
    write_captions(tmp_path / "c.parquet", table)
    add_file(tmp_path / "c.parquet", rows_of([("b", "4"), ("a", "5")]), "t", tmp_path / "d.parquet")
    assert triples(read_captions(tmp_path / "d.parquet")) == [
        ("b", "1", "s", 0),
        ("b", "3", "s", 1),
        ("b", "4", "t", 2),
        ("a", "2", "s", 0),
        ("a", "5", "t", 1),
    ]


def test_a_coverage_table_lists_every_count() -> None:
    merged = fill(segments_of([("a", ["L"]), ("b", [])]), rows_of([("a", "x"), ("a", "y"), ("q", "z")]))
    text = "\n".join(merged.coverage.lines())
    for line in (
        "clips                          1",
        "  from auto_acd                1",
        "  duplicates                   1",
    ):
        assert line in text
    assert "1 (b)" in text
    assert merged.coverage.to_dict()["source"]["ids_unmatched"] == 1
    assert np.isclose(merged.coverage.clips, 1)


def test_text_that_is_not_utf_8_is_an_error_of_the_file_for_every_reader(tmp_path: Path) -> None:
    """Parquet accepts any bytes as text; code that reads them row by row would fail in the middle."""
    path = tmp_path / "c.parquet"
    for column in ("caption", "source", "clip_id"):
        values = {"clip_id": [b"a", b"b"], "caption": [b"x", b"y"], "source": [b"s", b"s"]}
        values[column] = [b"a", b"caf\xe9"]
        columns = {name: pa.array(texts, pa.binary()).view(pa.string()) for name, texts in values.items()}
        columns |= {"caption_index": pa.array([0, 0], pa.int32()), "split": pa.nulls(2, pa.string())}
        pq.write_table(pa.table(columns | {"labels": pa.nulls(2, pa.list_(pa.string()))}), path)
        before = path.read_bytes()
        for act in (
            lambda: read_captions(path),
            lambda: captions_of(path, "a"),
            lambda: add_file(path, rows_of([("a", "z")]), "t", tmp_path / "m.parquet"),
            lambda: merge_files([path], tmp_path / "m.parquet"),
            lambda: check_file(path),
            lambda: check_file(path, dropped=["empty"]),
        ):
            with pytest.raises(UserError, match=r"c\.parquet.*row 1 of the column .* is not UTF-8"):
                act()
        assert path.read_bytes() == before
    write_file_list(tmp_path / "files_a.csv", ["l/a.npy"])
    with pytest.raises(UserError, match="not UTF-8"):
        write_training_list(tmp_path / "files_a.csv", path, tmp_path / "train_a.csv", [ExclusionList("x", ("a",))])
