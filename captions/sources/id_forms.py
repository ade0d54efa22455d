"""Ids in the forms in which caption sets write YouTube ids, by the forms that the declared source has.

The form of the whole id decides, never its first letter, and of all forms only those of its source
(`artifacts.clips.caption_sets`): ``<id>_110000`` is second 110,000 in VGGSound, but second 110 in AudioSet's strong
labels.
The result is the name by which `artifacts.clips.matching` finds the clip. An id whose start tells clips of one video
apart stays as it is; where the set has one clip a video, it becomes the YouTube id.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from m2dprep.artifacts.clips.caption_sets import BARE, DURATION, HUNDREDTHS, ID_FORMS, LETTER_Y, MILLISECONDS, SECONDS
from m2dprep.artifacts.clips.readings import last_parts, paths, whole
from m2dprep.artifacts.columns import one_array
from m2dprep.artifacts.text_files import EXAMPLES, Tally

VIDEO = r"[0-9A-Za-z_-]{11}"
# Group 1 is the name that is left; whole milliseconds have no leading zero.
PATTERNS = {
    SECONDS: rf"({VIDEO}_[0-9]{{6}})",
    HUNDREDTHS: rf"({VIDEO}(?:_[0-9]+){{4}})",
    DURATION: rf"({VIDEO}_[0-9]+_[0-9]+)",
    MILLISECONDS: rf"({VIDEO})_(?:0|[1-9][0-9]*)",
    LETTER_Y: rf"Y({VIDEO})",
    BARE: rf"({VIDEO})",
}


def by_forms(
    ids: pa.ChunkedArray, forms: tuple[str, ...], title: str
) -> tuple[pa.ChunkedArray, list[tuple[str, Tally]]]:
    """The ids as names of clips, and what was odd about them, each with a line's beginning.

    The first of the ``forms``, in the order of `ID_FORMS`, that fits an id is taken; if another one would give another
    name, the id is ambiguous and counted. Ids that no form fits stay, and are counted. Folders stay as well.
    """
    names = paths(one_array(ids))
    stems = last_parts(names)
    in_folder = pc.not_equal(names, stems).to_numpy(zero_copy_only=False)
    result, found = names, np.zeros(len(names), bool)
    ambiguous = np.zeros(len(names), bool)
    order = [form for form in ID_FORMS if form in forms]
    for form in order:
        pattern = whole(PATTERNS[form])
        fits = pc.match_substring_regex(stems, pattern).to_numpy(zero_copy_only=False)
        if not fits.any():
            continue
        read = pc.replace_substring_regex(stems, pattern, r"\1")
        ambiguous |= fits & found & ~in_folder & pc.not_equal(read, result).to_numpy(zero_copy_only=False)
        taken = fits & ~found & ~in_folder
        result = pc.if_else(pa.array(taken), read, result)
        found |= fits
    there = pc.not_equal(names, "").to_numpy(zero_copy_only=False)
    notes = [
        (f"ids of {title} that may be read in two ways (as the first of {', '.join(order)})", ambiguous),
        (f"ids in no form of {title}, taken as they are", there & ~found),
    ]
    kept = pc.if_else(pa.array(found), result, one_array(ids))
    return pa.chunked_array([kept]), [(text, _tally(ids, rows)) for text, rows in notes if rows.any()]


def _tally(ids: pa.ChunkedArray, there: np.ndarray) -> Tally:
    rows = np.flatnonzero(there)
    return Tally(len(rows), tuple(map(repr, ids.take(pa.array(rows[:EXAMPLES])).to_pylist())))
