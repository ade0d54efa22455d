"""Options that several commands share, so that they mean and look the same everywhere."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import Any

import click

ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


class LocalPath(click.Path):
    """A path on this machine: an empty one would be the current folder, and an address a folder of that odd name."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        text = os.fspath(value)
        if not text:
            self.fail("an empty path; the current folder is '.'.", parameter, context)
        if ADDRESS.match(text):
            self.fail(
                f"{text} is an address, not a path; copy it to a disk of this machine, or mount it.", parameter, context
            )
        return super().convert(value, parameter, context)


PATH = LocalPath()


class Number(click.FloatRange):
    """A finite number, within a range if one is given: NaN would pass through any."""

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> float:
        number: float = super().convert(value, param, context)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number.", param, context)
        return number

    def __repr__(self) -> str:
        return "<Number>"


json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")
overwrite_option = click.option("--overwrite", is_flag=True, help="Start anew instead of going on with what is there.")
seed_option = click.option("--seed", type=int, default=0, help="Seed of everything random.")
workers_option = click.option(
    "--workers",
    type=click.IntRange(min=0),
    default=lambda: len(os.sched_getaffinity(0)),
    show_default="the cores there are",
    help="Worker processes; 0 works in this process, for debugging.",
)
device_option = click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    help="Where to compute; auto takes a GPU if there is one.",
)
max_failures_option = click.option(
    "--max-failures",
    default="1%",
    help="Failures that a run may have and still exit 0: a number, or a percentage of the inputs.",
)


CONTEXT_SETTINGS: dict[str, Any] = {"help_option_names": ["-h", "--help"], "show_default": True}


class M2dprepCommand(click.Command):
    """A command that takes ``-h`` and shows its defaults, also when it is used without the group."""

    def __init__(self, name: str | None, **settings: Any) -> None:
        super().__init__(name, **{"context_settings": CONTEXT_SETTINGS, **settings})


class TableCommand(M2dprepCommand):
    """A command that reads or writes tables, and so uses pyarrow."""

    def invoke(self, context: click.Context) -> Any:
        from artifacts.arrow import keep_pandas_out

        keep_pandas_out()
        return super().invoke(context)
