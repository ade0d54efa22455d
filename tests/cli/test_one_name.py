"""One thing has one name in all commands, every option says what it does, and a word that is mistyped gets a hint."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import click
import pytest

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.tables import SOURCE_COLUMNS, read_file_list, read_names
from m2dprep.captions.sources.exclusion import read_exclusion
from m2dprep.cli.main import COMMANDS
from m2dprep.evaluation.clip_set import choose_columns
from tests.cli.invocation import commands, refused, run

ALL = dict(commands())


def options_of(name: str) -> Iterator[click.Option]:
    for parameter in ALL[name].params:
        if isinstance(parameter, click.Option):
            yield parameter


# Words of a help text, and the only options that may be about these.
ONE_NAME = [
    (r"text encoder(:| for the rule|, if)", {"--text-model", "--probe-text-model"}),
    (r"Compute in this many processes", {"--workers"}),
    (r"Load data in this many processes", {"--loader-workers"}),
    (r"model of this size", {"--model"}),
    (r"seed", {"--seed", "--seeds"}),
    (r"result as JSON", {"--json"}),
    (r"Compute on this device", {"--device"}),
    (r"no more inputs than this fail", {"--max-failures"}),
    (r"asks? for from this YAML file", {"--cluster-config"}),
    (r"(Write .+|Draw) to this (folder|JSON file|PNG file|file, a captions\.parquet|file)\b", {"--output"}),
    (r"[Rr]eplace (what is there|an output|FILE|outputs)|[Ss]tart over", {"--overwrite"}),
]
# Names that mean one thing, and the words that all their help texts have.
ONE_THING = {
    "--output": r"(Write|Draw) .*\bto this (folder|file|JSON file|PNG file)|Draw to this",
    "--text-model": r"this text encoder",
    "--workers": r"Compute in this many processes",
    "--loader-workers": r"Load data in this many processes",
    "--model": r"model of this size",
    "--overwrite": r"[Rr]eplace|Start over",
    "--dry-run": r"\b[Pp]rint\b",
    "--trust-remote-code": r"Python code",
    "--exclude": r"Leave out",
    "--root": r"Look for the files relative to",
    "--files": r"The column (file_name|source) is read, or else",
}
# How no help text begins: with what the option is, instead of what the command then does.
NO_VERB = re.compile(r"(The|A|An|Of|In|On|At|By|For|How|What|Where|Which|Number|Names?|Paths?|Folder|File)\b|[^A-Z]")
GONE = {"--out", "--dir", "--launch", "--inspect", "--check", "--from-m2d", "--dst", "--out-dir"}


@pytest.mark.parametrize("name", ALL)
def test_the_same_thing_has_the_same_name(name: str) -> None:
    for option in options_of(name):
        names, text = set(option.opts), option.help or ""
        assert not names & GONE
        for words, known in ONE_NAME:
            if re.search(words, text):
                assert names & known, f"{name} {option.opts}: {text}"
        for flag in names & ONE_THING.keys():
            assert re.search(ONE_THING[flag], text), f"{name} {flag} is about something else: {text}"
        if "--output" in names:
            assert names == {"--output", "-o"}
        elif "-o" in names:
            pytest.fail("-o is --output")


def test_who_takes_what() -> None:
    taken: dict[str, set[str]] = {}
    for name in ALL:
        for flag in (flag for option in options_of(name) for flag in option.opts):
            taken.setdefault(flag, set()).add(name)
    assert taken["--text-model"] == {
        "embeddings encode", "embed-captions", "embeddings inspect", "embeddings check", "zero-shot", "captions check",
        "demo", "evaluate zero-shot", "evaluate linear", "evaluate retrieval", "evaluate all", "train", "serve",
        "search", "tag",
        "events", "scenes",
    }  # fmt: skip
    assert taken["--probe-text-model"] == taken["--model"] == {"train"}
    assert taken["--loader-workers"] == taken["--log-every"] == {"train", "fine-tune"}
    assert taken["--output"] == {
        "stats", "unpack", "captions fill", "captions add", "captions merge", "captions keywords", "captions check",
        "captions training-list", "captions exclude-list", "captions join-lists", "train", "fine-tune", "plot", "demo",
        "evaluate zero-shot",
        "evaluate linear", "evaluate retrieval", "evaluate label-free", "evaluate prepare", "evaluate all",
        "evaluate report",
        "evaluate compare", "evaluate tagging", "tag", "captions weights", "report",
        "evaluate events", "events", "scenes",
    }  # fmt: skip
    assert taken["--json"] == set(ALL)
    assert taken["--nodes"] == {"submit"}


@pytest.mark.parametrize("name", ALL)
def test_every_option_says_in_sentences_what_it_does(name: str) -> None:
    for option in options_of(name):
        text = option.help or ""
        assert not NO_VERB.match(text), (option.opts, text)
        assert text.endswith((".", "…", '."', '": ".', '" ".')), (option.opts, text)
        assert len(text.split()) >= 3, (option.opts, text)
        assert "  " not in text, (option.opts, text)
        assert getattr(option, "title", None), f"{option.opts[0]} is in no group"


def help_of(name: str) -> str:
    with ALL[name].make_context(name, [], resilient_parsing=True) as context:
        return context.get_help()


@pytest.mark.parametrize("name", ALL)
def test_help_is_in_titled_groups_as_wide_as_the_terminal(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = {}
    for columns, widest in (("70", 70), ("100", 100), ("300", 120)):
        monkeypatch.setenv("COLUMNS", columns)
        lines = help_of(name).splitlines()
        start = lines.index("  Examples:")
        end = lines.index("", start)
        assert max(map(len, lines[:start] + lines[end:])) <= widest
        lengths[columns] = len(lines)
        titles = [line for line in lines if re.fullmatch(r"[A-Z].*:", line)]
        assert titles[-1] == "General:"
        assert "Options:" not in titles
    assert lengths["300"] <= lengths["100"] <= lengths["70"]
    assert lengths["300"] < lengths["70"] or name == "captions show"


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("melspecs a b", "No such command 'melspecs'. Did you mean 'melspec'?"),
        ("embed-caption a b", "Did you mean 'embed-captions'"),
        ("embedings encode", "Did you mean 'embeddings'"),
        ("zeroshot", "Did you mean 'zero-shot'"),
        ("exprt a b", "Did you mean 'export'"),
        ("fill -o x", "Did you mean 'captions fill'?"),
        ("parquet a b", "Did you mean 'embeddings export parquet'?"),
        ("embeddings m2d a b", "Did you mean 'export m2d'?"),
        ("captions fil", "No such command 'fil'. Did you mean 'fill'?"),
        ("captions traininglist", "Did you mean 'training-list'"),
        ("embeddings inspct x", "Did you mean 'inspect'"),
        ("embeddings export parket a b", "Did you mean 'parquet'"),
        ("train data --out run", "--output"),
        ("train data -o run --loader-worker 2", "--loader-workers"),
        ("embed-captions a b --textmodel x", "--text-model"),
        ("demo --outputs x", "--output"),
    ],
)
def test_what_is_mistyped_gets_a_hint(line: str, hint: str) -> None:
    result = run(*line.split())
    refused(result, 2, hint)
    assert "Did you mean" in result.stderr


def test_a_word_like_no_command_gets_none() -> None:
    refused(run("qqqq"), 2, "No such command 'qqqq'.\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("m2dprep ", set(COMMANDS)),
        ("m2dprep em", {"embed-audio", "embed-captions", "embeddings"}),
        ("m2dprep embeddings ", {"encode", "inspect", "check", "import", "export"}),
        ("m2dprep embeddings export ", {"m2d", "parquet"}),
        ("m2dprep captions f", {"fill"}),
        ("m2dprep train --loader", {"--loader-workers"}),
        ("m2dprep train --model ", {"tiny", "small", "base", "large"}),
        ("m2dprep submit ", {"train"}),
        ("m2dprep --ver", {"--version", "--verbose"}),
    ],
)
def test_a_shell_completes_commands_that_are_not_imported_yet(words: str, offered: set[str]) -> None:
    typed = words.split()
    environment = {
        "_M2DPREP_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(typed) if words.endswith(" ") else len(typed) - 1),
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    code = "import sys; sys.argv[0] = 'm2dprep'; from m2dprep.cli.main import main; main()"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert {line.partition(",")[2] for line in done.stdout.splitlines()} == offered, done.stderr


class TestALineOfColumns:
    """Lists of files name them in the column file_name, source or path, whatever command reads them."""

    READERS: ClassVar[dict[str, Callable[[Path], list[str]]]] = {
        "train, stats, check, training-list": lambda path: read_file_list(path),
        "melspec": lambda path: read_names(path, "a list", SOURCE_COLUMNS),
        "zero-shot": lambda path: [path.read_text().splitlines()[1].split(",")[_files(path)]],
        "exclusions": lambda path: list(read_exclusion(path).names),
    }

    @pytest.mark.parametrize("reader", READERS)
    @pytest.mark.parametrize("column", ["file_name", "source", "path"])
    def test_one_of_them_is_enough(self, tmp_path: Path, reader: str, column: str) -> None:
        (tmp_path / "list.csv").write_text(f"{column},label\na/b.npy,dog\n")
        assert self.READERS[reader](tmp_path / "list.csv") == ["a/b.npy"]

    @pytest.mark.parametrize("reader", READERS)
    def test_of_several_the_usual_one_is_read(self, tmp_path: Path, reader: str) -> None:
        (tmp_path / "list.csv").write_text("path,source,file_name,label\np,s,f,dog\n")
        assert self.READERS[reader](tmp_path / "list.csv") == ["s" if reader == "melspec" else "f"]

    @pytest.mark.parametrize(("usual", "columns"), [(("file_name", "source", "path"), "source,path"),
                                                    (SOURCE_COLUMNS, "path,file_name")])  # fmt: skip
    def test_two_that_could_be_meant_are_refused(self, tmp_path: Path, usual: tuple[str, ...], columns: str) -> None:
        (tmp_path / "list.csv").write_text(f"{columns}\na,b\n")
        with pytest.raises(UserError, match="several columns that could name files"):
            read_names(tmp_path / "list.csv", "a list", usual)

    @pytest.mark.parametrize("columns", ["name", "files,label", "File_Name"])
    def test_none_of_them_is_refused_with_those_there_are(self, tmp_path: Path, columns: str) -> None:
        (tmp_path / "list.csv").write_text(f"{columns}\n{columns}\n")
        with pytest.raises(
            UserError, match=f"no column file_name, source or path .*it has {columns.replace(',', ', ')}"
        ):
            read_file_list(tmp_path / "list.csv")

    def test_which_is_read_is_said_if_it_is_not_the_usual_one(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for column in ("path", "file_name"):
            (tmp_path / "list.csv").write_text(f"{column}\na.npy\n")
            read_file_list(tmp_path / "list.csv")
        assert capsys.readouterr().err == f"{tmp_path / 'list.csv'}: files are in the column path.\n"


def _files(path: Path) -> int:
    return path.read_text().splitlines()[0].split(",").index(choose_columns(path)[0])
