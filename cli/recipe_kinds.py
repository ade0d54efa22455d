"""The commands that a recipe may run, made of the Click commands themselves, for `workflows.recipe_schema`."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import click

from cli.cluster_options import OPTIONS as CLUSTER_OPTIONS
from cli.main import COMMANDS

if TYPE_CHECKING:
    from workflows.recipe_schema import Option, StageKind

# Commands and groups whose commands are no stages: they make no file, or run stages themselves.
NO_STAGES = {"demo", "run", "status", "init", "captions show"}
# Options that say how one command is run by hand, by the names of their parameters.
NOT_HERE = {
    "help": "it prints help",
    "as_json": "the result of every stage is kept as JSON",
    "overwrite": "`m2dprep run --overwrite` replaces what was made with other settings",
    "dry_run": "`m2dprep run --dry-run` shows what would be run",
    "plot": "it draws a finished run",
    "print_job": "it prints and runs nothing",
    "launch": "a job that is submitted goes on by itself; run the recipe within one (docs/recipes.md)",
}
LOOKS = "it looks at a finished store"
NOT_HERE_OF = {
    "embed-captions": dict.fromkeys(("inspect", "text", "nearest", "check", "seed"), LOOKS),
    "train": dict.fromkeys(("nodes", "gpus_per_node", "cluster_config"), "it belongs to --launch"),
}


def stage_kinds() -> dict[str, StageKind]:
    """Every kind of stage by its name, such as ``melspec`` and ``captions fill``."""
    return {name: _kind(name, words, command) for name, words, command in _commands()}


def _commands() -> Iterator[tuple[str, tuple[str, ...], click.Command]]:
    for name, (module, attribute, _) in COMMANDS.items():
        if name in NO_STAGES:
            continue
        command = getattr(importlib.import_module(module), attribute)
        inner = command.commands if isinstance(command, click.Group) else {"": command}
        for word, each in inner.items():
            words = (name, word) if word else (name,)
            if " ".join(words) not in NO_STAGES:
                yield " ".join(words), words, each


def _kind(name: str, words: tuple[str, ...], command: click.Command) -> StageKind:
    from workflows.recipe_schema import StageKind, normal

    reasons = NOT_HERE | NOT_HERE_OF.get(name, {})
    not_here = {
        normal(flag.lstrip("-")): reasons[str(parameter.name)]
        for parameter in command.params
        if parameter.name in reasons
        for flag in parameter.opts
    }
    options = [
        option for parameter in command.params if parameter.name not in reasons for option in _options(parameter)
    ]
    return StageKind(name, words, command.get_short_help_str(200), tuple(options), not_here)


def _options(parameter: click.Parameter) -> Iterator[Option]:
    """The option of a parameter; several for an argument that stands for several words, such as CAPTIONS OUT."""
    if isinstance(parameter, click.Argument):
        words = (parameter.metavar or str(parameter.name)).split()
        for word in words:
            several = parameter.nargs == -1 and len(words) == 1
            yield _option(parameter, [word.strip("…").lower()], None, several)
    elif isinstance(parameter, click.Option):
        long = [flag for flag in parameter.opts if flag.startswith("--")]
        yield _option(parameter, [flag[2:] for flag in long], long[0], parameter.multiple)


def _option(parameter: click.Parameter, names: list[str], flag: str | None, several: bool) -> Option:
    from workflows.recipe_schema import Option, normal

    key, *aliases = map(normal, names)
    is_flag = isinstance(parameter, click.Option) and parameter.is_flag
    return Option(
        key=key,
        flag=flag,
        convert=_converter(parameter),
        aliases=tuple(aliases),
        required=parameter.required,
        multiple=several,
        is_flag=is_flag,
        off=next(iter(parameter.secondary_opts), None),
        is_path=isinstance(parameter.type, click.Path),
        of_cluster=parameter.name in _cluster_names(),
        help=getattr(parameter, "help", None) or "",
        default=_default(parameter, is_flag),
        worked_out=shown if isinstance(shown := getattr(parameter, "show_default", None), str) else None,
        choices=tuple(parameter.type.choices) if isinstance(parameter.type, click.Choice) else (),
    )


@functools.cache
def _cluster_names() -> set[str]:
    """The parameters that say where workers come from, without ``workers``, which are this machine's."""
    command = click.Command("pool")
    for option in CLUSTER_OPTIONS:
        option(command)
    return {str(parameter.name) for parameter in command.params} - {"workers"}


def _converter(parameter: click.Parameter) -> Callable[[str], object]:
    def convert(text: str) -> object:
        try:
            return parameter.type.convert(text, parameter, None)
        except click.BadParameter as error:
            raise ValueError(error.message) from error

    return convert


def _default(parameter: click.Parameter, is_flag: bool) -> str | None:
    """The default as it would be written in a recipe; None where it has none, or one that is worked out."""
    value: Any = parameter.default
    if is_flag:
        return "true" if value is True else "false"
    return str(value) if isinstance(value, int | float) or (isinstance(value, str) and value) else None
