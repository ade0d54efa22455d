"""Lists, figures and pages that commands write anew: they never take the place of tables, arrays or checkpoints."""

import re
from pathlib import Path

import click
import pytest

from m2dprep.cli.options import TEXT_OUTPUT, LocalPath
from m2dprep.workflows.recipe.declare import Role
from tests.cli.invocation import commands, refused, run

BINARY = {"captions.parquet": b"PAR1\x15\x00\x15", "a.npy": b"\x93NUMPY\x01\x00v\x00", "a.pth": b"PK\x03\x04\x00\x00"}
# These lists take the place of an earlier one only with --overwrite, or if they are equal.
GUARDED = {"captions training-list", "captions join-lists", "captions exclude-list", "captions weights"}


def test_every_option_that_writes_text_minds_what_is_there() -> None:
    found = []
    for name, command in commands():
        for option in command.params:
            if not isinstance(option, click.Option) or not isinstance(option.type, LocalPath):
                continue
            says_text = re.search(r"(CSV|JSON) file|to this file.*page|Write the page", option.help or "")
            if option.type.role is Role.OUTPUT and says_text and name not in GUARDED:
                found.append(name)
                assert option.type is TEXT_OUTPUT, f"{name} {option.opts[0]}"
    assert {"stats", "report", "check", "captions check", "evaluate report"} <= set(found)


@pytest.mark.parametrize("name", BINARY)
@pytest.mark.parametrize(
    "words", ["stats d/a_lms -o", "check d --leaks l.csv --leaks-csv", "captions check t --findings"]
)
def test_a_list_does_not_replace_other_files(name: str, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(BINARY[name])
    refused(run(*words.split(), tmp_path / name), 2, "is there already and is no text file")
    assert (tmp_path / name).read_bytes() == BINARY[name]


@pytest.mark.parametrize("words", ["stats d/a_lms -o", "check d --leaks l.csv --leaks-csv", "report d -o"])
def test_a_list_is_no_folder(words: str, tmp_path: Path) -> None:
    refused(run(*words.split(), tmp_path), 2, "is a folder; name a file")


@pytest.mark.parametrize("content", [b"", b"file_name,list\n", "ünï\n".encode(), b"\xff text of another encoding"])
def test_an_earlier_list_may_be_replaced(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_bytes(content)
    context = click.Context(click.Command("x"))
    assert TEXT_OUTPUT.convert(tmp_path / "list.csv", None, context) == tmp_path / "list.csv"
    assert TEXT_OUTPUT.convert(tmp_path / "new.csv", None, context) == tmp_path / "new.csv"
