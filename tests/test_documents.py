"""What the documents show: commands that the program has, with options that it takes, and links that lead somewhere."""

import re
import shlex
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

import click
import pytest

from m2dprep.cli.main import m2dprep

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "benchmarks").glob("**/*.md"))]
FENCE = re.compile(r"^```[a-z]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
LINK = re.compile(r"\]\(([^)\s]+)\)")
# What stands for arguments in running text, and ends a command in a shell.
STOPS = {"|", "&&", ";", "&", ">", "2>", "..."}


def shown(page: Path) -> Iterator[tuple[list[str], bool]]:
    """The words of each command `m2dprep …` on a page, as a shell divides them, and whether it is in a block, whole."""
    text = page.read_text(encoding="utf-8")
    for block in FENCE.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            if re.match(r"(\$ )?(m2dprep|torchrun .* m2dprep|\S+/m2dprep) ", line):
                yield shlex.split(line[line.index("m2dprep") :], comments=True), True
    for code in INLINE.findall(FENCE.sub("", text)):
        if code.startswith("m2dprep "):
            yield shlex.split(" ".join(code.split())), False


def command_of(words: list[str]) -> tuple[click.Command, list[str]]:
    """The command that the words name, and the rest of them."""
    found: click.Command = m2dprep
    rest = words[1:]
    while isinstance(found, click.Group) and rest and not rest[0].startswith("-"):
        named = found.get_command(click.Context(found), rest[0])
        if named is None:
            raise click.UsageError(f"there is no command {rest[0]}")
        found, rest = named, rest[1:]
    return found, rest


def refuse_unknown(words: list[str]) -> None:
    """Raise `click.UsageError` for an option that the command lacks, or a value that is none of its choices.

    What follows the command that `submit` queues is that command's.
    """
    command, rest = command_of(words)
    rest = list(takewhile(lambda word: word not in STOPS, rest))
    context = click.Context(command)
    given, _, _ = command.make_parser(context).parse_args(args=rest)
    for option in command.get_params(context):
        if isinstance(option.type, click.Choice) and given.get(option.name) is not None:
            option.type_cast_value(context, given[option.name])
    if command.name == "submit" and isinstance(given["command"], tuple):
        refuse_unknown(["m2dprep", *given["command"]])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_that_a_document_shows_have_these_options(page: Path) -> None:
    for words, whole in shown(page):
        try:
            refuse_unknown(words)
        except click.BadOptionUsage as error:
            assert not whole, f"{' '.join(words)}: {error.format_message()}"  # in running text, values may be left out
        except click.UsageError as error:
            pytest.fail(f"{' '.join(words)}: {error.format_message()}")


def test_the_documents_show_many_commands() -> None:
    assert sum(1 for page in PAGES for _ in shown(page)) > 100


@pytest.mark.parametrize(
    "words", ["melspec a b --min-second 2", "tag a b --scores best", "captions filll", "submit train d --modell base"]
)
def test_what_the_program_lacks_is_found(words: str) -> None:
    with pytest.raises(click.UsageError):
        refuse_unknown(["m2dprep", *words.split()])


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", t).lower()).replace(" ", "-") for t in titles
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_documents_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        if "://" in link or link.startswith("mailto:"):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name) if name else page
        assert target.exists(), f"{link} is not there"
        if anchor:
            assert anchor in anchors(target), f"{link}: {target.name} has no such heading"


def test_programs_that_the_documents_name_are_there() -> None:
    for page in PAGES:
        for name in re.findall(r"python3? ((?:benchmarks|docs)/\w+\.py)", page.read_text(encoding="utf-8")):
            assert (ROOT / name).is_file(), f"{page.name}: {name}"
