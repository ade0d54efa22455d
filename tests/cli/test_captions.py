"""The commands captions fill and captions add, from files to files, and on bad input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pyarrow as pa
import pytest
from click.testing import Result

from m2dprep.artifacts.tables import CAPTIONS_SCHEMA, read_captions, write_parquet
from m2dprep.captions import files
from tests.cli.invocation import refused, run

GROUP = ["fill", "add", "merge", "keywords", "check", "show", "training-list", "join-lists"]


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    (tmp_path / "balanced_train_segments.csv").write_text(
        '# one\n# two\n# YTID, start_seconds, end_seconds, positive_labels\nYaaaaaaaaa1, 0.000, 10.000, "/m/1"\n'
        'bbbbbbbbbb2, 30.000, 40.000, "/m/1,/m/2"\n'
    )
    (tmp_path / "eval_segments.csv").write_text('ccccccccc_3, 0.000, 10.000, "/m/2"\n')
    (tmp_path / "class_labels_indices.csv").write_text(
        'index,mid,display_name\n0,/m/1,Dog\n1,/m/2,"Male speech, man"\n'
    )
    (tmp_path / "ontology.json").write_text(
        '[{"id": "/m/1", "name": "Dog"}, {"id": "/m/2", "name": "Male speech, man"}]'
    )
    (tmp_path / "train.csv").write_text(
        'youtube_id,caption\nYaaaaaaaaa1_000000,"The caption could be: ""A dog barks."""\nnobody,x\n'
    )
    (tmp_path / "acalt4.csv").write_text(
        "youtube_id,caption1,caption2,caption3,caption4\nbbbbbbbbbb2,a,b,c,d\nno,w,x,y,z\n"
    )
    return tmp_path


def fill(tables: Path, *more: object) -> Result:
    lists = [word for name in ("balanced_train", "eval") for word in ("--segments", tables / f"{name}_segments.csv")]
    inputs = ("--ontology", tables / "ontology.json", "--auto-acd", tables / "train.csv", "-o", tables / "c.parquet")
    return run("captions", "fill", *lists, *inputs, *more)


def rows(path: Path) -> list[tuple[str, str, str, int, str | None]]:
    return [
        (row["clip_id"], row["caption"], row["source"], row["caption_index"], row["split"])
        for row in read_captions(path).to_pylist()
    ]


@pytest.mark.parametrize("option", ["--clotho", "--wavcaps", "--audiocaps", "--vggsound", "--csv", "--webdataset"])
def test_fill_names_the_command_that_reads_other_sets(tables: Path, option: str) -> None:
    result = fill(tables, option, tables / "train.csv")
    assert result.exit_code == 2
    assert f"m2dprep captions add FILLED {option} FILE" in result.stderr
    assert not (tables / "c.parquet").exists()


def test_fill_knows_no_option_that_nobody_has(tables: Path) -> None:
    assert "captions add" not in fill(tables, "--clothing", tables / "train.csv").stderr


