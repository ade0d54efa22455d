"""Exclusion lists: every form of a list, with every command that takes one, by the same rule; other files are
refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.tables import CAPTIONS_SCHEMA, read_captions, read_file_list, write_captions, write_file_list
from m2dprep.captions.build import AddOptions, FillOptions
from m2dprep.captions.files import add_file, fill_file, merge_files
from m2dprep.captions.sources.exclusion import ExclusionList, keep_clips, read_exclusion
from m2dprep.captions.sources.readers import CAPTION_ROWS
from m2dprep.captions.training_list import write_training_list

ID = "YXqu1CeA2c4"
# A list names each of these; the clips in the same folders, but named otherwise, are to stay.
OUT = ["FreeSound/117790", ID, "Ambience_ rain_", "dog/001", "blues.00000", "a, b"]
STAY = ["SoundBible/117790", "Xqu1CeA2c4_", "Ambience", "cat/001", "blues.00001", "a"]
NAMES = [
    "FreeSound/117790.flac",
    f"Y{ID}_30.000.wav",
    " Ambience: rain?.wav",
    "./dog/001.wav",
    "blues.00000.au",
    "a, b.wav",
]
IN_COLUMNS = [f'"{name}"' if "," in name else name for name in NAMES]


def table(path: Path, **columns: list[str]) -> None:
    pq.write_table(pa.table(columns), path)


def captions_of(clips: list[str]) -> pa.Table:
    rows = [
        {"clip_id": clip, "caption": clip, "source": "s", "caption_index": 0, "split": None, "labels": None}
        for clip in clips
    ]
    return pa.Table.from_pylist(rows, schema=CAPTIONS_SCHEMA)


FORMS: dict[str, Callable[[Path], object]] = {
    "text": lambda path: path.write_text("# evaluation\n\n" + "\n".join(NAMES) + "\n"),
    "text of Windows": lambda path: path.write_bytes("\r\n".join(["\ufeff" + NAMES[0], *NAMES[1:]]).encode()),
    "text in quotes": lambda path: path.write_text("\n".join(f'"{name}"' for name in NAMES)),
    "CSV": lambda path: path.write_text("n,File_Name\n" + "".join(f"1,{name}\n" for name in IN_COLUMNS)),
    "CSV that pandas wrote": lambda path: path.write_text(",fname\n" + "".join(f"1,{name}\n" for name in IN_COLUMNS)),
    "CSV without a header": lambda path: path.write_text("".join(f"{name},x\n" for name in IN_COLUMNS)),
    "one column": lambda path: path.write_text("filename\n" + "\n".join(IN_COLUMNS)),
    "tabs": lambda path: path.write_text("file_name\tlabel\n" + "".join(f"{name}\tx\n" for name in NAMES)),
    "tabs without a header": lambda path: path.write_text("".join(f"{name}\tx\n" for name in NAMES)),
    "semicolons": lambda path: path.write_text("id;label\n" + "".join(f"{name};x\n" for name in NAMES)),
    "JSON": lambda path: path.write_text(json.dumps(NAMES)),
    "JSON of WavCaps": lambda path: path.write_text(json.dumps({"AudioSet": NAMES[1:], "FreeSound": ["117790"]})),
    "JSON with numbers": lambda path: path.write_text(json.dumps({"AudioSet": NAMES[1:], "FreeSound": [117790]})),
    "Parquet": lambda path: table(path, file_name=NAMES),
    "captions.parquet": lambda path: write_captions(path, captions_of(OUT)),
    "a training list": lambda path: write_file_list(path, [f"other_lms/{clip}.npy" for clip in OUT]),
}


def by_training_list(folder: Path, out: ExclusionList) -> list[str]:
    files = [f"w_lms/{clip}.npy" for clip in (*OUT, *STAY)]
    files[OUT.index(ID)] = f"w_lms/deep/Y{ID}_30.000.npy"
    files[OUT.index("Ambience_ rain_")] = "w_lms/ Ambience_ rain_.npy"
    write_file_list(folder / "files_w.csv", files)
    write_captions(folder / "c.parquet", captions_of([*OUT, *STAY]))
    write_training_list(folder / "files_w.csv", folder / "c.parquet", folder / "train_w.csv", [out])
    return [name.removeprefix("w_lms/").removesuffix(".npy") for name in read_file_list(folder / "train_w.csv")]


def by_merge(folder: Path, out: ExclusionList) -> list[str]:
    write_captions(folder / "c.parquet", captions_of([*OUT, *STAY]))
    merge_files([folder / "c.parquet"], folder / "m.parquet", [out])
    return read_captions(folder / "m.parquet")["clip_id"].to_pylist()


def by_add(folder: Path, out: ExclusionList) -> list[str]:
    rows = [{"id": name, "caption": "x"} for name in (*NAMES, *STAY)]
    rows = pa.Table.from_pylist(rows, schema=CAPTION_ROWS)
    add_file(None, rows, "s", folder / "c.parquet", options=AddOptions(exclude=(out,)))
    return read_captions(folder / "c.parquet")["clip_id"].to_pylist()


def by_fill(folder: Path, out: ExclusionList) -> list[str]:
    lines = [f'{clip.replace(",", "")}, 0, 10, "/m/1"\n' for clip in (*OUT, *STAY)]
    (folder / "list.csv").write_text("".join(lines))
    (folder / "labels.csv").write_text("index,mid,display_name\n0,/m/1,One\n")
    names = tuple(name.replace("a, b", "a b") for name in out.names)
    options = FillOptions(exclude=(ExclusionList(out.path, names),))
    fill_file(folder / "c.parquet", [folder / "list.csv"], folder / "labels.csv", None, options=options)
    return read_captions(folder / "c.parquet")["clip_id"].to_pylist()


COMMANDS = {"training-list": by_training_list, "merge": by_merge, "add": by_add, "fill": by_fill}


@pytest.mark.slow
@pytest.mark.parametrize("form", list(FORMS))
@pytest.mark.parametrize("command", list(COMMANDS))
def test_every_form_with_every_command(tmp_path: Path, form: str, command: str) -> None:
    FORMS[form](tmp_path / "list")
    left = COMMANDS[command](tmp_path, read_exclusion(tmp_path / "list"))
    assert sorted(left) == sorted(STAY)


@pytest.mark.parametrize("listed", [False, True])
def test_an_exclusion_takes_every_clip_that_a_name_may_mean(listed: bool) -> None:
    clips = ["dog/001", "cat/001", "002", f"{ID}_000010", f"{ID}_000020", "x/dog/003"]
    names = pa.array([f"l/{clip}.npy" for clip in clips] if listed else clips)
    out = {
        "001": [0, 1],  # a name without a folder is that of a clip in any
        "dog/001": [0],
        "y/dog/002.wav": [2],  # and a clip without a folder may be any of that name
        f"Y{ID}": [3, 4],  # a video with all its clips
        f"{ID}_000030": [3, 4],
        "dog/003": [5],
        "cat/003": [],
    }
    for name, rows in out.items():
        keep, [counts] = keep_clips(names, [ExclusionList("list", (name,))], listed=listed)
        assert [row for row, stays in enumerate(keep.tolist()) if not stays] == rows, name
        assert (counts.removed, counts.names_without_clip) == (len(rows), int(not rows))


def test_a_list_that_excludes_nothing_says_so_in_a_line_of_its_own() -> None:
    _, [counts] = keep_clips(pa.array(["a"]), [ExclusionList("list", ("b", "c"), "a table with tabs")])
    assert counts.lines("a clip") == [
        "list was read as a table with tabs.",
        "0 of 2 names in list are those of a clip: nothing was excluded by it.",
    ]
    _, [counts] = keep_clips(pa.array(["a"]), [ExclusionList("list", ("a", "c"))])
    assert counts.lines("a clip") == []


READ = {
    "comments before the first name": ("# a\n\n#b\nc\n", ["c"]),
    "a name with a number sign": ("a\n#b\n", ["a", "#b"]),
    "a comment in a table": ("clip_id\na\n#b\n", ["a", "#b"]),
    "names with commas": ("dog, barking.wav\ncat, purring.wav\n", ["dog, barking.wav", "cat, purring.wav"]),
    "names with commas after the first": ("a\nb, c\n", ["a", "b, c"]),
    "a segment list": ('# YTID, x\n-aaaaaaaaaa, 30.000, 40.000, "/m/1,/m/2"\nb, 1, 2, "/m/1"\n', ["-aaaaaaaaaa", "b"]),
    "a table of file names twice": ("a.wav,b.wav\nc.wav,d.wav\n", ["a.wav", "c.wav"]),
    "quotes of CSV": ('file_name\n"a ""b"".wav"\n', ['a "b".wav']),
    "white space at the ends of a name": (" a.wav\nb \n", [" a.wav", "b "]),
}


@pytest.mark.parametrize("name", list(READ))
def test_names_stay_as_they_stand(tmp_path: Path, name: str) -> None:
    content, names = READ[name]
    (tmp_path / "list").write_text(content)
    assert list(read_exclusion(tmp_path / "list").names) == names


REFUSED = {
    "a quote that is never closed": ('file_name,x\na,1\n"b,2\nc,3\n', "line 3: a quote is opened and not closed"),
    "a quote that swallows rows": ('file_name,x\na,"1\nb,"2"\nc,3\n', "line 2: a quote is opened"),
    "the same without a header": ('a.wav,"1\nb.wav,"2"\nc.wav,3\n', "line 1: a quote is opened"),
    "a quote among lines": ('a\n"b\nc\n', "line 2: '\"b'"),
    "two quotes that swallow rows": ('file_name,x\n"a,1\nb",2\n', "holds a line break"),
    "tabs among lines": ("a\nb\tc\n", r"line 2: 'b\\tc'"),
    "rows of several lengths": ("a,1\nb\n", "line 2: 1 columns, not 2"),
    "a header twice": ("clip_id,clip_id\na,b\n", "'clip_id' more than once"),
    "NUL": ("a\nb\0\n", "line 2"),
    "half a character": ('["a", "\\ud83d"]', r"half a character .* in \[1\]"),
    "a number of thousands of digits": (f"[{'1' * 5000}]", "JSON"),
    "a truth": ('{"FreeSound": ["1", true]}', "entry 2 under 'FreeSound' is no name"),
    "no list": ('{"FreeSound": "1"}', "a list of names was expected under 'FreeSound'"),
    "UTF-16": ("a\n".encode("utf-16"), "is UTF-16"),
    "Latin-1": ("caf\u00e9".encode("latin-1"), "list:1 is not UTF-8"),
    "comments only": ("# a\n#b", "names no clip"),
    "a table without rows": ("clip_id\n", "names no clip"),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_what_is_no_list_is_refused(tmp_path: Path, name: str) -> None:
    content, message = REFUSED[name]
    (tmp_path / "list").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=f"list.*{message}" if name != "Latin-1" else message):
        read_exclusion(tmp_path / "list")


def test_parquet_without_names(tmp_path: Path) -> None:
    table(tmp_path / "list", caption=["a"])
    with pytest.raises(UserError, match=r"none of the columns clip_id, .*; it has caption"):
        read_exclusion(tmp_path / "list")
    pq.write_table(pa.table({"clip_id": pa.array([b"\xff"]).view(pa.binary()).cast(pa.binary())}), tmp_path / "list")
    with pytest.raises(UserError, match="cannot be read as a list of clips"):
        read_exclusion(tmp_path / "list")


def test_evaluation_clips_do_not_slip_through_a_shared_reading(tmp_path: Path) -> None:
    """When captions are paired, neither file gets the clip's; both stay out of training."""
    rows = captions_of(["001", "002"]).to_pylist()
    rows[0]["split"] = "eval"
    write_captions(tmp_path / "c.parquet", pa.Table.from_pylist(rows, schema=CAPTIONS_SCHEMA))
    write_file_list(tmp_path / "files_w.csv", ["w_lms/dog/001.npy", "w_lms/cat/001.npy", "w_lms/cat/002.npy"])
    counts = write_training_list(tmp_path / "files_w.csv", tmp_path / "c.parquet", tmp_path / "train_w.csv")
    assert (counts.kept, counts.of_eval_segments) == (1, 2)
    assert read_file_list(tmp_path / "train_w.csv") == ["w_lms/cat/002.npy"]
