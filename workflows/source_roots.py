"""The folders that a conversion's sources came from: another one is said, and replaces nothing unasked."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from artifacts.errors import UserError
from artifacts.layout import LmsLayout
from workflows.melspec_plan import Plan

ROOTS = "source_roots"
EARLIER_ROOT = "source_root"  # what earlier versions wrote


def known_roots(frozen: Mapping[str, Any] | None) -> list[str]:
    """The folders that ``config.json`` names; none where nothing was converted yet."""
    if frozen is None:
        return []
    roots = frozen.get(ROOTS) or [frozen.get(EARLIER_ROOT)]
    return [root for root in roots if isinstance(root, str)]


def is_only_root(frozen: Mapping[str, Any] | None, src: Path) -> bool:
    """Whether all that was converted came from ``src``."""
    return frozen is None or known_roots(frozen) == [str(src.resolve())]


def require_replacement(
    layout: LmsLayout, frozen: Mapping[str, Any] | None, src: Path, plan: Plan, allowed: bool
) -> None:
    """Say on stderr that ``src`` is another folder than before. Raises `UserError` where arrays of other files with the
    same names would be replaced and that is not ``allowed``."""
    if is_only_root(frozen, src):
        return
    roots = known_roots(frozen)
    others = [root for root in roots if root != str(src.resolve())]
    if others:
        print(
            f"m2dprep: {layout.root} has arrays of {', '.join(others)}; {plan.done:,} of the files in {src} are those "
            f"that were converted, {len(plan.pending):,} are to be converted.",
            file=sys.stderr,
        )
    if plan.replaced and not allowed:
        before = " and ".join(roots) or "another folder"
        raise UserError(
            f"{len(plan.replaced):,} of the files in {src}, such as {plan.replaced[0]}, have the names of others that "
            f"were converted from {before} to {layout.root}, and are not the same: the arrays of those would be "
            "replaced. Convert to another folder, or use --replace."
        )


def roots_with(frozen: Mapping[str, Any] | None, src: Path, plan: Plan) -> list[str]:
    """The roots once ``src`` was converted. One that is gone, and whose files ``src`` has, has moved there."""
    root = str(src.resolve())
    kept = [other for other in known_roots(frozen) if other == root or not plan.done or Path(other).is_dir()]
    return kept if root in kept else [*kept, root]
