"""The commands run, status and init, around recipes.

The commands that a recipe may run, made of the Click commands themselves, for `workflows.recipe.schema`.

Commands around recipes, several stages in one file: run, status, init.
"""

from __future__ import annotations

import functools
import importlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from m2dprep.cli.cluster_options import OPTIONS as CLUSTER_OPTIONS
from m2dprep.cli.main import COMMANDS
from m2dprep.cli.options import OUTPUT, PATH, M2dprepCommand, json_option, titled

if TYPE_CHECKING:
    from m2dprep.workflows.recipe.recipe import Recipe
    from m2dprep.workflows.recipe.schema import Option, StageKind


# Commands and groups whose commands are no stages: they make no file, or run stages themselves.
NO_STAGES = {
    *("demo", "run", "status", "init", "plot", "submit"),
    *("captions show", "embeddings inspect", "embeddings check"),
}
# Options that say how one command is run by hand, by the names of their parameters.
NOT_HERE = {
    "help": "it prints help",
    "as_json": "the result of every stage is kept as JSON",
    "overwrite": "`m2dprep run --overwrite` replaces what was made with other settings",
    "dry_run": "`m2dprep run --dry-run` shows what would be run",
    "print_job": "it prints and runs nothing",
}
# Other names of commands, and those that stages are known by.
SAME = {"embeddings encode": "embed-captions"}


def stage_kinds() -> dict[str, StageKind]:
    """Every kind of stage by its name, such as ``melspec`` and ``captions fill``."""
    kinds = {" ".join(words): _kind(words, command) for words, command in _commands()}
    return {name: kinds[SAME.get(name, name)] for name in kinds}


def _commands() -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """The commands that are stages, with the words that one types for them."""
    for name, (module, attribute, _) in COMMANDS.items():
        if name not in NO_STAGES:
            yield from _within((name,), getattr(importlib.import_module(module), attribute))


def _within(words: tuple[str, ...], command: click.Command) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    if isinstance(command, click.Group):
        for word, inner in command.commands.items():
            yield from _within((*words, word), inner)
    elif " ".join(words) not in NO_STAGES:
        yield words, command


def _kind(words: tuple[str, ...], command: click.Command) -> StageKind:
    from m2dprep.workflows.recipe.schema import StageKind, normal

    not_here = {
        normal(flag.lstrip("-")): NOT_HERE[str(parameter.name)]
        for parameter in command.params
        if parameter.name in NOT_HERE
        for flag in parameter.opts
    }
    options = [_option_of(parameter) for parameter in command.params if parameter.name not in NOT_HERE]
    return StageKind(" ".join(words), words, command.get_short_help_str(200), tuple(options), not_here)


def _option_of(parameter: click.Parameter) -> Option:
    """The option of a parameter."""
    if isinstance(parameter, click.Argument):
        name = (parameter.metavar or str(parameter.name)).strip("…").lower()
        return _option(parameter, [name], None, parameter.nargs == -1)
    assert isinstance(parameter, click.Option)
    long = [flag for flag in parameter.opts if flag.startswith("--")]
    return _option(parameter, [flag[2:] for flag in long], long[0], parameter.multiple)


def _option(parameter: click.Parameter, names: list[str], flag: str | None, several: bool) -> Option:
    from m2dprep.workflows.recipe.schema import Option, normal

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
    """The parameters that say where workers come from, if not from this machine."""
    command = click.Command("pool")
    for option in CLUSTER_OPTIONS:
        option(command)
    return {str(parameter.name) for parameter in command.params}


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


DEFAULT = Path("recipe.yaml")


