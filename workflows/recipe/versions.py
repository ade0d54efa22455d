"""Earlier versions of a recipe's files: those that several stages write, and embedding stores of older captions.

``captions fill`` makes captions.parquet and ``captions add`` changes it in place. To run one of them again, the file
must be as the stage before left it. The recipe therefore keeps each version as a hard link, which costs nothing.

If the captions of an embedding store have changed, the old store is set aside, so that its texts are not encoded again.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from m2dprep.artifacts.errors import UserError
from m2dprep.workflows.recipe.recipe import Recipe, Stage
from m2dprep.workflows.recipe.state import (
    DONE,
    META,
    Identity,
    RecipeState,
    identity,
    keep_version,
    put_back,
    refreshed,
    same,
)


def old_store_path(stage: Stage) -> Path | None:
    """The path at which a stage's store is set aside, existing or not.

    It is None for stages that reuse nothing, or that reuse a store named in the recipe.
    """
    if stage.kind.option("reuse") is None or stage.values.get("reuse") or not stage.uses.writes:
        return None
    out = stage.uses.writes[0]
    return out.with_name(f".{out.name}.before")  # not a store of the data directory, whose names are capemb_*


def set_store_aside(stage: Stage) -> bool:
    """Move a finished store out of the way. Returns whether there was one."""
    aside, out = old_store_path(stage), next(iter(stage.uses.writes), None)
    if aside is None or out is None or not (out / META).is_file():
        return False
    shutil.rmtree(aside, ignore_errors=True)
    out.rename(aside)
    return True


def restore_store(stage: Stage) -> None:
    """Undo `set_store_aside` if the new store could not be begun."""
    aside = old_store_path(stage)
    if aside is not None and aside.is_dir() and not stage.uses.writes[0].exists():
        aside.rename(stage.uses.writes[0])


def reuse_flags(stage: Stage) -> list[str]:
    """The option ``--reuse`` with the store that was set aside, if there is one."""
    aside = old_store_path(stage)
    return [f"--reuse={aside}"] if aside is not None and (aside / META).is_file() else []


def remove_old_store(stage: Stage) -> None:
    """Remove the store that was set aside."""
    if (aside := old_store_path(stage)) is not None:
        shutil.rmtree(aside, ignore_errors=True)


BEFORE = ""  # in place of a stage's name: the file as it was before all of them
FOUND = "found"


class Versions:
    """The versions of the files of one recipe."""

    def __init__(self, recipe: Recipe, state: RecipeState) -> None:
        self._recipe, self._state = recipe, state

    def of(self, maker: str | None, path: Path) -> Identity | None:
        """The identity of ``path`` after ``maker``, or before all stages if None; None if it is missing or unknown."""
        if maker is not None:
            return self._state.outputs(maker).get(self._recipe.shown(path))
        if self._current_version(path) in (None, BEFORE):
            return identity(path) if not self._unfinished(path) else self._kept(None, path)
        return self._kept(None, path)

    def is_available(self, maker: str, path: Path) -> bool:
        """Whether ``maker``'s version is in place or kept."""
        return self._current_version(path) == maker or same(self._kept(maker, path), self.of(maker, path))

    def is_foreign(self, path: Path) -> bool:
        """Whether ``path`` exists and was written by something else after all stages had ended."""
        return path.exists() and self._current_version(path) is None and not self._unfinished(path)

    def keep(self, maker: str, path: Path) -> None:
        """Keep the version that ``maker`` has just written."""
        if path.is_file():
            keep_version(path, self._state.version(self._recipe, maker, path))

    def need(self, stage: Stage) -> None:
        """Put the versions that ``stage`` needs in their places."""
        for path, maker in stage.versions.items():
            self.put(maker, path)

    def restore(self, stage: Stage) -> None:
        """Put back the outputs of a stage that is skipped."""
        for path in stage.writes:
            if path in stage.versions or len(self._recipe.makers.get(path, ())) > 1:
                self.put(stage.name, path)

    def put(self, maker: str | None, path: Path) -> None:
        """Put ``maker``'s version of ``path`` in its place. Raises `UserError` if it is not kept any more."""
        there = self._current_version(path)
        if there == (BEFORE if maker is None else maker):
            return
        if maker is None:
            self._restore_original(path, there)
            return
        if not self.is_available(maker, path):
            raise UserError(f"{path} as {maker} left it is gone: `m2dprep run {self._recipe.file} --redo {maker}`.")
        self.save_foreign(path)
        put_back(self._state.version(self._recipe, maker, path), path)

    def save_foreign(self, path: Path) -> None:
        """Keep a foreign version of ``path``, which is about to be replaced."""
        if self.is_foreign(path) and path.is_file() and self._recipe_began(path):
            kept = self._state.folder / "versions" / f"{FOUND}--{path.parent.name}--{path.name}"
            keep_version(path, kept)
            print(f"{path} was changed by something else than this recipe; that is kept in {kept}.", file=sys.stderr)

    def _restore_original(self, path: Path, there: str | None) -> None:
        """Put ``path`` back as it was before all stages: a file of no stage stays; otherwise the kept file, or none."""
        kept = self._state.version(self._recipe, None, path)
        if there is None and not self._unfinished(path):
            kept.unlink(missing_ok=True)
            if path.is_file():
                keep_version(path, kept)
        elif kept.exists():
            put_back(kept, path)
        else:
            path.unlink(missing_ok=True)

    def _kept(self, maker: str | None, path: Path) -> Identity | None:
        known = None if maker is None else self._state.outputs(maker).get(self._recipe.shown(path))
        return refreshed(self._state.version(self._recipe, maker, path), known)

    def _current_version(self, path: Path) -> str | None:
        """The stage whose version is at ``path``, the last one if several left the same; None if it is no stage's."""
        if not path.exists():
            return None
        for maker in reversed(self._recipe.makers.get(path, [])):
            known = self._state.outputs(maker).get(self._recipe.shown(path))
            if known is not None and same(known, refreshed(path, known)):
                return maker
        before = self._state.version(self._recipe, None, path)
        return BEFORE if before.exists() and same(identity(before), identity(path)) else None

    def _unfinished(self, path: Path) -> bool:
        """Whether a stage that writes ``path`` was begun and has not succeeded: the file may then be its output."""
        records = (self._state.stages.get(maker, {}) for maker in self._recipe.makers.get(path, ()))
        return any(record.get("status", DONE) != DONE for record in records)

    def _recipe_began(self, path: Path) -> bool:
        return any(maker in self._state.stages for maker in self._recipe.makers.get(path, ()))