@pytest.mark.parametrize("command", ["fill", "add"])
def test_a_stop_leaves_no_table_without_what_is_said_of_it(
    tables: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """Stopped while the table is written: the same command then writes both, and an old table never lacks its list."""
    unmatched, output = tables / "unmatched.csv", tables / "c.parquet"
    run_it = partial(fill, tables, "--unmatched", unmatched)
    if command == "add":
        fill(tables)
        output = tables / "d.parquet"
        more = ("--acalt4", tables / "acalt4.csv", "-o", output, "--unmatched", unmatched)
        run_it = partial(run, "captions", "add", tables / "c.parquet", *more)

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_assembly", stopped)
        assert run_it().exit_code == 130
    assert unmatched.exists()
    assert not output.exists()
    with monkeypatch.context() as patch:
        patch.setattr(files, "write_csv", stopped)
        assert run_it().exit_code == 130
    assert not output.exists()
    assert run_it().exit_code == 0
    unmatched.unlink()
    assert run_it().exit_code == 0  # the table is there, and its list is written again
    assert unmatched.exists()


def test_instead_leaves_out_what_other_sources_say_of_the_same_clips(tables: Path) -> None:
    (tables / "vggsound.csv").write_text("YXqu1CeA2c4,30,dog,train\n-bcdefghijk,0,cat,test\n")
    (tables / "acd.csv").write_text(
        "youtube_id,caption\nYXqu1CeA2c4_000030,A.\nY-bcdefghijk,B.\nYXqu1CeA2c4_000040,C.\n"
    )
    assert run("captions", "add", "--vggsound", tables / "vggsound.csv", "-o", tables / "v.parquet").exit_code == 0
    command = ("captions", "add", tables / "v.parquet", "--auto-acd", tables / "acd.csv", "--instead")
    result = run(*command, "-o", tables / "o.parquet", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["gave_way"] == 1
    assert "captions that gave way to these  1" in result.stderr
    assert rows(tables / "o.parquet") == [
        ("YXqu1CeA2c4_000030", "A.", "auto_acd", 0, None),
        ("-bcdefghijk_000000", "The sound of cat.", "vggsound", 0, None),
    ]
    alone = run("captions", "add", "--vggsound", tables / "vggsound.csv", "--instead", "-o", tables / "x.parquet")
    assert alone.exit_code == 2
    assert "--instead leaves out captions of CAPTIONS" in alone.stderr


def test_a_prefix_tells_the_clips_of_two_sets_apart(tables: Path) -> None:
    (tables / "audiocaps.csv").write_text("audiocap_id,youtube_id,start_time,caption\n1,-bcdefghijk,30,A.\n2,,3,B.\n")
    command = ("captions", "add", "--audiocaps", tables / "audiocaps.csv", "--id-prefix", "Y")
    result = run(*command, "-o", tables / "a.parquet")
    assert result.exit_code == 0, result.stderr
    assert rows(tables / "a.parquet") == [("Y-bcdefghijk", "A.", "audiocaps", 0, None)]
    assert "2 captions = 1 done + 0 skipped + 1 failed" in result.stderr


FILLED = [
    ("Yaaaaaaaaa1", "A dog barks.", "auto_acd", 0, "balanced_train"),
    ("bbbbbbbbbb2", "The sound of Dog, and Male speech, man.", "label", 0, "balanced_train"),
    ("ccccccccc_3", "The sound of Male speech, man.", "label", 0, "eval"),
]


def test_fill_then_add(tables: Path) -> None:
    result = fill(tables, "--unmatched", tables / "unmatched.csv")
    assert result.exit_code == 0, result.output
    assert rows(tables / "c.parquet") == FILLED
    assert result.stdout == f"{tables / 'c.parquet'}\n"
    assert "3 segments = 3 done + 0 skipped + 0 failed" in result.stderr
    assert (tables / "unmatched.csv").read_text() == '"source","id","caption"\n"auto_acd","nobody","x"\n'
    filled = (tables / "c.parquet").read_bytes()
    command = ["captions", "add", tables / "c.parquet", "--acalt4", tables / "acalt4.csv", "-o"]
    added = run(*command, tables / "more.parquet")
    assert added.exit_code == 0, added.output
    assert added.stdout == f"{tables / 'more.parquet'}\n"
    assert "8 captions = 4 done + 0 skipped + 4 failed" in added.stderr
    assert [row[:4] for row in rows(tables / "more.parquet")[2:6]] == [
        ("bbbbbbbbbb2", text, "acalt4", index) for index, text in enumerate("abcd", 1)
    ]
    assert "holds just that already" in fill(tables).stderr
    assert (tables / "c.parquet").read_bytes() == filled


INPUTS = ("c.parquet", "link.parquet", "sub/../c.parquet")


@pytest.mark.parametrize("output", INPUTS)
def test_no_command_of_captions_writes_to_its_input(tables: Path, output: str) -> None:
    """It is refused under every name of the input, even with --overwrite, and the error says what to do."""
    fill(tables)
    (tables / "sub").mkdir()
    (tables / "link.parquet").hardlink_to(tables / "c.parquet")
    before = (tables / "c.parquet").read_bytes()
    table = tables / "c.parquet"
    for command in (
        ["add", table, "--acalt4", tables / "acalt4.csv"],
        ["keywords", table, "--keyword-model", "x"],
        ["check", table, "--drop", "url"],
        ["merge", table],
    ):
        for more in ([], ["--overwrite"]):
            refused(run("captions", *command, "-o", tables / output, *more), 2, "is an input", "write to another file")
    assert (tables / "c.parquet").read_bytes() == before
    refused(fill(tables, "-o", tables / "train.csv"), 2, "is an input")


def test_fill_with_acalt4(tables: Path) -> None:
    fill(tables)
    run("captions", "add", tables / "c.parquet", "--acalt4", tables / "acalt4.csv", "-o", tables / "m.parquet")
    expected = (tables / "m.parquet").read_bytes()
    result = fill(tables, "--acalt4", tables / "acalt4.csv", "--overwrite", "--unmatched", tables / "unmatched.csv")
    assert result.exit_code == 0, result.output
    assert (tables / "c.parquet").read_bytes() == expected
    assert "3 segments = 3 done + 0 skipped + 0 failed" in result.stderr
    assert "8 captions = 4 done + 0 skipped + 4 failed" in result.stderr
    assert (tables / "unmatched.csv").read_text().splitlines()[1:] == ['"auto_acd","nobody","x"'] + [
        f'"acalt4","no","{text}"' for text in "wxyz"
    ]
    coverage = json.loads(fill(tables, "--acalt4", tables / "acalt4.csv", "--json").stdout)
    assert (coverage["captions"], coverage["added"]["used"]) == (7, 4)
    assert (tables / "c.parquet").read_bytes() == expected
    refused(fill(tables, "--acalt4", tables / "train.csv"), 2, "train.csv", "caption1")


def test_json_on_stdout(tables: Path) -> None:
    coverage = json.loads(fill(tables, "--json").stdout)
    assert coverage["captions_path"] == str(tables / "c.parquet")
    assert coverage["by_source"] == {"label": 2, "auto_acd": 1}
    assert coverage["source"]["unwrapped"] == 1
    assert coverage["source"]["ids_unmatched"] == 1
    assert coverage["segments"]["rows"] == 3
    command = ["captions", "add", tables / "c.parquet", "--acalt4", tables / "acalt4.csv", "-o", tables / "d.parquet"]
    added = json.loads(run(*command, "--json").stdout)
    assert (added["source"]["used"], added["captions_path"]) == (4, str(tables / "d.parquet"))


def test_labels_by_their_other_name_and_no_auto_acd(tables: Path) -> None:
    result = run(
        "captions", "fill", "--segments", tables / "eval_segments.csv", "--class-labels",
        tables / "class_labels_indices.csv", "--output", tables / "new" / "c.parquet",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "no --auto-acd" in result.stderr
    assert rows(tables / "new" / "c.parquet") == FILLED[2:]


def test_captions_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text("file_name,n,text\nrain.wav,1,It rains.\nsub/dog.wav,2,A dog barks.\n")
    command = ["captions", "add", "--csv", tmp_path / "mine.csv", "--source", "mine", "-o", tmp_path / "c.parquet"]
    refused(run(*command), 2, "which columns hold captions", "file_name, n, text")
    result = run(*command, "--caption-column", "text")
    assert result.exit_code == 0, result.output
    assert "mine.csv: ids from the column 'file_name', captions from 'text'." in result.stderr
    assert rows(tmp_path / "c.parquet") == [
        ("rain", "It rains.", "mine", 0, None),
        ("sub/dog", "A dog barks.", "mine", 0, None),
    ]
    (tmp_path / "mine.csv").write_text("file_name,n,text\nrain.wav,1,It pours.\nsub/dog.wav,2,A dog barks.\n")
    refused(run(*command, "--caption-column", "text"), 5, "c.parquet is there already", "--overwrite")
    assert run(*command, "--caption-column", "text", "--id-column", "file_name", "--overwrite").exit_code == 0
    assert [row[1] for row in rows(tmp_path / "c.parquet")] == ["It pours.", "A dog barks."]
    new = ["captions", "add", tmp_path / "c.parquet", *command[2:6], "--caption-column", "text", "-o"]
    refused(run(*new, tmp_path / "d.parquet"), 2, "'mine' are there already", "--replace")
    assert run(*new, tmp_path / "d.parquet", "--replace").exit_code == 0
    assert (tmp_path / "d.parquet").read_bytes() == (tmp_path / "c.parquet").read_bytes()


def test_fill_on_bad_input(tables: Path) -> None:
    (tables / "empty.csv").write_text("")
    (tables / "text.csv").write_text("some text\nof two lines\n")
    (tables / "no_match.csv").write_text("youtube_id,caption\nq,x\n")
    (tables / "folder").mkdir()
    bad = {
        ("--segments", tables / "missing.csv"): ("missing.csv: no such file",),
        ("--segments", tables / "folder"): ("folder is not a file",),
        ("--segments", tables / "text.csv"): ("text.csv", "line 1", "line 2"),
        ("--segments", tables / "empty.csv"): ("lists no segment",),
        ("--ontology", tables / "missing.json"): ("missing.json: no such file",),
        ("--ontology", tables / "text.csv"): ("no column mid, display_name",),
        ("--auto-acd", tables / "missing.csv"): ("missing.csv: no such file",),
        ("--auto-acd", tables / "acalt4.csv"): ("acalt4.csv is not Auto-ACD", "use --acalt4"),
        ("--auto-acd", tables / "text.csv"): ("no column youtube_id, caption",),
        ("--auto-acd", tables / "no_match.csv"): ("not one id of auto_acd",),
        ("-o", tables / "folder"): ("folder",),
    }
    for options, words in bad.items():
        refused(fill(tables, *options), 2, *words)
    refused(run("captions", "fill"), 2, "--segments")
    assert not (tables / "c.parquet").exists()
    assert not list(tables.glob(".m2dprep-*"))


def test_fill_over_other_captions(tables: Path) -> None:
    assert fill(tables).exit_code == 0
    (tables / "train.csv").write_text("youtube_id,caption\nbbbbbbbbbb2,Another.\n")
    refused(fill(tables), 5, "with other captions", "--overwrite")
    assert rows(tables / "c.parquet") == FILLED
    assert fill(tables, "--overwrite").exit_code == 0
    assert rows(tables / "c.parquet")[1][1] == "Another."


def test_add_on_bad_input(tables: Path) -> None:
    (tables / "no_match.csv").write_text("id,caption\nq,x\n")
    (tables / "broken.parquet").write_bytes(b"PAR1 and no more")
    write_parquet(tables / "columns.parquet", pa.table({"clip_id": ["a"]}))
    nullable = pa.schema([field.with_nullable(True) for field in CAPTIONS_SCHEMA])
    write_parquet(tables / "null.parquet", pa.Table.from_pylist([{"clip_id": None, "caption": "x"}], schema=nullable))
    assert fill(tables).exit_code == 0
    before = (tables / "c.parquet").read_bytes()
    table, csv = tables / "c.parquet", ["--csv", tables / "no_match.csv", "--source", "mine"]
    bad: list[tuple[list[object], tuple[str, ...]]] = [
        ([tables / "missing.parquet", "--acalt4", tables / "acalt4.csv"], ("missing.parquet: no such file",)),
        (["--acalt4", tables / "acalt4.csv"], ("AudioSet's clips", "give CAPTIONS, or --new-clips")),
        ([table, *csv, "-o", tables], ("is a folder",)),
        ([tables / "broken.parquet", *csv], ("broken.parquet cannot be read",)),
        ([tables / "columns.parquet", *csv], ("no column caption",)),
        ([tables / "null.parquet", *csv], ("null.parquet cannot be read", "clip_id", "null")),
        ([table, *csv], ("not one id of mine", "q")),
        ([table, "--csv", tables / "missing.csv", "--source", "mine"], ("missing.csv: no such file",)),
        ([table, "--acalt4", tables / "train.csv"], ("train.csv is not ACalt4", "use --auto-acd")),
        ([table], ("give one of --acalt4", "--csv")),
        ([table, *csv, "--acalt4", tables / "acalt4.csv"], ("give one of --acalt4", "--csv")),
        ([table, "--csv", tables / "no_match.csv"], ("--csv needs --source",)),
        ([table, "--acalt4", tables / "acalt4.csv", "--id-column", "x"], ("columns of its own",)),
        ([table, "--csv", tables / "no_match.csv", "--source", "a b"], ("cannot name a source",)),
    ]
    for words, messages in bad:
        refused(run("captions", "add", "-o", tables / "new.parquet", *words), 2, *messages)
    refused(run("captions", "add", table, *csv), 2, "Missing option '--output'")
    assert table.read_bytes() == before
    assert not (tables / "new.parquet").exists()
    assert not list(tables.glob(".m2dprep-*"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_permission(tables: Path) -> None:
    (tables / "train.csv").chmod(0)
    refused(fill(tables), 2, "train.csv", "Permission denied")


def test_help_is_quick_and_complete() -> None:
    """Help of these commands imports nothing heavy; every command shows two examples and its defaults."""
    code = (
        "import sys; import m2dprep.cli.captions, m2dprep.cli.embeddings;"
        "print(sorted({'torch', 'pyarrow', 'numpy', 'pandas', 'sentence_transformers'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
    groups = [["captions", name] for name in GROUP]
    for command in (*groups, ["embed-captions"], ["embeddings", "export", "m2d"], ["embeddings", "export", "parquet"]):
        for flag in ("-h", "--help"):
            shown = run(*command, flag)
            assert shown.exit_code == 0
            assert shown.output.count(f"m2dprep {' '.join(command)}") >= 2
    assert "[default: thenlper/gte-base]" in " ".join(run("embed-captions", "-h").output.split())


def test_options_of_fill(tables: Path) -> None:
    (tables / "list.txt").write_text("Yccccccccc_3\n")
    result = fill(
        tables, "--match-start", "--debias", "--template", "{label}", "--template-many", "{labels}",
        "--exclude", tables / "list.txt",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert [row[:2] for row in rows(tables / "c.parquet")] == [
        ("Yaaaaaaaaa1", "A dog barks."),
        ("bbbbbbbbbb2", "Dog, Male speech, person"),
    ]
    assert f"excluded by {tables / 'list.txt'}  1 (1 names, 0 of no clip)" in result.stderr
    assert "3 segments = 2 done + 1 skipped + 0 failed" in result.stderr
    refused(fill(tables, "--match-start", "--rules", "m2d_compat"), 2, "knows no start seconds")
    refused(fill(tables, "--template", "{x}"), 2, "{label} once")
    assert fill(tables, "--overwrite", "--template", "laion").exit_code == 0
    assert rows(tables / "c.parquet")[1][1] == "The sounds of Dog and Male speech, man"
    assert fill(tables, "--overwrite", "--rules", "m2d_compat").exit_code == 0
    # the original strips the Y of a VGGSound id, and this caption is lost
    assert rows(tables / "c.parquet")[0][1] == "The sound of Dog."


def test_evaluation_clips_are_announced_and_leave_the_training_list(tables: Path) -> None:
    assert "1 clips of eval_segments have captions too" in fill(tables).stderr
    listed = "file_name\nlms/Yaaaaaaaaa1.npy\nlms/ccccccccc_3.npy\n"
    (tables / "files_a.csv").write_text(listed)
    command = ["captions", "training-list", tables / "files_a.csv", tables / "c.parquet"]
    result = run(*command)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{tables / 'train_a.csv'}\n"
    assert "left out as of eval_segments: 1" in result.stderr
    assert "2 files = 1 done + 1 skipped + 0 failed" in result.stderr
    assert (tables / "train_a.csv").read_text() == "file_name\nlms/Yaaaaaaaaa1.npy\n"
    assert (tables / "files_a.csv").read_text() == listed
    assert "holds just that already" in run(*command).stderr
    refused(run(*command, "--keep-eval"), 5, "train_a.csv is there already", "--overwrite")
    assert run(*command, "--keep-eval", "--overwrite").exit_code == 0
    assert (tables / "train_a.csv").read_text() == listed
    (tables / "train_a.csv").write_text(f"{listed}lms/by_hand.npy\n")
    refused(run(*command, "--keep-eval"), 5, "train_a.csv is there already")
    elsewhere = run(*command, "-o", tables / "mine.csv")
    assert f"give it --files {tables / 'mine.csv'}" in elsewhere.stderr
    for name in ("files_a.csv", "files_b.csv", "./files_clean.csv"):
        refused(run(*command, "-o", tables / name, "--overwrite"), 2, name.removeprefix("./"), "train_a.csv")
    assert (tables / "files_a.csv").read_text() == listed


def test_sources_of_clips_of_their_own(tables: Path) -> None:
    assert fill(tables).exit_code == 0
    (tables / "fsd_final.json").write_text('{"data": [{"id": "7", "caption": "Rain."}]}')
    add = ["captions", "add", tables / "c.parquet", "--wavcaps", tables / "fsd_final.json", "-o", tables / "w.parquet"]
    refused(run(*add), 2, "not one id")
    result = run(*add, "--new-clips")
    assert result.exit_code == 0, result.output
    assert rows(tables / "w.parquet")[-1] == ("FreeSound/7", "Rain.", "wavcaps", 0, None)
    (tables / "m.csv").write_text("n,caption\nset_8.wav,Wind.\n")
    command = ["captions", "add", "--csv", tables / "m.csv", "--source", "mine", "-o", tables / "m.parquet"]
    assert run(*command, "--id-pattern", r"_(\d)").exit_code == 0
    output = tables / "all.parquet"
    merged = run("captions", "merge", tables / "w.parquet", tables / "m.parquet", "-o", output, "--json")
    assert json.loads(merged.stdout)["by_source"] == {"label": 2, "auto_acd": 1, "mine": 1, "wavcaps": 1}
    assert rows(output)[-1] == ("8", "Wind.", "mine", 0, None)
    shown = run("captions", "show", output, "FreeSound/7")
    assert shown.stdout.splitlines() == ["FreeSound/7", "  0  wavcaps      Rain."]
    assert json.loads(run("captions", "show", output, "8", "--json").stdout)[0]["caption"] == "Wind."
    refused(run("captions", "show", output, "9"), 2, "no captions of '9'")


def test_check(tables: Path) -> None:
    (tables / "m.csv").write_text("n,caption\na,See www.x.com\na,A dog.\n")
    table = tables / "m.parquet"
    assert run("captions", "add", "--csv", tables / "m.csv", "--source", "mine", "-o", table).exit_code == 0
    before = table.read_bytes()
    result = run("captions", "check", table)
    assert result.exit_code == 0
    assert "url                     1" in result.stdout
    assert "2 captions = 2 done + 0 skipped + 0 failed; 1 with findings" in result.stderr
    refused_words = run("captions", "check", table, "--strict", "--rule", "url")
    assert (refused_words.exit_code, "1 findings" in refused_words.stderr) == (4, True)
    assert run("captions", "check", table, "--strict", "--rule", "refusal").exit_code == 0
    refused(run("captions", "check", table, "--rule", "x"), 2, "no rule x")
    refused(run("captions", "check", table, "--max-tokens", "3"), 2, "needs --text-model")
    clean = tables / "clean.parquet"
    refused(run("captions", "check", table, "--drop", "too_long", "-o", clean), 2, "needs --text-model")
    refused(run("captions", "check", table, "--output", "x"), 2, "--drop and --output go together")
    refused(run("captions", "check", table, "--drop", "url"), 2, "--drop and --output go together")
    drop = ["captions", "check", table, "--drop", "url", "--strict", "-o", clean]
    assert json.loads(run(*drop, "--json").stdout)["dropped"] == 1
    assert rows(clean) == [("a", "A dog.", "mine", 0, None)]
    assert "holds just that already" in run(*drop).stderr
    refused(run("captions", "check", table, "--drop", "near_duplicate", "-o", clean), 5, "--overwrite")
    assert run("captions", "check", table, "--drop", "near_duplicate", "-o", clean, "--overwrite").exit_code == 0
    assert len(rows(clean)) == 2
    assert table.read_bytes() == before


def test_keywords(tables: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A function makes the sentences here; another test covers the model."""
    from m2dprep.captions.keywords import KeywordModel

    monkeypatch.setattr(KeywordModel, "__init__", lambda self, name, device: None)
    monkeypatch.setattr(KeywordModel, "sentences", lambda self, inputs: [f"A man hears {text}." for text in inputs])
    assert fill(tables).exit_code == 0
    out = tables / "k.parquet"
    command = ["captions", "keywords", tables / "c.parquet", "--keyword-model", "x", "--source", "k2t", "-o", out]
    result = run(*command, "--debias", "--separator", "+", "--batch-size", "1", "--work", tables / "work")
    assert result.exit_code == 0, result.output
    assert "3 inputs = 3 done + 0 skipped + 0 failed" in result.stderr
    texts = [row[1] for row in rows(out) if row[2] == "k2t"]
    assert texts[0] == "A person hears Dog."
    assert len(list((tables / "work").glob("part-*.parquet"))) == 3
    written = out.read_bytes()
    again = run(*command, "--debias", "--separator", "+", "--batch-size", "1", "--work", tables / "work")
    assert (again.exit_code, out.read_bytes()) == (0, written), again.output
    assert "3 inputs = 0 done + 3 skipped + 0 failed" in again.stderr
    other = [*command, "--separator", "+", "--batch-size", "1", "--work", tables / "work"]  # without --debias
    refused(run(*other), 5, "k.parquet is there already, with other captions")
    replaced = run(*other, "--overwrite")
    assert replaced.exit_code == 0
    assert "3 inputs = 0 done + 3 skipped + 0 failed" in replaced.stderr, "the same sentences are not made again"
    once_more = ["captions", "keywords", out, "--keyword-model", "x", "--source", "k2t", "-o", tables / "l.parquet"]
    refused(run(*once_more), 2, "'k2t' are there already")
    assert run(*once_more, "--replace").exit_code == 0
    assert (tables / "l.parquet.k2t" / "meta.json").exists()
    refused(run(*once_more, "--replace", "--separator", " "), 5, "separator")
    assert run(*once_more, "--replace", "--separator", " ", "--overwrite").exit_code == 0


def test_ids_that_begin_with_a_dash_need_a_hint(tables: Path) -> None:
    assert fill(tables).exit_code == 0
    table = tables / "c.parquet"
    for clip in ("-abcdefghij", "--bcdefghij", "-hbcdefghij", "--json-abcd"):
        refused(
            run("captions", "show", table, clip), 2, f"no option {clip}", f"m2dprep captions show {table} -- {clip}"
        )
        refused(run("captions", "show", table, "--", clip), 2, f"no captions of '{clip}'")
    assert run("captions", "show", "-h").exit_code == run("captions", "show", "--help").exit_code == 0
    assert json.loads(run("captions", "show", table, "--json", "bbbbbbbbbb2").stdout)
    refused(run("captions", "show", table), 2, "Missing argument")


def test_a_caption_is_shown_for_its_clip_only(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text("file_name,caption\ndog/001.flac,a dog barks\nrain.flac,it rains\n")
    table = tmp_path / "c.parquet"
    assert run("captions", "add", "--csv", tmp_path / "mine.csv", "--source", "mine", "-o", table).exit_code == 0
    for name in ("dog/001", "dog/001.flac", "./dog/001.wav", "data/sc_lms/dog/001.npy", "audio/dog/001.flac"):
        assert "a dog barks" in run("captions", "show", table, name).stdout
    for name in ("cat/001.flac", "001", "001.flac", "sc_lms/cat/001.npy"):
        refused(
            run("captions", "show", table, name),
            2,
            f"no captions of '{name}'; clips of that name in other folders: 'dog/001'",
        )
    refused(run("captions", "show", table, "snow"), 2, "no captions of 'snow'.")


def test_exclusions_of_every_command_say_what_they_did(tables: Path) -> None:
    """The typical case: WavCaps' blacklist, and arrays in the folders of its parts."""
    (tables / "black.json").write_text('{"FreeSound": ["117790"]}')
    (tables / "none.tsv").write_text("file_name\tx\nnobody.wav\t1\nsomebody.wav\t2\n")
    parts = [f"w_lms/{part}/117790.npy" for part in ("FreeSound", "SoundBible")]
    (tables / "files_w.csv").write_text("\n".join(["file_name", *parts]) + "\n")
    entries = [{"id": "117790", "caption": "x"}, {"id": "2", "caption": "y"}]
    (tables / "fsd_final.json").write_text(json.dumps({"data": entries}))
    out = ["--exclude", tables / "black.json", "--exclude", tables / "none.tsv"]
    said = (
        f"{tables / 'none.tsv'} was read as a table with tabs, its column 'file_name'.",
        f"0 of 2 names in {tables / 'none.tsv'} are those of a",
    )
    added = run("captions", "add", "--wavcaps", tables / "fsd_final.json", "-o", tables / "w.parquet", *out)
    assert added.exit_code == 0, added.output
    assert [row[0] for row in rows(tables / "w.parquet")] == ["FreeSound/2"]
    listed = run("captions", "training-list", tables / "files_w.csv", tables / "w.parquet", *out)
    assert listed.exit_code == 0, listed.output
    assert (tables / "train_w.csv").read_text().splitlines()[1:] == parts[1:]
    assert f"excluded by {tables / 'black.json'}: 1 (1 names, 0 of no clip)" in listed.stderr
    merged = run(
        "captions", "merge", tables / "w.parquet", "-o", tables / "m.parquet", "--exclude", tables / "none.tsv"
    )
    filled = fill(tables, "--exclude", tables / "none.tsv")
    for result in (added, listed, merged, filled):
        assert result.exit_code == 0, result.output
        assert all(line in result.stderr for line in said)


def test_a_command_that_was_killed_after_its_last_rename_is_done_when_it_is_given_again(
    tables: Path, tmp_path: Path
) -> None:
    """The command cannot know whether it had finished; it succeeds if the table equals its own result."""
    assert fill(tables).exit_code == 0
    (tmp_path / "mine.csv").write_text("id,caption\n" + "".join(f"{row[0]},It rains.\n" for row in FILLED[:2]))
    (tmp_path / "new.csv").write_text("id,caption\nelsewhere,It pours.\nelsewhere,It pours.\n")
    filled, table, more = (tables / f"{name}.parquet" for name in "cde")
    other, merged = tmp_path / "other.parquet", tmp_path / "merged.parquet"
    add = ["captions", "add"]
    for output, command in (
        (table, [*add, filled, "--csv", tmp_path / "mine.csv", "--source", "mine", "--new-clips", "-o", table]),
        (more, [*add, table, "--csv", tmp_path / "new.csv", "--source", "new", "--new-clips", "-o", more]),
        (other, [*add, "--csv", tmp_path / "new.csv", "--source", "other", "-o", other]),
        (merged, ["captions", "merge", table, other, "-o", merged]),
    ):
        first = run(*command, "--json")
        assert first.exit_code == 0, first.output
        written = output.stat().st_mtime_ns, output.read_bytes()
        again = run(*command, "--json")
        assert again.exit_code == 0, again.output
        assert (output.stat().st_mtime_ns, output.read_bytes()) == written
        assert "stays as it is" in again.stderr
        assert "stays as it is" not in first.stderr
        first, again = json.loads(first.stdout), json.loads(again.stdout)
        assert {**first, "changed": False} == {**again, "changed": False}
    (tmp_path / "mine.csv").write_text(f"id,caption\n{FILLED[0][0]},It rains.\n")
    refused(run(*add, filled, "--csv", tmp_path / "mine.csv", "--source", "mine", "-o", table), 5, "--overwrite")
    refused(run("captions", "merge", table, more, "-o", merged), 5, "--overwrite")
