"""Commands around recipes, several stages in one file: run, status, init."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.options import PATH, M2dprepCommand, json_option

if TYPE_CHECKING:
    from workflows.recipe import Recipe

DEFAULT = Path("recipe.yaml")


@click.command(cls=M2dprepCommand)
@click.argument("recipe", type=PATH, default=DEFAULT)
@click.option("--from", "first", metavar="STAGE", default=None, help="Only this stage and what waits for it.")
@click.option("--until", "last", metavar="STAGE", default=None, help="Only this stage and what it waits for.")
@click.option("--redo", "again", metavar="STAGE", multiple=True, help="Run it although nothing has changed; several.")
@click.option(
    "--overwrite", is_flag=True, help="Replace outputs of other settings, also those that took more than an hour."
)
@click.option("--dry-run", is_flag=True, help="Print what would be done with every stage, and why; run nothing.")
@json_option
def run(
    recipe: Path,
    first: str | None,
    last: str | None,
    again: tuple[str, ...],
    overwrite: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Run the stages in RECIPE, a YAML file: what is done and unchanged is skipped, what has changed is done again
    with what depends on it.

    The same command goes on after an interruption or a failure. Its exit code is that of the first stage that did not
    end well.

    \b
    Examples:
      m2dprep run recipe.yaml --dry-run
      m2dprep run recipe.yaml --until embed-captions
      m2dprep run recipe.yaml --redo melspec --json > result.json
    """
    from workflows.recipe_plan import Choice, make_plan, missing_inputs
    from workflows.recipe_report import outcome_table, plan_table
    from workflows.recipe_run import RecipeRun
    from workflows.recipe_state import RecipeState

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
@json_option
def status(path: Path, as_json: bool) -> None:
    """Show how far a recipe has come: every stage done, running, failed or remaining, with times and progress.

    For a data directory: of every recipe that has run on it.

    \b
    Examples:
      m2dprep status recipe.yaml
      m2dprep status data --json
    """
    from workflows.recipe_report import status_table
    from workflows.recipe_status import folder_status, recipe_status, recipes_of

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
@click.option("--demo", is_flag=True, help="Write the demo as a recipe: it runs as it is.")
@json_option
def init(recipe: Path, demo: bool, as_json: bool) -> None:
    """Write RECIPE, a recipe from AudioSet to a trained model with every option of every stage in comments.

    \b
    Examples:
      m2dprep init audioset.yaml
      m2dprep init demo.yaml --demo
    """
    from artifacts.atomic import write_text
    from artifacts.errors import UserError
    from cli.recipe_kinds import stage_kinds
    from workflows.recipe_template import audioset_recipe, demo_recipe

    if recipe.exists():
        raise UserError(f"{recipe} is there already; give another name.")
    if not recipe.absolute().parent.is_dir():
        raise UserError(f"{recipe.parent}: no such folder.")
    write_text(recipe, demo_recipe() if demo else audioset_recipe(stage_kinds(), recipe.name))
    click.echo(json.dumps({"recipe": str(recipe)}) if as_json else str(recipe))
    click.echo(f"Next: fill in its paths, then `m2dprep run {recipe} --dry-run`.", err=True) if not demo else None


def _read(path: Path) -> Recipe:
    from cli.recipe_kinds import stage_kinds
    from workflows.bundled_model import bundled_text_model
    from workflows.recipe import read_recipe

    return read_recipe(path, stage_kinds(), {"bundled_text_model": bundled_text_model})


def _require_nothing_missing(missing: list[str]) -> None:
    from artifacts.errors import UserError

    if missing:
        raise UserError("\n  ".join(missing))
