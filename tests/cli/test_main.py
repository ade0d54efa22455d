"""The command line as a whole: quick help, examples, exit codes, and a clear line for every bad request."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from m2dprep.cli.main import m2dprep
from tests.cli.invocation import commands

HEAVY = ["torch", "sentence_transformers", "pandas", "pyarrow", "librosa", "distributed", "numpy", "scipy"]


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from m2dprep.cli.main import main\n"
        f"try: main()\nfinally: print([m for m in {HEAVY} if m in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    shown = subprocess.run(
        [sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=True, env=environment
    )
    assert "zero-shot" in shown.stdout
    assert shown.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(("name", "command"), list(commands()), ids=str)
def test_every_command_has_help_with_two_examples_and_described_options(name: str, command: click.Command) -> None:
    for invoked, arguments in (
        (command, ["-h"]),
        (m2dprep, [*name.split(), "-h"]),
        (m2dprep, [*name.split(), "--help"]),
    ):
        result = CliRunner().invoke(invoked, arguments)
        assert result.exit_code == 0, result.output
    assert "Examples:" in result.stdout
    called = "embed-captions" if name == "embeddings encode" else name  # its other name
    assert len(re.findall(rf"^ +m2dprep {called}\b", result.stdout, re.MULTILINE)) >= 2


@pytest.mark.parametrize(("name", "command"), list(commands()), ids=str)
def test_an_empty_path_is_refused_everywhere(name: str, command: click.Command) -> None:
    for parameter in command.params:
        if isinstance(parameter.type, click.Path):
            with pytest.raises(click.BadParameter, match="an empty path"):
                parameter.type.convert("", parameter, None)
            result = CliRunner().invoke(
                m2dprep,
                [*name.split(), parameter.opts[0], ""] if isinstance(parameter, click.Option) else [*name.split(), ""],
            )
            assert result.exit_code == 2
            assert "empty path" in result.stderr or "Missing" in result.stderr


@pytest.mark.parametrize("group", ["captions", "embeddings", "embeddings export"])
def test_groups_have_examples_too(group: str) -> None:
    result = CliRunner().invoke(m2dprep, [*group.split(), "-h"])
    assert len(re.findall(rf"^ +m2dprep {group} \w+", result.stdout, re.MULTILINE)) >= 2


def test_version_and_unknown_commands() -> None:
    assert re.search(r"m2dprep, version \d+\.\d+\.\d+", CliRunner().invoke(m2dprep, ["--version"]).stdout)
    unknown = CliRunner().invoke(m2dprep, ["melspecs"])
    assert unknown.exit_code == 2
    assert "No such command" in unknown.output


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "converted_lms" / "_melspec").mkdir(parents=True)
    (tmp_path / "a_file").write_text("some text\n")
    (tmp_path / "table.csv").write_text("name,text\n1,2\n")
    (tmp_path / "segments.csv").write_text('# a\n# b\n# YTID\nabcdefghijk, 0.000, 10.000, "/m/1"\n')
    (tmp_path / "ontology.json").write_text(json.dumps([{"id": "/m/1", "name": "Dog"}]))
    (tmp_path / "clips.csv").write_text("file_name,label\nx.wav,dog\ny.wav,cat\n")
    (tmp_path / "x.wav").touch()
    (tmp_path / "arrays.csv").write_text("file_name\nx_lms/a.npy\n")
    return tmp_path


BAD_REQUESTS = [
    ("melspec missing out", "missing: no such folder"),
    ("melspec empty out", "no audio files"),
    ("melspec a_file out", "is not a folder"),
    ("melspec empty out --max-failures many", "--max-failures"),
    ("melspec empty out --preset 44k", "44k"),
    ("melspec nosuch://bucket/wavs out", "nosuch://bucket/wavs is no address that fsspec reads"),
    ("melspec empty gs://bucket/x_lms", "is an address, not a path"),
    ("melspec empty out --files arrays.csv", "lists arrays (x_lms/a.npy, …), not the audio files to convert"),
    (
        "melspec empty out --files table.csv",
        "no column source, file_name or path (the list of sources); it has name, text",
    ),
    ("melspec empty out --files https://host/list.csv", "is an address, not a path"),
    ("train hf://datasets/x/y -o run", "is an address, not a path"),
    ("check converted_lms", "check the data directory that it lies in"),
    ("stats missing", "missing: no such folder"),
    ("stats empty", "m2dprep melspec"),
    ("captions fill --segments missing.csv --ontology ontology.json -o c.parquet", "missing.csv"),
    ("captions fill --segments segments.csv --ontology table.csv -o c.parquet", "table.csv"),
    ("captions fill --segments segments.csv --ontology ontology.json --auto-acd table.csv -o c.parquet", "youtube_id"),
    ("captions fill --segments table.csv --ontology ontology.json -o c.parquet", "table.csv"),
    ("captions add c.parquet --acalt4 table.csv -o d.parquet", "table.csv has no column youtube_id"),
    ("captions add a_file --csv table.csv --source x --caption-column text -o d.parquet", "a_file"),
    ("captions add c.parquet --csv table.csv -o d.parquet", "--source"),
    ("embed-captions missing.parquet store", "missing.parquet"),
    ("embed-captions a_file store", "a_file"),
    ("train missing -o run", "missing"),
    ("train empty -o run", "empty"),
    ("train empty", "--output"),
    ("zero-shot missing.pth clips.csv", "missing.pth"),
    ("zero-shot a_file clips.csv", "a_file"),
    ("zero-shot empty clips.csv", "empty"),
    ("check missing", "missing: no such folder"),
    ("check empty", "holds no file list"),
    ("embeddings export m2d missing out.npy", "missing"),
    ("embeddings export m2d empty out.npy", "meta.json"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("line", "message"), BAD_REQUESTS, ids=[line for line, _ in BAD_REQUESTS])
def test_bad_requests_exit_2_with_a_line_and_leave_nothing_behind(here: Path, line: str, message: str) -> None:
    before = {path.relative_to(here) for path in here.rglob("*")}
    result = CliRunner().invoke(m2dprep, line.split())
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert result.stdout == ""
    assert not isinstance(result.exception, KeyError | ValueError | AttributeError)
    assert {path.relative_to(here) for path in here.rglob("*")} == before


def test_interrupts_exit_130(monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("m2dprep.workflows.check.job.run_checks", interrupt)
    result = CliRunner().invoke(m2dprep, ["check", "empty"])
    assert result.exit_code == 130
    assert "the same command goes on" in result.stderr


def test_operating_system_errors_name_the_file_and_exit_2(monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "/data/x.npy")

    monkeypatch.setattr("m2dprep.workflows.check.job.run_checks", fail)
    result = CliRunner().invoke(m2dprep, ["check", "empty"])
    assert result.exit_code == 2
    assert result.stderr == "m2dprep: error: /data/x.npy: No space left on device\n"
