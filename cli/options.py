"""Options that several commands share, so that they mean and look the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F")

EXISTING_OR_NOT = click.Path(path_type=Path)


class M2dprepCommand(click.Command):
    """A command with ``-h`` and defaults in its help."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        context_settings = {"help_option_names": ["-h", "--help"], "show_default": True}
        super().__init__(*args, **{"context_settings": context_settings, **settings})


json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")
overwrite_option = click.option("--overwrite", is_flag=True, help="Start anew instead of going on with what is there.")
seed_option = click.option("--seed", type=int, default=0, help="Seed of everything random.")
device_option = click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", help="Where to compute; auto takes a GPU if there is one."
)  # fmt: skip
max_failures_option = click.option(
    "--max-failures",
    default="1%",
    help="Failures that a run may have and still exit 0: a number, or a percentage of the inputs.",
)
