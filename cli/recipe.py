"""The commands around recipes, several stages in one file: run, status, init."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from m2dprep.cli.main import COMMANDS
from m2dprep.cli.options import OUTPUT, PATH, M2dprepCommand, json_option, titled

if TYPE_CHECKING:
    from m2dprep.workflows.recipe.commands import StageKind
    from m2dprep.workflows.recipe.recipe import Recipe


def all_stage_kinds() -> dict[str, StageKind]:
    """Every command that is declared as a stage, by its name."""
    from m2dprep.workflows.recipe.commands import stage_kinds

    commands = COMMANDS.items()
    return stage_kinds({name: getattr(importlib.import_module(module), it) for name, (module, it, _) in commands})


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
    write_text(recipe, demo_recipe() if demo else audioset_recipe(all_stage_kinds(), recipe.name))
    click.echo(json.dumps({"recipe": str(recipe)}) if as_json else str(recipe))
    click.echo(f"Next: fill in its paths, then `m2dprep run {recipe} --dry-run`.", err=True) if not demo else None


def _read(path: Path) -> Recipe:
    from m2dprep.workflows.recipe.recipe import read_recipe

    return read_recipe(path, all_stage_kinds(), {"bundled_text_model": _bundled_text_model})


def _bundled_text_model() -> str:
    from m2dprep.workflows.demo import bundled_text_model

    return bundled_text_model()


def _require_nothing_missing(missing: list[str]) -> None:
    from m2dprep.artifacts.errors import UserError

    if missing:
        raise UserError("\n  ".join(missing))
