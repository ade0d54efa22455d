"""What a recipe needs to know of a command, said once, at the command itself.

A command is a stage if it is decorated with `stage`. Its parameters are the stage's settings, and the roles of their
types say what it reads and writes: a path that is marked as an output is written, one that is marked as a place is
neither read nor written itself, and all others are read.

    @stage(how=("threads",), writes=lambda given: [given.path("lms") / "_packed"])
    @click.command()
    @click.argument("lms", type=PATH)
    @click.option("--threads", type=int)
    def pack(lms: Path, threads: int) -> None: ...
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import click

from m2dprep.artifacts.clips.addresses import is_address


class Role(StrEnum):
    """What a command does with a path. A model is a name or a folder, a task a name or a file; these are read. A
    setting says how to work."""

    INPUT, OUTPUT, PLACE, MODEL, TASK, SETTING = "input", "output", "place", "model", "task", "setting"


def is_task_file(text: str) -> bool:
    """Whether a task is given as a file of its own; names of tasks have neither folders nor suffixes."""
    return text.lower().endswith((".yaml", ".yml")) or "/" in text


Values = dict[str, list[str]]
"""A stage's settings: texts by key; a flag that is on is ``["true"]``, one that is off is ``["false"]``."""


@dataclass(frozen=True)
class Given:
    """What a stage is given: settings, the folder that relative paths start from, and the paths that other stages make,
    each with the kind of stage."""

    values: Values
    root: Path
    made: Mapping[Path, str] = field(default_factory=dict)

    def paths(self, key: str) -> list[Path]:
        """The absolute paths of a setting, none if it is not set. Addresses on servers are none."""
        return [absolute(self.root, text) for text in self.values.get(key, ()) if not is_address(text)]

    def addresses(self, key: str) -> list[str]:
        """The values of a setting that are addresses on servers, in full."""
        return [text for text in self.values.get(key, ()) if is_address(text)]

    def path(self, key: str) -> Path:
        """The path of a setting that is required."""
        return self.paths(key)[0]

    def made_below(self, key: str) -> list[Path]:
        """What other stages make in the folder of a setting."""
        return [path for path in self.made for folder in self.paths(key) if path.is_relative_to(folder)]


Paths = Callable[[Given], Iterable[Path]]


@dataclass(frozen=True)
class Declared:
    """What `stage` says of a command beside its parameters; see there."""

    how: tuple[str, ...]
    reads: Paths
    writes: Paths
    shows: tuple[str, ...]
    remade_from: str | None
    updates: bool
    own_workers: bool


def stage(
    *,
    how: tuple[str, ...] = (),
    reads: Paths = lambda given: (),
    writes: Paths = lambda given: (),
    shows: tuple[str, ...] = (),
    remade_from: str | None = None,
    updates: bool = False,
    own_workers: bool = False,
) -> Callable[[click.Command], click.Command]:
    """Let recipes run a command as a stage.

    ``how``: settings that decide how it works, but not what it makes. ``reads`` and ``writes``: paths that are not just
    parameters. ``shows``: figures of its result for tables. ``remade_from``: a setting; if another stage makes what it
    names, and that has changed, all is made anew. ``updates``: replacing an output of other inputs loses no work.
    ``own_workers``: its workers are not one per core, so a recipe's ``workers`` are not for it.
    """

    def declare(command: click.Command) -> click.Command:
        command.stage = Declared(how, reads, writes, shows, remade_from, updates, own_workers)  # type: ignore[attr-defined]
        return command

    return declare


def absolute(root: Path, text: str) -> Path:
    """``text`` as an absolute path without ``..``, without following links."""
    return Path(os.path.abspath(root / text))  # noqa: PTH100
