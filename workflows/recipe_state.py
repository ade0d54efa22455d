"""How far a recipe has come: ``state.json`` beside the data, logs and results of its stages, and versions of files.

DATA/_recipe/<recipe>/state.json          one record a stage, written whole at every change
DATA/_recipe/<recipe>/<stage>.log         its words, of all attempts
DATA/_recipe/<recipe>/<stage>.json        its result, as the command prints it with --json
DATA/_recipe/<recipe>/versions/           what each stage left of a file that several write (hard links)
DATA/_recipe/<recipe>/lock                held while the recipe runs
"""

from __future__ import annotations

import fcntl
import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from artifacts.atomic import temporary_path
from artifacts.errors import UserError
from artifacts.json_file import read_object, write_object
from artifacts.tables import list_digest_path, write_list_digest
from workflows.recipe import Recipe, Stage
from workflows.recipe_identity import Identity

FOLDER = "_recipe"
FORMAT = 1
RUNNING, DONE, FAILED, STOPPED = "running", "done", "failed", "stopped"
Record = dict[str, Any]


def now() -> str:
    """The time as it stands in state files: UTC, whole seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass
class RecipeState:
    """The records of a recipe's stages by name, and where its files lie."""

    folder: Path
    recipe: Path
    stages: dict[str, Record] = field(default_factory=dict)

    @classmethod
    def of(cls, recipe: Recipe) -> RecipeState:
        """The state of a recipe, empty where it never ran. Raises `UserError` where it cannot be read."""
        folder = recipe.data / FOLDER / recipe.file.stem
        return cls(folder, recipe.file, read_state(folder).get("stages", {}))

    def log(self, stage: Stage) -> Path:
        return self.folder / f"{stage.file_name}.log"

    def result(self, stage: Stage) -> Path:
        return self.folder / f"{stage.file_name}.json"

    def version(self, recipe: Recipe, stage: str | None, path: Path) -> Path:
        """Where the version of ``path`` is kept that ``stage`` left; None: what was there before all stages."""
        before = "before" if stage is None else f"after-{recipe.stage(stage).file_name}"
        return self.folder / "versions" / f"{before}--{path.parent.name}--{path.name}"

    def put(self, name: str, **changes: Any) -> None:
        """Change a stage's record on disk."""
        self.stages[name] = {**self.stages.get(name, {}), **changes}
        self.folder.mkdir(parents=True, exist_ok=True)
        write_object(self.folder / "state.json", {"format": FORMAT, "recipe": str(self.recipe), "stages": self.stages})

    def outputs(self, name: str) -> dict[str, Identity | None]:
        """What a stage left when it last ended well, by path."""
        found: dict[str, Identity | None] = self.stages.get(name, {}).get("outputs", {})
        return found


def read_state(folder: Path) -> dict[str, Any]:
    """The content of ``folder/state.json``, empty where there is none. Raises `UserError` where it cannot be read."""
    path = folder / "state.json"
    try:
        value = read_object(path)
        if value is None:
            return {}
        if value["format"] != FORMAT:
            raise ValueError(f"format {value['format']} is not {FORMAT}")
    except (UserError, OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} cannot be read: {error}. Without it, stages find out by themselves what is done."
        ) from error
    return value


def this_process(pid: int) -> Mapping[str, Any]:
    """What a record says about the process that works on a stage."""
    return {"pid": pid, "host": platform.node()}


def is_locked(folder: Path) -> bool:
    """Whether a process holds ``folder/lock``."""
    try:
        with (folder / "lock").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def keep_version(path: Path, kept: Path) -> None:
    """Keep ``path`` as it is now at ``kept``: a hard link where the file system can, as files are replaced whole."""
    kept.parent.mkdir(parents=True, exist_ok=True)
    _link(path, kept)


def put_back(kept: Path, path: Path) -> None:
    """Make ``path`` the version at ``kept`` again, atomically."""
    _link(kept, path)
    if list_digest_path(path).exists():  # a list's, of the version that has gone
        write_list_digest(path)


def _link(source: Path, target: Path) -> None:
    if target.exists() and target.samefile(source):
        return
    temporary = temporary_path(target.parent)
    try:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copy2(source, temporary)
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
