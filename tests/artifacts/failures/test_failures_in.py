"""What failed is read from everything that a command leaves behind, and shown in the same words."""

from __future__ import annotations

import csv
import inspect
import io
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from m2dprep.artifacts.errors import Failure, UserError
from m2dprep.artifacts.failures.reading import failures_in
from m2dprep.artifacts.failures.shown import chosen, first_lines, say_first_in, summary, write
from m2dprep.artifacts.layout import PACKED_FOLDER, LmsLayout
from m2dprep.artifacts.log_mels.pack import PACK_SCHEMA, finish_pack, shard_index_path, shard_path
from m2dprep.artifacts.log_mels.records import append_records
from m2dprep.artifacts.tables import write_parquet
from tests.cli.invocation import commands, refused, run

ODD = 'a "b", c\r\n<d>.wav'
A = Failure("a.wav", "empty", "the file has 0 bytes")
B = Failure(ODD, "truncated", "")


def a_table(path: Path, **columns: list[object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


def a_record(failure: Failure | None, source: str = "", **values: object) -> dict[str, object]:
    name = failure.file_name if failure is not None else source
    row: dict[str, object] = {"file_name": f"{name}.npy", "source": name, "clip_id": name, "status": "ok", **values}
    return row if failure is None else {**row, "status": "failed", "reason": failure.reason, "message": failure.message}


def records(folder: Path) -> Path:
    layout = LmsLayout(folder)
    layout.melspec.mkdir(parents=True)
    append_records(layout, [a_record(A), a_record(None, "good.wav"), a_record(B)])
    return folder


def audio_store(folder: Path) -> Path:
    a_table(
        folder / "failures.parquet", file=[A.file_name, ODD], reason=["empty", "truncated"], message=[A.message, ""]
    )
    return folder


def tags(path: Path) -> Path:
    return a_table(
        path, file_name=["good.wav", "a.wav", ODD], status=["ok", "failed", "failed"],
        reason=[None, "empty", "truncated"], message=[None, A.message, ""],
    )  # fmt: skip


def lines(path: Path) -> Path:
    rows = [
        {"file_name": "good.wav", "status": "ok", "tags": []},
        {"file_name": "a.wav", "status": "failed", "reason": "empty", "message": A.message},
        {"file_name": ODD, "status": "failed", "reason": "truncated", "message": ""},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def a_list(path: Path, name: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerows([(name, "reason", "message"), A, B])
    return path


def export(folder: Path) -> Path:
    a_list(folder / "_export" / "failures.csv", "source")
    return folder


def run_folder(folder: Path) -> Path:
    a_list(folder / "skipped.csv", "file_name")
    return folder


def result(path: Path) -> Path:
    path.write_text(json.dumps({"format": 1, "failures": [A._asdict(), B._asdict()]}))
    return path


MADE: list[tuple[str, Callable[[Path], Path]]] = [
    ("x_lms", records),
    ("store", audio_store),
    ("tags.parquet", tags),
    ("tags.jsonl", lines),
    ("shards", export),
    ("run", run_folder),
    ("result.json", result),
]


@pytest.mark.parametrize(("name", "make"), MADE, ids=lambda one: one if isinstance(one, str) else "")
def test_what_failed_is_read_from_everything(name: str, make: Callable[[Path], Path], tmp_path: Path) -> None:
    assert sorted(failures_in(make(tmp_path / name))) == sorted([A, B])


def test_a_data_directory_has_the_failures_of_its_folders(tmp_path: Path) -> None:
    records(tmp_path / "x_lms")
    assert sorted(failures_in(tmp_path)) == sorted([A, B])
    records(tmp_path / "y_lms")
    assert len(list(failures_in(tmp_path))) == 4
    assert {one.file_name.partition(": ")[0] for one in failures_in(tmp_path)} == {"x_lms", "y_lms"}


def packed(folder: Path, generation: int = 1) -> Path:
    """A pack that lacks A and B; one that replaces another has other names."""
    pack = folder / PACKED_FOLDER
    pack.mkdir(parents=True, exist_ok=True)
    rows = [{"file_name": one.file_name, "reason": one.reason, "message": one.message} for one in (A, B)]
    good = {"file_name": "good.wav.npy", "shard": 0, "start": 0, "frames": 3, "digest": "0"}
    write_parquet(shard_index_path(pack, 0, generation), pa.Table.from_pylist([good, *rows], schema=PACK_SCHEMA))
    shard_path(pack, 0, generation).write_bytes(b"frames")
    finish_pack(pack, 1, {"layout": "time-major", "dtype": "float32", "n_mels": 80, "config": None}, generation)
    return folder


@pytest.mark.parametrize("generation", [1, 2])
@pytest.mark.parametrize("given", ["x_lms", "x_lms/_packed", "."])
def test_what_a_pack_lacks_is_found_by_the_folder_and_by_the_pack(given: str, generation: int, tmp_path: Path) -> None:
    for number in range(generation):
        packed(tmp_path / "x_lms", number + 1)
    assert sorted(failures_in(tmp_path / given)) == sorted([A, B])


def test_what_a_pack_lacks_comes_after_what_was_not_converted(tmp_path: Path) -> None:
    packed(records(tmp_path / "x_lms"))
    for given in ("x_lms", "."):
        assert [one.reason for one in failures_in(tmp_path / given)] == ["empty", "truncated"] * 2


def test_a_pack_that_is_not_finished_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x_lms" / PACKED_FOLDER).mkdir(parents=True)
    refused(run("failures", tmp_path / "x_lms" / PACKED_FOLDER), 2, "no finished pack")
    assert list(failures_in(tmp_path / "x_lms")) == []


def test_a_source_whose_earlier_array_is_kept_has_failed(tmp_path: Path) -> None:
    layout = LmsLayout(tmp_path / "x_lms")
    layout.melspec.mkdir(parents=True)
    append_records(layout, [a_record(None, "a.wav", reason="kept", message="empty: the file has 0 bytes")])
    assert list(failures_in(layout.root)) == [Failure("a.wav", "kept", "empty: the file has 0 bytes")]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("nothing", None, "no such file or folder"),
        ("x.txt", "a", "suffix"),
        ("x.csv", "a,b\n1,2\n", "no column"),
        ("x.csv", "file_name,label\n1,2\n", "no column reason"),
        ("x.json", "{}", "no list 'failures'"),
        ("x.jsonl", '{"a": 1}\nnot json\n', "line 2"),
        ("x.parquet", "no parquet", "cannot be read"),
    ],
)
def test_what_lists_no_failures_is_refused(name: str, content: str | None, said: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=said):
        list(failures_in(tmp_path / name))
    refused(run("failures", tmp_path / name), 2, said)


def test_a_folder_without_lists_is_refused(tmp_path: Path) -> None:
    refused(run("failures", tmp_path), 2, "lists no failures")


def test_the_first_ten_are_said_and_where_the_others_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    many = [Failure(f"{n}.wav", "empty", "") for n in range(12)]
    assert first_lines(many, 12, "all are there")[-1] == "… and 2 more failures (all are there)"
    assert len(first_lines(many, 12, "")) == 11
    assert first_lines(many[:10], 10, "") == [f"failed: {n}.wav: empty" for n in range(10)]
    say_first_in(records(tmp_path / "x_lms"), 2)
    assert "failed: a.wav: empty, the file has 0 bytes" in capsys.readouterr().err
    say_first_in(tmp_path / "nothing", 0)
    assert capsys.readouterr().err == ""
    say_first_in(tmp_path / "nothing", 3)
    assert "cannot be listed" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["a\nb.wav", "a\r\nb.wav", "a\tb.wav", "a\x1b[2Jb.wav", "a\u2028b.wav", "a\u202eb.wav"]
)
def test_a_failure_is_one_line_whatever_its_name(name: str) -> None:
    failures = [Failure(name, "truncated", "it\nends"), A]
    for lines in (first_lines(failures, 2, ""), _lines(failures, "table")):
        assert len(lines) == 2
        assert all(line.isprintable() for line in lines)


def test_ordinary_names_are_shown_as_they_are() -> None:
    assert first_lines([Failure("ünï 雨.wav", "empty", "")], 1, "") == ["failed: ünï 雨.wav: empty"]


def _lines(failures: list[Failure], form: str) -> list[str]:
    lines: list[str] = []
    write(failures, form, lines.append)
    return lines


@pytest.mark.parametrize("form", ["csv", "json", "jsonl"])
@pytest.mark.parametrize("count", [0, 1, 2])
def test_forms_for_machines_can_be_read_back(form: str, count: int) -> None:
    given, said = [A, B][:count], list[str]()
    assert write(given, form, said.append).total() == count
    text = "\n".join(said)
    if form == "csv":
        rows = [tuple(row) for row in csv.reader(io.StringIO(text, newline=""))]
        assert rows == [Failure._fields, *map(tuple, given)]
        return
    found = json.loads(text) if form == "json" else [json.loads(line) for line in said]
    assert found == [one._asdict() for one in given]


def test_the_command_filters_by_reason_and_counts(tmp_path: Path) -> None:
    path = records(tmp_path / "x_lms")
    shown = run("failures", path, "--reason", "empty")
    assert shown.stdout == "a.wav  empty  the file has 0 bytes\n"
    assert shown.stderr == "1 failure: empty 1\n"
    assert len(run("failures", path, "--reason", "empty", "--reason", "truncated").stdout.splitlines()) >= 2
    assert run("failures", path, "--reason", "other").stdout == ""
    assert run("failures", path, "--json").stdout == run("failures", path, "--format", "json").stdout
    refused(run("failures", path, "--json", "--format", "csv"), 2, "exclude each other")
    assert list(chosen([A, B], [])) == [A, B]
    assert summary(write([], "table", print)) == "0 failures"


# Their failures are in what they print of a result.
IN_THE_RESULT = {"zero-shot", "evaluate zero-shot", "evaluate linear", "evaluate retrieval", "evaluate label-free",
                 "evaluate all", "evaluate tagging"}  # fmt: skip


def test_every_command_that_may_fail_in_part_prints_the_first_ten() -> None:
    may_fail = {
        name: inspect.getsource(inspect.unwrap(command.callback))
        for name, command in commands()
        if command.callback is not None and any("--max-failures" in one.opts for one in command.params)
    }
    assert {"melspec", "pack", "tag", "export webdataset", "evaluate prepare", "embed-audio"} <= set(may_fail)
    assert [name for name, text in may_fail.items() if "say_first" not in text and name not in IN_THE_RESULT] == []
