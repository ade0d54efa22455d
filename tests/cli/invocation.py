"""Helpers that call commands as a shell would, and that check refusals."""

from collections.abc import Iterator

import click
from click.testing import CliRunner, Result

from m2dprep.cli.main import m2dprep


def commands(group: click.Group = m2dprep, before: str = "") -> Iterator[tuple[str, click.Command]]:
    """Every command by the words that one types for it, those in groups too."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from commands(command, f"{before}{name} ")
        elif command is not None:
            yield f"{before}{name}", command


def run(*words: object) -> Result:
    return CliRunner().invoke(m2dprep, [str(word) for word in words])


def refused(result: Result, exit_code: int, *words: str) -> None:
    """Check for one line on stderr with these words, this exit code, nothing on stdout, and no traceback."""
    assert result.exit_code == exit_code, result.output
    assert result.stdout == ""
    for word in words:
        assert word in result.stderr
    assert "Traceback" not in result.stderr
    assert result.exception is None or isinstance(result.exception, SystemExit)
