"""Made-up commands that start quickly, and ``m2dprep`` with them. A command needs nothing but its own lines here."""

import copy
import shutil
import sys
import time
from pathlib import Path

import click

from m2dprep.artifacts.errors import FingerprintConflictError
from m2dprep.cli.main import COMMANDS, main
from m2dprep.cli.options import OUTPUT_PATH, PATH, SETTING_PATH, M2dprepCommand
from m2dprep.workflows.recipe import stage_process
from m2dprep.workflows.recipe.declare import stage


def write_text(path: Path, text: str) -> None:
    """Write a file at once, without numpy, which takes longer to import than these commands take."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text)
    temporary.replace(path)


@stage()
@click.command("count-letters", cls=M2dprepCommand)
@click.argument("text", type=PATH)
@click.option("--output", type=OUTPUT_PATH, required=True)
@click.option("--json", is_flag=True)
def count_letters(text: Path, output: Path, json: bool) -> None:
    letters = len(text.read_text())
    write_text(output, f"{letters}\n")
    click.echo(f'{{"letters": {letters}}}')


@stage(how=("pause", "bars"), shows=("letters",))
@click.command("join", cls=M2dprepCommand)
@click.argument("texts", metavar="TEXTS…", nargs=-1, type=PATH, required=True)
@click.option("--mark", default="", help="Begin with this. It is the first letter.")
@click.option("--ending", type=click.Choice([".", "!"]), default=".")
@click.option("--upper", is_flag=True)
@click.option("--pause", type=click.FloatRange(min=0), default=0.0)
@click.option("--bars", is_flag=True)
@click.option("--refuse", type=int, default=0, help="End with this exit code, if it is not 0.")
@click.option("--output", "-o", type=OUTPUT_PATH, required=True)
@click.option("--cluster-config", type=SETTING_PATH)
@click.option("--overwrite", is_flag=True)
@click.option("--json", is_flag=True)
def join(
    texts: tuple[Path, ...], mark: str, ending: str, upper: bool, pause: float, bars: bool, refuse: int, output: Path,
    cluster_config: Path | None, overwrite: bool, json: bool,
) -> None:  # fmt: skip
    """Join texts, as carefully as real commands: another output is a conflict, and an equal one stays."""
    print("joining", file=sys.stderr)
    joined = mark + "".join(text.read_text() for text in texts) + ending
    joined = joined.upper() if upper else joined
    for done in range(11) if bars else ():
        print(f"\rjoining | {done}/10", end="\n" if done == 10 else "", file=sys.stderr, flush=True)
    time.sleep(pause)
    if refuse:
        sys.exit(refuse)
    if output.exists() and output.read_text() != joined and not overwrite:
        raise FingerprintConflictError(f"{output} holds another text; --overwrite replaces it.")
    if not output.exists() or output.read_text() != joined:
        write_text(output, joined)
    click.echo(f'{{"letters": {len(joined)}, "overwrite": {int(overwrite)}}}')


def _updating() -> click.Command:
    """The command join, for which replacing an output of other inputs loses no work."""
    command = copy.copy(join)
    command.name = "update"
    return stage(how=("pause",), updates=True)(command)


update = _updating()


@stage()
@click.command("make-parts", cls=M2dprepCommand)
@click.argument("out", type=OUTPUT_PATH)
@click.option("--parts", type=int, required=True)
@click.option("--json", is_flag=True)
def make_parts(out: Path, parts: int, json: bool) -> None:
    """Make a folder of so many files."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    for number in range(parts):
        write_text(out / f"{number}.txt", f"part {number}")


@stage(remade_from="sources")
@click.command("gather", cls=M2dprepCommand)
@click.argument("sources", type=PATH)
@click.option("--output", type=OUTPUT_PATH, required=True)
@click.option("--overwrite", is_flag=True)
@click.option("--json", is_flag=True)
def gather(sources: Path, output: Path, overwrite: bool, json: bool) -> None:
    """Add the files of a folder to those that are there, as melspec does with arrays."""
    there = output.read_text().split() if output.exists() and not overwrite else []
    write_text(output, "\n".join(sorted({*there, *(path.name for path in sources.iterdir())})))


NAMES = {
    "count-letters": "count_letters",
    "join": "join",
    "update": "update",
    "make-parts": "make_parts",
    "gather": "gather",
}
PROGRAM = [sys.executable, str(Path(__file__).resolve())]


def commands(module: str) -> dict[str, tuple[str, str, str]]:
    """The rows of these commands in the table of all commands."""
    return {name: (module, attribute, "") for name, attribute in NAMES.items()}


if __name__ == "__main__":
    COMMANDS.update(commands("__main__"))
    stage_process.PROGRAM = PROGRAM
    main()
