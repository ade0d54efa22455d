"""Embedding stores whose captions have changed: the old store is set aside, so that its texts are not encoded again."""

from __future__ import annotations

import shutil
from pathlib import Path

from workflows.recipe import Stage
from workflows.recipe_identity import META


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
