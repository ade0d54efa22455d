"""Whether names may mean one clip, for what has to stay out: by any reading of both, however many share it.

The readings are those of `artifacts.clip_matching`. Where a caption needs the one clip that a name means, an exclusion
needs every clip that it may mean: a name without a folder is that of a clip in any folder, and all clips of a video are
one, whatever their start. Names in different folders are different clips here too: ``dog/001`` is not ``cat/001``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from artifacts.clip_readings import folded, last_parts, paths, read_forms, shorter_ends, timed_ids


@dataclass(frozen=True)
class AllReadings:
    """Every reading of some names: all of their paths (``whole``), ends of these, YouTube ids, last parts.

    ``whole`` and ``ends`` are texts and the rows that they belong to, None for all.
    """

    whole: list[tuple[np.ndarray | None, pa.Array]]
    ends: list[tuple[np.ndarray | None, pa.Array]]
    youtube_ids: pa.Array
    stems: pa.Array

    @classmethod
    def of(cls, names: pa.Array, *, listed: bool = False) -> AllReadings:
        """``listed``: the names are those of log-mels; without their first folder they are whole still."""
        path = paths(names)
        whole: list[tuple[np.ndarray | None, pa.Array]] = [(None, names)]
        ends: list[tuple[np.ndarray | None, pa.Array]] = []
        for texts in (path, folded(path)):
            if texts is not None:
                whole.append((None, texts))
                for depth, shorter in enumerate(shorter_ends(texts), 1):
                    (whole if listed and depth == 1 else ends).append(shorter)
        stems = last_parts(path if (fold := folded(path)) is None else fold)
        return cls(whole, ends, pc.coalesce(read_forms(stems)[0], timed_ids(stems)), stems)

    def may_mean(self, others: AllReadings) -> np.ndarray:
        """bool (N,): whether each of these names and any of the ``others`` may be one clip."""
        found = np.zeros(len(self.stems), bool)
        for readings, wanted in (
            (self.whole, [*others.whole, *others.ends]),
            (self.ends, others.whole),
            ([(None, self.youtube_ids)], [(None, others.youtube_ids), (None, others.stems)]),
            ([(None, self.stems)], [(None, others.youtube_ids)]),
        ):
            values = pa.concat_arrays([pa.array([], pa.string()), *(texts for _, texts in wanted)]).drop_null()
            for rows, texts in readings:
                there = pc.is_in(texts, value_set=values, skip_nulls=True).to_numpy(zero_copy_only=False)
                found[there if rows is None else rows[there]] = True
        return found
