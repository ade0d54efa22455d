"""Earlier versions of files and stores that several stages write.

Embedding stores whose captions have changed: the old store is set aside, so that its texts are not encoded again.

Files that several stages write one after another: which version lies there, and putting back the one a stage needs.

``captions fill`` makes captions.parquet and ``captions add`` changes it in place. To run one of them again, what the
one before it left has to be there; the recipe keeps that as a hard link, which costs nothing.
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


def old_store(stage: Stage) -> Path | None:
    """Where the store of a stage is set aside, whether it is there or not; None for stages that reuse nothing, or what
    the recipe says."""
    if stage.kind.option("reuse") is None or stage.values.get("reuse") or not stage.uses.writes:
        return None
    out = stage.uses.writes[0]
    return out.with_name(f".{out.name}.before")  # no store of the data directory: those are named capemb_*


def set_aside(stage: Stage) -> bool:
    """Move a finished store out of the way. Returns whether there was one."""
    aside, out = old_store(stage), next(iter(stage.uses.writes), None)
    if aside is None or out is None or not (out / META).is_file():
        return False
    shutil.rmtree(aside, ignore_errors=True)
    out.rename(aside)
    return True


def bring_back(stage: Stage) -> None:
    """Undo `set_aside`, where the new store could not be begun."""
    aside = old_store(stage)
    if aside is not None and aside.is_dir() and not stage.uses.writes[0].exists():
        aside.rename(stage.uses.writes[0])


def reuse_flags(stage: Stage) -> list[str]:
    """``--reuse`` with the store that was set aside, if there is one."""
    aside = old_store(stage)
    return [f"--reuse={aside}"] if aside is not None and (aside / META).is_file() else []


def forget(stage: Stage) -> None:
    """Remove the store that was set aside."""
    if (aside := old_store(stage)) is not None:
        shutil.rmtree(aside, ignore_errors=True)


BEFORE = ""  # in place of a stage's name: the file as it was before all of them
FOUND = "found"


class Versions:
    """The versions of the files of one recipe."""

    def __init__(self, recipe: Recipe, state: RecipeState) -> None:
        self._recipe, self._state = recipe, state

    def of(self, maker: str | None, path: Path) -> Identity | None:
        """What ``path`` is after ``maker``, or before all stages; None where it is not there, or not known yet."""
        if maker is not None:
            return self._state.outputs(maker).get(self._recipe.shown(path))
        if self._lies_there(path) in (None, BEFORE):
            return identity(path) if not self._unfinished(path) else self._kept(None, path)
        return self._kept(None, path)

    def is_at_hand(self, maker: str, path: Path) -> bool:
        """Whether what ``maker`` left is there, or kept."""
        return self._lies_there(path) == maker or same(self._kept(maker, path), self.of(maker, path))

    def is_foreign(self, path: Path) -> bool:
        """Whether ``path`` is there and was written by something else since the stages had all ended."""
        return path.exists() and self._lies_there(path) is None and not self._unfinished(path)

    def keep(self, maker: str, path: Path) -> None:
        """Keep what ``maker`` has just left."""
        if path.is_file():
            keep_version(path, self._state.version(self._recipe, maker, path))

    def need(self, stage: Stage) -> None:
        """Put the versions that ``stage`` sees in their places."""
        for path, maker in stage.versions.items():
            self.put(maker, path)

    def restore(self, stage: Stage) -> None:
        """Put back what a stage that has nothing to do once left."""
        for path in stage.writes:
            if path in stage.versions or len(self._recipe.makers.get(path, ())) > 1:
                self.put(stage.name, path)

    def put(self, maker: str | None, path: Path) -> None:
        """Make ``path`` what ``maker`` left. Raises `UserError` where that is not known any more."""
        there = self._lies_there(path)
        if there == (BEFORE if maker is None else maker):
            return
        if maker is None:
            self._put_before(path, there)
            return
        if not self.is_at_hand(maker, path):
            raise UserError(f"{path} as {maker} left it is gone: `m2dprep run {self._recipe.file} --redo {maker}`.")
        self.save_foreign(path)
        put_back(self._state.version(self._recipe, maker, path), path)

    def save_foreign(self, path: Path) -> None:
        """Keep what something else has written to ``path``, which is about to be replaced."""
        if self.is_foreign(path) and path.is_file() and self._recipe_began(path):
            kept = self._state.folder / "versions" / f"{FOUND}--{path.parent.name}--{path.name}"
            keep_version(path, kept)
            print(f"{path} was changed by something else than this recipe; that is kept in {kept}.", file=sys.stderr)

    def _put_before(self, path: Path, there: str | None) -> None:
        """``path`` as it was before all stages: what lies there if it is nobody's, else what was kept, or nothing."""
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

    def _lies_there(self, path: Path) -> str | None:
        """The stage whose version lies at ``path``, the last one where several left the same; None: nobody's."""
        if not path.exists():
            return None
        for maker in reversed(self._recipe.makers.get(path, [])):
            known = self._state.outputs(maker).get(self._recipe.shown(path))
            if known is not None and same(known, refreshed(path, known)):
                return maker
        before = self._state.version(self._recipe, None, path)
        return BEFORE if before.exists() and same(identity(before), identity(path)) else None

    def _unfinished(self, path: Path) -> bool:
        """Whether a stage that writes ``path`` was begun and has not ended well: then what lies there may be its."""
        records = (self._state.stages.get(maker, {}) for maker in self._recipe.makers.get(path, ()))
        return any(record.get("status", DONE) != DONE for record in records)

    def _recipe_began(self, path: Path) -> bool:
        return any(maker in self._state.stages for maker in self._recipe.makers.get(path, ()))
