"""Lists of clips that must stay out: ids or file names of evaluation sets, found in whatever form either side has.

`captions.exclusion_list` reads them. A name excludes every clip that it may mean (`artifacts.clip_exclusion`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from artifacts.clip_exclusion import AllReadings
from artifacts.columns import one_array


@dataclass(frozen=True)
class ExclusionList:
    """One list: where it was read, its names as they stand there, and ``read_as``, which part of the file they are."""

    path: str
    names: tuple[str, ...]
    read_as: str = ""


@dataclass(frozen=True)
class ExclusionCounts:
    """What a list did: how many clips it ``removed`` that no list before it had, and how many names are no clip's."""

    path: str
    names: int
    names_without_clip: int
    removed: int
    read_as: str = ""

    def __str__(self) -> str:
        return f"{self.removed:,} ({self.names:,} names, {self.names_without_clip:,} of no clip)"

    def lines(self, clips: str) -> list[str]:
        """What to say besides the counts: how the list was read, and that nothing was excluded."""
        said = [f"{self.path} was read as {self.read_as}."] if self.read_as else []
        if self.names_without_clip == self.names:
            said.append(f"0 of {self.names:,} names in {self.path} are those of {clips}: nothing was excluded by it.")
        return said


def keep_clips(
    clips: pa.Array | pa.ChunkedArray, lists: Sequence[ExclusionList], *, listed: bool = False
) -> tuple[np.ndarray, list[ExclusionCounts]]:
    """bool (N,): the ``clips`` (ids, or ``listed`` log-mels) that no list names, and what each list did.

    A list of videos removes every clip of these videos, whatever their start.
    """
    keep = np.ones(len(clips), bool)
    if not lists:
        return keep, []
    ids = one_array(clips)
    readings = AllReadings.of(ids, listed=listed)
    counts = []
    for exclusion in lists:
        names = AllReadings.of(pa.array(exclusion.names, pa.string()))
        named = readings.may_mean(names)
        hit = names.may_mean(AllReadings.of(ids.filter(pa.array(named)), listed=listed))
        counts.append(
            ExclusionCounts(exclusion.path, len(hit), int((~hit).sum()), int((named & keep).sum()), exclusion.read_as)
        )
        keep &= ~named
    return keep, counts
