"""The check of ``norm_stats.json`` against the records that it was, or could have been, merged from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from artifacts.errors import UserError
from artifacts.layout import DataLayout
from audioprep.stats import NormStats, norm_stats
from workflows.check_result import CheckResult

# Relative. The order in which records are merged moves the last digits; arrays from a pack in float16 are rounded.
ERROR_OF = {"records": 1e-9, "arrays": 1e-3}
COUNTS = ("count_values", "count_files", "excluded_files")
VALUES = ("mean", "std", "bin_mean", "bin_std")


def require_of_listed(layout: DataLayout, stats: Mapping[str, Any], listed: Sequence[str]) -> None:
    """Raise `UserError` where ``stats`` are those of a folder of which no list names a file, but of others."""
    folders = sorted({name.partition("/")[0] for name in listed})
    folder = stats.get("folder")
    here = [path.name for path in layout.lms_folders()]
    if folders and folder in here and folder not in folders:
        raise UserError(
            f"is that of {folder}, and the lists name files of {', '.join(folders)} only: one folder's values would "
            f"be normalised with another's. `m2dprep stats {layout.root / folders[0]}` computes it anew."
        )


def compare_statistics(layout: DataLayout, stats: Mapping[str, Any], result: CheckResult) -> None:
    """Raise `UserError` unless ``stats`` are those of the records of a folder in the data directory."""
    error = ERROR_OF.get(str(stats.get("source")))
    folders = [folder for folder in layout.lms_folders() if stats.get("folder") in (None, folder.name)]
    folders = folders or layout.lms_folders()  # that folder may have been renamed: then the values are those of another
    if error is None or not folders:
        result.notes.append(f"{layout.norm_stats.name} does not say what it was computed from, so it was not compared")
        return
    differing: list[str] = []
    for folder in folders:
        files = stats.get("files")
        listed = None if files is None else layout.root / str(files)
        if listed is not None and not listed.exists():
            result.notes.append(
                f"{listed.name}, for which {layout.norm_stats.name} was computed, is gone: not compared"
            )
            return
        found = _merged(folder, listed)
        wrong = [key for key in (*COUNTS, *VALUES) if not _is_close(stats.get(key), getattr(found, key), error)]
        if not wrong:
            return
        first = wrong[0]
        now = _short(getattr(found, first))
        differing.append(f"{first} is {_short(stats.get(first))}, the records of {folder.name} give {now}")
    gone = stats.get("folder") not in (None, *(folder.name for folder in folders))
    of = f"is that of {stats.get('folder')}, which is not here: " if gone else ""
    raise UserError(f"{of}{'; '.join(differing)}. `m2dprep stats` computes it anew.")


def _merged(folder: Path, files: Path | None) -> NormStats:
    return norm_stats(folder, files=files)


def _is_close(stored: object, found: object, error: float) -> bool:
    try:
        ours, theirs = np.asarray(stored, np.float64), np.asarray(found, np.float64)
    except (TypeError, ValueError):
        return False
    return ours.shape == theirs.shape and bool(np.allclose(ours, theirs, rtol=error, atol=error))


def _short(value: object) -> str:
    return f"{value:.9g}" if isinstance(value, float) else "of other values" if isinstance(value, list) else repr(value)
