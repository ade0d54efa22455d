"""Captions made from label names by a template: the original's, LAION's CLAP's, or one's own."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from m2dprep.artifacts.errors import UserError

LABEL, LABELS, LAST = "{label}", "{labels}", "{last}"


@dataclass(frozen=True)
class Template:
    """One sentence for one label (``one``, with ``{label}``) and one for several (``many``, with ``{labels}``).

    ``many`` may also hold ``{last}``, the last label; then ``{labels}`` are those before it, joined by commas. Without
    it ``{labels}`` are all of them. Names and their order are as in the segment list.
    """

    one: str
    many: str

    def __post_init__(self) -> None:
        if self.one.count(LABEL) != 1:
            raise UserError(f"the template {self.one!r} needs {LABEL} once, where the label goes.")
        if self.many.count(LABELS) != 1 or self.many.count(LAST) > 1:
            raise UserError(f"the template {self.many!r} needs {LABELS} once, and {LAST} at most once.")
        for text in (self.one, self.many.replace(LABELS, LABEL).replace(LAST, LABEL)):
            if set(text.replace(LABEL, "")) & set("{}"):
                raise UserError(f"the template {text!r} holds braces of no known name.")
        if self.many.find(LAST) >= 0 and self.many.find(LAST) < self.many.find(LABELS):
            raise UserError(f"the template {self.many!r} needs {LABELS} before {LAST}.")


M2D = Template("The sound of {label}.", "The sound of {labels}, and {last}.")
TEMPLATES = {"m2d": M2D, "laion": Template("The sound of {label}", "The sounds of {labels} and {last}")}


def read_template(one: str, many: str | None = None) -> Template:
    """A template of `TEMPLATES` by its name, or one's own: ``one`` and ``many`` as in `Template`.

    If ``many`` is None, it is ``one`` with the labels enumerated as in the original: ``A, B, and C``. Raises
    `UserError` if the placeholders are wrong.
    """
    known = TEMPLATES.get(one)
    if known is None:
        return Template(one, one.replace(LABEL, f"{LABELS}, and {LAST}") if many is None else many)
    return known if many is None else Template(known.one, many)


def label_captions(labels: pa.Array, template: Template = M2D) -> pa.Array:
    """One caption per list of label names (list<string> → string), null if a list is empty."""
    lengths = pc.list_value_length(labels).to_numpy(zero_copy_only=False).astype(np.int64)
    ends, names = np.cumsum(lengths), labels.flatten()
    single = np.flatnonzero(lengths == 1)
    several = np.flatnonzero(lengths > 1)
    last = names.take(pa.array(ends[several] - 1)) if len(several) else pa.array([], pa.string())
    before = _lists_without_last(names, lengths, LAST in template.many)
    joined = pc.binary_join(before, ", ").take(pa.array(several))
    made = pa.concat_arrays(
        [
            _filled(template.one, {LABEL: names.take(pa.array(ends[single] - 1))}, len(single)),
            _filled(template.many, {LABELS: joined, LAST: last}, len(several)),
        ]
    )
    place = np.full(len(labels), -1)
    place[single], place[several] = np.arange(len(single)), len(single) + np.arange(len(several))
    return made.take(pa.array(place, mask=place < 0))


def _lists_without_last(names: pa.Array, lengths: np.ndarray, without: bool) -> pa.Array:
    """The lists with these ``lengths``; with ``without``, lists of several elements lose their last one."""
    ends = np.cumsum(lengths)
    keep = np.ones(len(names), bool)
    if without:
        keep[ends[lengths > 1] - 1] = False
    offsets = np.concatenate([[0], np.cumsum(keep)])[np.concatenate([[0], ends])]
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), names.filter(pa.array(keep)))


def _filled(template: str, values: dict[str, pa.Array], rows: int) -> pa.Array:
    """The template with its placeholders replaced by the rows of ``values``."""
    parts: list[str | pa.Array] = [template]
    for name, value in values.items():
        parts = [
            piece
            for part in parts
            for piece in (_split(part, name, value) if isinstance(part, str) and name in part else [part])
        ]
    texts = [pa.repeat(part, rows) if isinstance(part, str) else part for part in parts]
    return pc.binary_join_element_wise(*texts, "").cast(pa.string())


def _split(text: str, name: str, value: pa.Array) -> list[str | pa.Array]:
    before, after = text.split(name)
    return [before, value, after]
