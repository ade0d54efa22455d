"""Records: later rows win, compaction gives the same bytes whatever the order, no row is lost in between."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.layout import LmsLayout
from m2dprep.artifacts.log_mels import record_file, records
from m2dprep.artifacts.log_mels.records import (
    RECORD_SCHEMA,
    append_records,
    compact_records,
    iter_records,
    read_config,
    read_records,
    record_parts,
    write_config,
)


def row(source: str, status: str = "ok", **values: object) -> dict:
    defaults = {"file_name": f"{source}.npy", "source": source, "clip_id": source, "status": status}
    return {**defaults, "bin_mean": [1.0], "bin_m2": [2.0], **values}


@pytest.fixture
def layout(tmp_path: Path) -> LmsLayout:
    layout = LmsLayout(tmp_path / "audioset_lms")
    layout.melspec.mkdir(parents=True)
    return layout


def test_later_rows_win_and_rows_are_sorted(layout: LmsLayout) -> None:
    append_records(layout, [row("b", "failed", reason="truncated"), row("a")])
    append_records(layout, [row("b", frames=611)])
    table = read_records(layout, ["source", "status", "frames"]).to_pylist()
    assert table == [
        {"source": "a", "status": "ok", "frames": None},
        {"source": "b", "status": "ok", "frames": 611},
    ]


def test_no_rows_write_no_part(layout: LmsLayout) -> None:
    assert append_records(layout, []) == []
    assert record_parts(layout) == []
    with pytest.raises(UserError, match="m2dprep melspec"):
        read_records(layout)


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=4), min_size=1, max_size=5))
def test_compaction_depends_on_the_rows_alone(tmp_path_factory: pytest.TempPathFactory, parts: list[list[str]]) -> None:
    names = sorted({name for part in parts for name in part})
    if not names:
        return
    bytes_of = []
    for order in (parts, [names]):
        layout = LmsLayout(tmp_path_factory.mktemp("lms"))
        layout.melspec.mkdir()
        for part in order:
            append_records(layout, [row(name) for name in part])
        before = read_records(layout)
        compact_records(layout)
        assert read_records(layout) == before
        assert [path.name for path in record_parts(layout)] == ["records-000000.parquet"]
        bytes_of.append(record_parts(layout)[0].read_bytes())
        compact_records(layout)
        assert record_parts(layout)[0].read_bytes() == bytes_of[-1]
    assert bytes_of[0] == bytes_of[1]


def test_a_kill_between_merging_and_removing_loses_nothing(layout: LmsLayout, monkeypatch: pytest.MonkeyPatch) -> None:
    append_records(layout, [row("a")])
    append_records(layout, [row("b")])
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            compact_records(layout)
    assert read_records(layout, ["source"])["source"].to_pylist() == ["a", "b"]
    compact_records(layout)
    assert read_records(layout, ["source"])["source"].to_pylist() == ["a", "b"]
    assert len(record_parts(layout)) == 1


def test_a_broken_part_is_an_error_that_names_it(layout: LmsLayout) -> None:
    (layout.melspec / "records-000000.parquet").write_bytes(b"PAR1 half")
    with pytest.raises(UserError, match=r"records-000000\.parquet"):
        read_records(layout)


def test_config_round_trip_and_tampering(layout: LmsLayout) -> None:
    assert read_config(layout) is None
    write_config(layout, {"dtype": "float32"}, {"versions": {"soxr": "1"}})
    frozen = read_config(layout)
    assert frozen is not None
    assert frozen["config"] == {"dtype": "float32"}
    layout.config.write_text(layout.config.read_text().replace("float32", "float16"))
    with pytest.raises(UserError, match="is damaged, or was edited"):
        read_config(layout)


def test_records_come_row_group_by_row_group(layout: LmsLayout, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (records, record_file):
        monkeypatch.setattr(module, "ROW_GROUP_ROWS", 3)
    monkeypatch.setattr(record_file, "GROUPS_IN_MEMORY", 2)
    names = [f"{number:03d}" for number in np.random.default_rng(0).permutation(40)]
    append_records(layout, [row(name, frames=1) for name in names])
    append_records(layout, [row(name, frames=2) for name in names[::3]])
    expected = {name: 2 if name in names[::3] else 1 for name in sorted(names)}
    rows = [row for table in iter_records(layout, ["source", "frames"]) for row in table.to_pylist()]
    streamed = [(row["source"], row["frames"]) for row in rows]
    assert dict(streamed) == expected
    assert len(streamed) == 40
    compact_records(layout)
    assert read_records(layout, ["source", "frames"])["frames"].to_pylist() == list(expected.values())
    tables = list(iter_records(layout, ["source"]))
    assert [table.num_rows for table in tables] == [3] * 13 + [1]
    assert [name for table in tables for name in table["source"].to_pylist()] == sorted(names)


def test_records_of_failures_whose_source_went_are_dropped_and_others_kept(layout: LmsLayout) -> None:
    append_records(layout, [row("a"), row("b", "failed"), row("c", "failed")])
    compact_records(layout, keep_failures={"c"})
    assert read_records(layout, ["source"])["source"].to_pylist() == ["a", "c"]


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**80), 2**80),
    st.floats(),
    st.text(st.characters(codec=None)),
    st.lists(st.floats() | st.integers(2**64, 2**70), max_size=2),
)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(values=st.dictionaries(st.sampled_from(record_file.RECORD_SCHEMA.names[5:]), VALUES))
def test_whatever_a_row_holds_no_row_is_lost(values: dict, tmp_path_factory: pytest.TempPathFactory) -> None:
    layout = LmsLayout(tmp_path_factory.mktemp("odd_lms"))
    layout.melspec.mkdir()
    given_up = append_records(layout, [row("a"), row("b", **values), row("c", "failed", **values)])
    assert given_up in ([], ["b.npy"])
    written = read_records(layout, ["source", "status", "bin_mean"]).to_pylist()
    assert [(found["source"], found["status"]) for found in written] == [
        ("a", "ok"),
        ("b", "failed" if given_up else "ok"),
        ("c", "failed"),
    ]
    assert written[0]["bin_mean"] == [1.0]


def test_a_row_that_does_not_fit_loses_what_does_not_or_its_array(layout: LmsLayout) -> None:
    for name in "abc":
        (layout.root / f"{name}.npy").touch()
    rows = [row("a", frames=1), row("b", frames=1, source_mtime_ns=2**63), row("c", frames=2**40)]
    assert append_records(layout, rows) == ["c.npy"]
    columns = ["status", "reason", "frames", "source_mtime_ns"]
    assert [list(found.values()) for found in read_records(layout, columns).to_pylist()] == [
        ["ok", None, 1, None],
        ["ok", None, 1, None],
        ["failed", "internal_error", None, None],
    ]
    assert "too large" in read_records(layout, ["message"])["message"][2].as_py()
    assert sorted(path.name for path in layout.root.glob("*.npy")) == ["a.npy", "b.npy"]


def test_names_that_are_no_text_are_written_escaped(layout: LmsLayout) -> None:
    append_records(layout, [row("a"), row("caf\udce9", "failed", reason="bad_name")])
    assert read_records(layout, ["source"])["source"].to_pylist() == ["a", "caf\\udce9"]


@pytest.mark.parametrize("reader", [read_records, lambda layout: pa.concat_tables(iter_records(layout, ["source"]))])
def test_readers_see_every_row_while_parts_are_merged(
    layout: LmsLayout, monkeypatch: pytest.MonkeyPatch, reader: Callable[[LmsLayout], pa.Table]
) -> None:
    for name in "abc":
        append_records(layout, [row(name)])
    require_parts, merged = records.require_parts, []

    def list_then_merge(found: LmsLayout) -> list[Path]:
        parts = require_parts(found)
        if not merged:
            merged.append(True)
            with monkeypatch.context() as patch:
                patch.setattr(records, "require_parts", require_parts)
                compact_records(found)
        return parts

    monkeypatch.setattr(records, "require_parts", list_then_merge)
    assert reader(layout)["source"].to_pylist() == ["a", "b", "c"]
    assert merged


def test_rows_that_are_being_read_stay_though_they_are_merged(layout: LmsLayout) -> None:
    for name in "abc":
        append_records(layout, [row(name)])
    tables = iter_records(layout, ["source"])
    first = next(tables)
    compact_records(layout)
    assert pa.concat_tables([first, *tables])["source"].to_pylist() == ["a", "b", "c"]


def test_records_of_earlier_versions_have_nulls_for_later_columns(layout: LmsLayout) -> None:
    append_records(layout, [row("a"), row("b")])
    (path,) = record_parts(layout)
    table = pq.read_table(path).drop_columns(["source_digest", "digest"]).replace_schema_metadata(None)
    pq.write_table(table, path)
    append_records(layout, [row("c")])
    for table in (read_records(layout), pa.concat_tables(iter_records(layout, RECORD_SCHEMA.names))):
        assert table.schema.names == RECORD_SCHEMA.names
        assert table["source_digest"].null_count == 3
    compact_records(layout)
    assert read_records(layout, ["source", "source_digest"]).num_rows == 3
