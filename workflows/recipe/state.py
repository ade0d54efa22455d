"""The state of a recipe: which stages are done, and the identities of the files that they read and wrote.

Identities are cheap: a folder of millions of files is identified by the files that describe it, never by a full walk.

| path | identity |
|---|---|
| a file | size and modification time; if these differ, the SHA-256 of a file of up to 1 GiB decides |
| log-mels | the fingerprint in ``_melspec/config.json``; names, sizes and times of the record files |
| a pack, an embedding store | its ``meta.json``, which is written last |
| a training run | the fingerprint in its ``config.json``; name, size and time of its newest checkpoint |
| any other folder | the modification times of it and its sub-folders, among the first 4,096 entries |
| an address | what its server lists (`workflows.recipe.servers`) |

The state lies beside the data, in ``DATA/_recipe/<recipe>/``:

| file | holds |
|---|---|
| ``state.json`` | one record per stage; the file is replaced at every change |
| ``<stage>.log`` | the stage's output, of all attempts |
| ``<stage>.json`` | its result, as the command prints it with --json |
| ``lock`` | held while the recipe runs |
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

from m2dprep.artifacts.digests import file_digest, fingerprint
from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.json_files import load_json, read_object, write_object
from m2dprep.artifacts.layout import LmsLayout
from m2dprep.workflows.recipe.recipe import Recipe, Stage
from m2dprep.workflows.recipe.servers import shown

Identity = dict[str, Any]
META = "meta.json"
MAX_DIGESTED_BYTES = 2**30
MAX_ENTRIES = 4096


def identity(path: Path, known: Identity | None = None) -> Identity | None:
    """JSON values that change with the content of ``path``; None if nothing is there.

    A file with the size and time of the ``known`` identity is not read again.
    """
    if path.is_file():
        return _file(path, known)
    if not path.is_dir():
        return None
    layout = LmsLayout(path)
    if layout.melspec.is_dir():
        records = [_stat(part) for part in sorted(layout.melspec.glob("records-*.parquet"))]
        return {"log_mels": _fingerprint_in(layout.config), "records": records}
    if (path / META).is_file():
        return {"meta": _file(path / META, (known or {}).get("meta"))}
    if (path / "config.json").is_file() and (checkpoint := _newest_checkpoint(path)) is not None:
        return {"run": _fingerprint_in(path / "config.json"), "checkpoint": _stat(checkpoint)}
    return {"folders": fingerprint({"seen": sorted(_folders(path))})}


def same(old: Identity | None, new: Identity | None) -> bool:
    """Whether two identities mean the same content. A file that was only touched, or rewritten equally, is the same."""
    if old is None or new is None:
        return old is new
    old, new = old.get("meta", old), new.get("meta", new)
    return bool(old["sha256"] == new["sha256"]) if "sha256" in old and "sha256" in new else old == new


def is_there(path: Path) -> bool:
    """Whether there is a file, or a folder with something in it."""
    return path.is_file() or (path.is_dir() and any(path.iterdir()))


def _file(path: Path, known: Identity | None) -> Identity:
    _, size, mtime_ns = _stat(path)
    if known is not None and (known.get("size"), known.get("mtime_ns")) == (size, mtime_ns):
        return known
    digest = {"sha256": file_digest(path)} if size <= MAX_DIGESTED_BYTES else {}
    return {"size": size, "mtime_ns": mtime_ns, **digest}


def _stat(path: Path) -> list[Any]:
    status = path.stat()
    return [path.name, status.st_size, status.st_mtime_ns]


def _fingerprint_in(config: Path) -> str | None:
    try:
        return str(load_json(config)["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _newest_checkpoint(run: Path) -> Path | None:
    found = [path for folder in (run, *run.glob("*/")) for path in folder.glob("checkpoint-*.pth")]
    return max(found, key=lambda path: path.stat().st_mtime_ns, default=None)


def _folders(root: Path) -> Iterator[str]:
    """``path time`` of the folder and of the folders among the first entries of a walk; no file is read."""
    yield f". {root.stat().st_mtime_ns}"
    for entry in islice(_walk(root), MAX_ENTRIES):
        if entry.is_dir():
            yield f"{os.path.relpath(entry.path, root)} {entry.stat().st_mtime_ns}"


def _walk(folder: Path | str) -> Iterator[os.DirEntry[str]]:
    """The entries of a folder, then those of its sub-folders."""
    below = []
    with os.scandir(folder) as entries:
        for entry in entries:
            yield entry
            if entry.is_dir(follow_symlinks=False):
                below.append(entry.path)
    for path in below:
        yield from _walk(path)


FOLDER = "_recipe"
FORMAT = 1
RUNNING, DONE, FAILED, STOPPED = "running", "done", "failed", "stopped"
Record = dict[str, Any]


def now() -> str:
    """The present time in the form of state files: UTC, whole seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass
class RecipeState:
    """The records of a recipe's stages by name, and the folder of its files."""

    folder: Path
    recipe: Path
    stages: dict[str, Record] = field(default_factory=dict)

    @classmethod
    def of(cls, recipe: Recipe) -> RecipeState:
        """The state of a recipe, empty if it never ran. Raises `UserError` if it cannot be read."""
        folder = recipe.data / FOLDER / recipe.file.stem
        return cls(folder, recipe.file, read_state(folder).get("stages", {}))

    def log(self, stage: Stage) -> Path:
        return self.folder / f"{stage.file_name}.log"

    def result(self, stage: Stage) -> Path:
        return self.folder / f"{stage.file_name}.json"

    def record(self, name: str) -> Record:
        """A stage's record, empty if it never began."""
        return self.stages.get(name, {})

    def put(self, name: str, **changes: Any) -> None:
        """Change a stage's record on disk."""
        self.stages[name] = {**self.record(name), **changes}
        self.folder.mkdir(parents=True, exist_ok=True)
        write_object(self.folder / "state.json", {"format": FORMAT, "recipe": str(self.recipe), "stages": self.stages})


def read_state(folder: Path) -> dict[str, Any]:
    """The content of ``folder/state.json``, empty if there is none. Raises `UserError` if it cannot be read.

    Earlier versions wrote addresses with their secrets, which are left out.
    """
    path = folder / "state.json"
    try:
        value = read_object(path)
        if value is None:
            return {}
        if value["format"] != FORMAT:
            raise ValueError(f"format {value['format']} is not {FORMAT}")
        for record in value["stages"].values():
            if "options" in record:
                record["options"] = {key: shown(texts) for key, texts in record["options"].items()}
            if "command" in record:
                record["command"] = shown(record["command"])
    except (UserError, OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} cannot be read: {error}. Remove it: stages find out by themselves what is done."
        ) from error
    return value


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
