"""The check for leaks: which clips that training reads are sounds of evaluation sets, and by which id or name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from m2dprep.artifacts.clips.readings import AllReadings
from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.layout import DataLayout, require_folder
from m2dprep.artifacts.tables import read_file_list, write_csv
from m2dprep.captions.overlaps import names_to_exclude, read_sets
from m2dprep.captions.sources.evaluation_sets import Alias
from m2dprep.workflows.check.result import CheckResult

COLUMNS = ("file_name", "list", "set", "matched_by", "sound")


@dataclass(frozen=True)
class Leak:
    """A listed file that is a sound of an evaluation set; ``sound`` is its name there."""

    file_name: str
    list: str
    set: str
    matched_by: str
    sound: str


def check_leaks(
    data: Path, evaluation: Sequence[Path], trained: Sequence[Path] = (), csv: Path | None = None
) -> CheckResult:
    """Check that no file that training reads is a sound of an evaluation set (`captions.overlaps`).

    A training list is read in place of the list that it was made from. ``trained`` describes sets in the data, whose
    names alone do not tell. The rows go to ``csv``, if it is given. Raises `UserError` if a file cannot be read.
    """
    result = CheckResult("leaks")
    layout = DataLayout(require_folder(data, "the data directory to check"))
    made = layout.training_lists()
    lists = [made.get(files, files) for files in layout.file_lists()]
    if not lists:
        raise UserError(f"{data} has no files_*.csv, so nothing says which clips are trained on.")
    leaks = find_leaks({path: read_file_list(path) for path in lists}, evaluation, trained, result)
    for leak in leaks:
        result.problem(leak.file_name, f"is {leak.sound} of {leak.set}, by its {leak.matched_by}")
    if csv is not None:
        write_csv(csv, COLUMNS, [[getattr(leak, name) for name in COLUMNS] for leak in leaks])
    return result


def find_leaks(
    listed: dict[Path, list[str]], evaluation: Sequence[Path], trained: Sequence[Path], result: CheckResult
) -> list[Leak]:
    """The leaks in some lists; a file may be in several sets. ``result`` gets the number of files, and notes."""
    of_set: dict[str, list[Alias]] = {}
    for one, alias in names_to_exclude(read_sets(evaluation), read_sets(trained)):
        of_set.setdefault(one.title, []).append(alias)
    leaks = []
    for path, names in listed.items():
        result.checked += len(names)
        files = AllReadings.of(pa.array(names, pa.string()), listed=True)
        for title, aliases in of_set.items():
            partner = files.partner(AllReadings.of(pa.array([alias.clip_id for alias in aliases], pa.string())))
            for row in np.flatnonzero(partner >= 0).tolist():
                alias = aliases[int(partner[row])]
                leaks.append(Leak(names[row], path.name, title, alias.matched_by, alias.sound))
    for (title, how), count in Counter((leak.set, leak.matched_by) for leak in leaks).items():
        result.notes.append(f"{count:,} clips are sounds of {title}, by their {how}")
    for title in of_set:
        if not any(leak.set == title for leak in leaks):
            result.notes.append(f"no clip is a sound of {title}, as far as ids and names tell")
    return sorted(leaks, key=lambda leak: (leak.file_name, leak.set))
