"""Captions made from label names, in the words of the original: "The sound of A, B, and C."."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def label_captions(labels: pa.Array) -> pa.Array:
    """One caption a list of label names (list<string> → string), names in their order, null where a list is empty.

    One label "The sound of A.", two "The sound of A, and B.", more "The sound of A, B, and C.".
    """
    lengths = pc.list_value_length(labels).to_numpy(zero_copy_only=False).astype(np.int64)
    ends = np.cumsum(lengths)
    last_of_several = np.zeros(int(ends[-1]) if len(ends) else 0, dtype=bool)
    last_of_several[ends[lengths > 1] - 1] = True
    names = pc.list_flatten(labels)
    names = pc.if_else(pa.array(last_of_several), pc.binary_join_element_wise("and ", names, ""), names)
    lists = pa.ListArray.from_arrays(pa.array(np.concatenate([[0], ends]), pa.int32()), names)
    sentences = pc.binary_join_element_wise("The sound of ", pc.binary_join(lists, ", "), ".", "")
    return pc.if_else(pa.array(lengths > 0), sentences, pa.scalar(None, pa.string()))
