"""What all commands share: options that mean and look the same everywhere, help in titled groups, -q and -v."""

from __future__ import annotations

import difflib
import math
import os
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from m2dprep.artifacts.clips.addresses import is_address, without_secrets
from m2dprep.artifacts.console import NORMAL, QUIET, VERBOSE, talking
from m2dprep.workflows.recipe.declare import Role

Function = TypeVar("Function", bound=Callable[..., Any])


class LocalPath(click.Path):
    """A path on this machine: an empty one would be the current folder, and an address a folder of that odd name.

    ``role`` tells recipes what a command does with it (`workflows.recipe.declare`).
    """

    def __init__(self, role: Role = Role.INPUT) -> None:
        super().__init__(path_type=Path)
        self.role = role

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        text = os.fspath(value)
        if not text:
            self.fail("an empty path; the current folder is '.'.", parameter, context)
        if is_address(text):
            return self.address(text, parameter, context)
        return super().convert(value, parameter, context)

    def address(self, text: str, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        """What an address gives: here, a refusal."""
        self.fail(
            f"{without_secrets(text, text)} is an address, not a path; copy it to a disk of this machine, or mount it. "
            "Only the SRC of melspec and of export may be an address, with the extra 'remote'.",
            parameter,
            context,
        )


class SourcePath(LocalPath):
    """A folder of sounds: a path, or an address that fsspec reads where the extra ``remote`` is installed."""

    def address(self, text: str, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        from m2dprep.audioprep.remote.address import address_of

        return address_of(text)


class TextFile(LocalPath):
    """A file of text that a command writes anew: a list, JSON, a page. It never takes the place of other files."""

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        path = super().convert(value, parameter, context)
        if path.is_dir():
            self.fail(f"{path} is a folder; name a file.", parameter, context)
        if path.is_file():
            try:
                with path.open("rb") as file:
                    binary = b"\0" in file.read(BEGINNING)
            except OSError:  # the command will say what is the matter when it writes
                return path
            if binary:
                self.fail(f"{path} is there already and is no text file; name another one.", parameter, context)
        return path


# Bytes that tell text from Parquet, .npy files, archives and sounds.
BEGINNING = 4096
PATH, SOURCES_PATH = LocalPath(), SourcePath()
TEXT_OUTPUT = TextFile(Role.OUTPUT)
OUTPUT_PATH, PLACE, SETTING_PATH = map(LocalPath, (Role.OUTPUT, Role.PLACE, Role.SETTING))


class ModelName(click.types.StringParamType):
    """A model: a name on the Hugging Face hub, or a folder, which a recipe then knows to be read."""

    role = Role.MODEL


class TaskName(click.types.StringParamType):
    """A task of evaluation: its name, or a YAML file, which a recipe then knows to be read."""

    role = Role.TASK


MODEL_NAME = ModelName()
TASK_NAME = TaskName()


class Number(click.FloatRange):
    """A finite number, within a range if one is given: NaN would pass through any."""

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> float:
        number: float = super().convert(value, param, context)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number.", param, context)
        return number

    def _describe_range(self) -> str:
        return super()._describe_range() if self.min is not None or self.max is not None else ""

    def __repr__(self) -> str:
        return "<Number>"


# Titles of the groups that options are shown in, where several commands have one of the same name.
OUTPUT, LOCATION, GENERAL = "Output", "Where it runs", "General"
WIDEST_HELP = 120
REPEATED = "The option can be repeated."
CONTEXT_SETTINGS: dict[str, Any] = {
    "show_default": True,
    "max_content_width": WIDEST_HELP,
}
TALK = "m2dprep.talk"
# What stands for a number in help, by Click's names of types.
METAVARS = {"integer": "N", "integer range": "N", "float": "NUMBER", "float range": "NUMBER"}
WHOSE = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
# Where the value of an option comes from, by Click's names.
SOURCES = {"COMMANDLINE": "given", "DEFAULT_MAP": "from --config", "ENVIRONMENT": "from the environment"}


def titled(title: str, *options: Callable[[Function], Function]) -> Callable[[Function], Function]:
    """A decorator that adds the ``options``, which ``-h`` then shows under this title."""

    def add(function: Function) -> Function:
        there = len(getattr(function, "__click_params__", ()))
        for option in reversed(options):
            function = option(function)
        for parameter in getattr(function, "__click_params__")[there:]:  # noqa: B009 (Click's own name for its list)
            if not hasattr(parameter, "title"):
                parameter.title = title
                parameter.metavar = parameter.metavar or METAVARS.get(parameter.type.name)
        return function

    return add


id_column_option = click.option(
    "--id-column",
    metavar="NAME",
    default=None,
    show_default="video_id, ytid, id, path, …",
    help="Take the names of the rows of Parquet files from this column.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")
overwrite_option = click.option(
    "--overwrite", is_flag=True, help="Start over and replace what is there, instead of continuing with it."
)
seed_option = click.option("--seed", type=int, default=0, help="Use this seed for everything random.")
device_option = click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    help="Compute on this device. auto takes a GPU if there is one.",
)
# What --decoder means for functions that decode: see `audioprep.decode`.
DECODERS = {"auto": None, "ffmpeg": True, "soundfile": False}

max_failures_option = click.option(
    "--max-failures",
    default="1%",
    help="Exit with 0 if no more inputs than this fail: a number, or a percentage of the inputs.",
)


def workers_option(shown: str | None = None) -> Callable[[Function], Function]:
    """The processes that compute, one per core if nothing else is ``shown`` as the default."""
    return click.option(
        "--workers",
        type=click.IntRange(min=0),
        default=lambda: len(os.sched_getaffinity(0)),
        show_default=shown or "one per core",
        help="Compute in this many processes. 0 computes in the command's own process, which helps with debugging.",
    )


def text_model_option(**settings: Any) -> Callable[[Function], Function]:
    """The text encoder, which has one name in every command that takes one."""
    return click.option("--text-model", type=MODEL_NAME, **settings)


def output_option(*, text: bool = False, **settings: Any) -> Callable[[Function], Function]:
    """Where the result goes, which has one name in every command in which it is an option. ``text``: a file of text."""
    return click.option("--output", "-o", type=TEXT_OUTPUT if text else OUTPUT_PATH, **settings)


trust_remote_code_option = click.option(
    "--trust-remote-code", is_flag=True, help="Run the Python code that a text encoder brings with it."
)


def _talk(context: click.Context, parameter: click.Parameter, given: bool) -> None:
    """Note the level in the context, which commands and groups around them share."""
    if not given:
        return
    level = QUIET if parameter.name == "quiet" else VERBOSE
    if context.meta.setdefault(TALK, level) != level:
        raise click.UsageError("--quiet and --verbose exclude each other.", context)


def _talk_options() -> list[click.Parameter]:
    """-q and -v, anew for each command: Click keeps state in options."""
    options: list[click.Parameter] = [
        click.Option(
            ["-q", "--quiet"],
            is_flag=True,
            expose_value=False,
            callback=_talk,
            help="Print the result and errors only: no progress and no notes.",
        ),
        click.Option(
            ["-v", "--verbose"],
            is_flag=True,
            expose_value=False,
            callback=_talk,
            help="Also print every setting and where it comes from, how long each part took, the memory used, and the "
            "traceback of an error.",
        ),
    ]
    return options


def is_given(context: click.Context, name: str) -> bool:
    """Whether an option was given on the command line."""
    return context.get_parameter_source(name) is ParameterSource.COMMANDLINE


@contextmanager
def _settings_and_costs(context: click.Context) -> Iterator[None]:
    """Say what a command is told, and at the end what it took."""
    click.echo(f"{context.command_path}, with these settings:", err=True)
    for parameter in context.command.params:
        name = parameter.opts[0] if isinstance(parameter, click.Option) else parameter.human_readable_name
        source = context.get_parameter_source(str(parameter.name))
        if str(parameter.name) in context.params:
            value = context.params[str(parameter.name)]
            shown = ", ".join(map(str, value)) if isinstance(value, tuple | list) else value
            click.echo(f"  {name:<20} {shown}  ({SOURCES.get(getattr(source, 'name', ''), 'default')})", err=True)
    started, before = time.monotonic(), _processor_seconds()
    try:
        yield
    finally:
        memory = max(resource.getrusage(who).ru_maxrss for who in WHOSE) / 1024
        click.echo(
            f"{context.command_path} took {time.monotonic() - started:.1f} s, {_processor_seconds() - before:.1f} s of "
            f"processor time, and at most {memory:,.0f} MiB of memory in one process.",
            err=True,
        )


def _processor_seconds() -> float:
    """Of this process and of those that it started and that have ended."""
    return sum(usage.ru_utime + usage.ru_stime for usage in map(resource.getrusage, WHOSE))


class _Talkative(click.Command):
    """A command or group with -q and -v, and with its options in titled groups."""

    def __init__(self, name: str | None = None, **settings: Any) -> None:
        super().__init__(name, **{"context_settings": CONTEXT_SETTINGS, **settings})
        self._talk_options = _talk_options()

    def get_params(self, context: click.Context) -> list[click.Parameter]:
        own = super().get_params(context)
        help_option = [parameter for parameter in own if parameter not in self.params]
        return [*self.params, *self._talk_options, *help_option]

    def get_help_option_names(self, context: click.Context) -> list[str]:
        """Always both: Click keeps those that it found first, in whatever context."""
        return ["-h", "--help"]

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(context):
            own = parameter in self.params
            record = parameter.get_help_record(context) if isinstance(parameter, click.Option) else None
            if record is not None:
                groups.setdefault(getattr(parameter, "title", "Options") if own else GENERAL, []).append(record)
        for title in sorted(groups, key=GENERAL.__eq__):  # the general ones last
            with formatter.section(title):
                formatter.write_dl(groups[title])


class M2dprepCommand(_Talkative):
    """A command that takes ``-h``, ``-q`` and ``-v`` and shows its defaults, also when it is used without the group."""

    def invoke(self, context: click.Context) -> Any:
        level = context.meta.get(TALK, NORMAL)
        with talking(level):
            if level != VERBOSE:
                return self.run(context)
            with _settings_and_costs(context):
                return self.run(context)

    def run(self, context: click.Context) -> Any:
        """Call the command's function."""
        return super().invoke(context)


class TableCommand(M2dprepCommand):
    """A command that reads or writes tables, and so uses pyarrow."""

    def run(self, context: click.Context) -> Any:
        from m2dprep.artifacts.process import keep_pandas_out

        keep_pandas_out()
        return super().run(context)


class ModelCommand(TableCommand):
    """A command that runs a model of sounds in this process. Of two blocks of the base size, 32 clips take 0.86 of the
    processor's time on a CPU if the memory of one batch is kept for the next."""

    def run(self, context: click.Context) -> Any:
        from m2dprep.artifacts.process import keep_memory_of_batches

        keep_memory_of_batches()
        return super().run(context)


class M2dprepGroup(_Talkative, click.Group):
    """A group of commands that names the nearest command for one that is not there."""

    def resolve_command(
        self, context: click.Context, arguments: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = arguments[0]
        if not name.startswith("-") and not context.resilient_parsing and self.get_command(context, name) is None:
            context.fail(f"No such command {name!r}.{self._hint(context, name)}")
        return super().resolve_command(context, arguments)

    def _hint(self, context: click.Context, word: str) -> str:
        """The commands of that name in groups of this one, else those with a name that is near to it."""
        names = self.list_commands(context)
        within = [path for path in _paths(self, context) if path.split()[-1] == word]
        found = within or difflib.get_close_matches(word, names, 3)
        return f" Did you mean {' or '.join(map(repr, found))}?" if found else ""

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        self.format_commands(context, formatter)
        _Talkative.format_options(self, context, formatter)


def _paths(group: click.Group, context: click.Context, before: str = "") -> Iterator[str]:
    """All commands and groups below ``group``, as one types them after it."""
    for name in group.list_commands(context):
        yield before + name
        if isinstance(command := group.get_command(context, name), click.Group):
            yield from _paths(command, context, f"{before}{name} ")