@click.command(cls=M2dprepCommand)
@click.argument("recipe", type=PATH, default=DEFAULT)
@titled(
    "Which stages",
    click.option(
        "--from",
        "first",
        metavar="STAGE",
        default=None,
        help="Run only this stage and the stages that need its results, directly or not.",
    ),
    click.option(
        "--until",
        "last",
        metavar="STAGE",
        default=None,
        help="Run only this stage and the stages whose results it needs, directly or not.",
    ),
    click.option(
        "--redo",
        "again",
        metavar="STAGE",
        multiple=True,
        help="Run this stage although nothing has changed. The option can be repeated.",
    ),
)
@titled(
    OUTPUT,
    click.option(
        "--overwrite",
        is_flag=True,
        help="Replace outputs that were made with other settings, also if they took more than an hour.",
    ),
    click.option("--dry-run", is_flag=True, help="Print what would be done with every stage and why, but run nothing."),
    json_option,
)
def run(
    recipe: Path,
    first: str | None,
    last: str | None,
    again: tuple[str, ...],
    overwrite: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Run the stages of RECIPE, a YAML file. What is done and unchanged is skipped; what has changed is done again,
    with what depends on it.

    The same command continues after an interruption or a failure. Its exit code is that of the first stage that did not
    end well.

    \b
    Examples:
      m2dprep run recipe.yaml --dry-run
      m2dprep run recipe.yaml --until embed-captions
      m2dprep run recipe.yaml --redo melspec --json > result.json
    """
    from m2dprep.workflows.recipe.plan import Choice, make_plan, missing_inputs
    from m2dprep.workflows.recipe.run import RecipeRun
    from m2dprep.workflows.recipe.state import RecipeState
    from m2dprep.workflows.recipe.status import outcome_table, plan_table

    read = _read(recipe)
    choice = Choice(first, last, again)
    if dry_run:
        plan = make_plan(read, RecipeState.of(read), choice)
        missing = missing_inputs(read, plan)
        found = {"recipe": str(read.file), "plan": [decision.to_dict() for decision in plan], "missing": missing}
        click.echo(json.dumps(found, indent=2) if as_json else plan_table(read, plan))
        _require_nothing_missing(missing)
        return
    running = RecipeRun(read, choice, overwrite=overwrite)
    try:
        running.run()
    finally:
        if running.outcomes:
            result = {
                "recipe": str(read.file),
                "state": str(running.state.folder),
                "stages": [outcome.to_dict() for outcome in running.outcomes],
            }
            click.echo(json.dumps(result, indent=2) if as_json else outcome_table(running.outcomes))


@click.command(cls=M2dprepCommand)
@click.argument("path", metavar="RECIPE|DATA", type=PATH, default=DEFAULT)
@titled(OUTPUT, json_option)
def status(path: Path, as_json: bool) -> None:
    """Show how far a recipe has come: every stage done, running, failed or remaining, with times and progress.

    For a data directory: of every recipe that has run on it.

    \b
    Examples:
      m2dprep status recipe.yaml
      m2dprep status data --json
    """
    from m2dprep.workflows.recipe.status import folder_status, recipe_status, recipes_of, status_table

    if path.is_dir():
        found: list[tuple[Path, list[Any]]] = [
            (recipe, recipe_status(_read(recipe)) if recipe.exists() else folder_status(folder))
            for folder, recipe in recipes_of(path)
        ]
    else:
        recipe = _read(path)
        found = [(recipe.file, recipe_status(recipe))]
    value = [{"recipe": str(recipe), "stages": [stage.to_dict() for stage in stages]} for recipe, stages in found]
    tables = "\n\n".join(f"{recipe}\n{status_table(stages)}" for recipe, stages in found)
    click.echo(json.dumps(value if path.is_dir() else value[0], indent=2) if as_json else tables)


@click.command(cls=M2dprepCommand)
@click.argument("recipe", type=PATH, default=DEFAULT)
@titled(
    OUTPUT,
    click.option("--demo", is_flag=True, help="Write the demo as a recipe, which runs as it is."),
    json_option,
)
def init(recipe: Path, demo: bool, as_json: bool) -> None:
    """Write RECIPE, a recipe from AudioSet to a trained model with every option of every stage in comments.

    \b
    Examples:
      m2dprep init audioset.yaml
      m2dprep init demo.yaml --demo
    """
    from m2dprep.artifacts.errors import UserError
    from m2dprep.artifacts.files import write_text
    from m2dprep.workflows.recipe.template import audioset_recipe, demo_recipe

    if recipe.exists():
        raise UserError(f"{recipe} is there already; give another name.")
    if not recipe.absolute().parent.is_dir():
        raise UserError(f"{recipe.parent}: no such folder.")
    write_text(recipe, demo_recipe() if demo else audioset_recipe(stage_kinds(), recipe.name))
    click.echo(json.dumps({"recipe": str(recipe)}) if as_json else str(recipe))
    click.echo(f"Next: fill in its paths, then `m2dprep run {recipe} --dry-run`.", err=True) if not demo else None


def _read(path: Path) -> Recipe:
    from m2dprep.workflows.demo import bundled_text_model
    from m2dprep.workflows.recipe.recipe import read_recipe

    return read_recipe(path, stage_kinds(), {"bundled_text_model": bundled_text_model})


def _require_nothing_missing(missing: list[str]) -> None:
    from m2dprep.artifacts.errors import UserError

    if missing:
        raise UserError("\n  ".join(missing))
