"""All readings of clip names, for whole columns: as paths, as ends of paths, as YouTube ids.

A name is an id in a table, the name of an audio file, or a listed log-mel. `artifacts.clips.matching` decides which
reading counts; `artifacts.clips.clip_id` describes the same texts for a single name.

`AllReadings` tells whether two names may mean one clip by any reading, however many names share it. A caption needs the
one clip that its name means, but an exclusion needs every clip that its name may mean: a name without a folder may mean
a clip in any folder, and all clips of a video are one, whatever their start. Names in different folders remain
different clips: ``dog/001`` is not ``cat/001``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from m2dprep.artifacts.clips.clip_id import AUDIO_SUFFIXES, AUDIOSET_FORM, LOG_MEL_SUFFIX, TIMED_FORM, VGGSOUND_FORM
from m2dprep.artifacts.columns import holds_byte, text_bytes

SUFFIX = rf"(?i)([^/])\.(?:{'|'.join(map(re.escape, sorted({*AUDIO_SUFFIXES, LOG_MEL_SUFFIX})))})$"
# What a path may hold besides folders and a name: `//`, `/./`, a slash at either end.
SURPLUS = r"//|(?:^|/)\.(?:/|$)|^/|/$"
# Differences between tables and file systems: characters that Windows forbids, white space around a name.
FORBIDDEN = r'[:?*"<>|\\]'
# A folder that is named after the format of its files, as WavCaps' FreeSound_flac: the same as without.
FORMATS = ("flac", "wav", "mp3", "ogg", "opus", "m4a")
FORMAT_FOLDER = rf"([^/])_(?:{'|'.join(FORMATS)})/"
UNUSUAL = rf"{FORMAT_FOLDER}|{FORBIDDEN}|(?:^|/)\s|\s(?:/|$)|[^\x00-\x7f]"
NAMELESS = f"/.{LOG_MEL_SUFFIX}"
ID_BYTES = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-"
USUAL_BYTES = ID_BYTES + b"./,;+=()[]{}&%$#@!~^'`"
VGGSOUND_LENGTH, AUDIOSET_LENGTH, ID_LENGTH = 18, 12, 11


def only_id_bytes(content: np.ndarray) -> bool:
    """Whether all bytes (uint8) are characters that may occur in a YouTube id."""
    return not content.tobytes().translate(None, delete=ID_BYTES)


def is_plain(names: pa.Array) -> bool:
    """Whether the names certainly are their own paths: without folders, suffixes and unusual characters."""
    content = text_bytes(names)[0]
    return only_id_bytes(content)


def paths(names: pa.Array) -> pa.Array:
    """The names as paths without an audio file's or log-mel's suffix: ``./a//b.WAV`` → ``a/b``, ``b.c`` → ``b.c``."""
    if is_plain(names):
        return names
    stems = _without_suffix(names)
    if not _may_hold_surplus(stems) or not pc.any(surplus := pc.match_substring_regex(stems, SURPLUS)).as_py():
        return stems
    cleaned = [
        "/".join(part for part in path.split("/") if part not in ("", "."))
        for path in stems.filter(surplus).to_pylist()
    ]
    return pc.replace_with_mask(stems, surplus, pa.array(cleaned, pa.string()))


def _without_suffix(names: pa.Array) -> pa.Array:
    if not holds_byte(names, b"."):
        return names
    if pc.all(pc.and_(pc.ends_with(names, f".{LOG_MEL_SUFFIX}"), pc.invert(pc.ends_with(names, NAMELESS)))).as_py():
        return pc.binary_slice(names.cast(pa.binary()), 0, -len(LOG_MEL_SUFFIX) - 1).cast(pa.string())
    return pc.replace_substring_regex(names, SUFFIX, r"\1")


def _may_hold_surplus(texts: pa.Array) -> bool:
    """Whether any path may match `SURPLUS`; quick if none does."""
    content = text_bytes(texts)[0].tobytes()
    if b"//" in content or b"/./" in content or (b"." in content and pc.any(pc.equal(texts, ".")).as_py()):
        return True
    if b"/" not in content:
        return False
    ends = [
        pc.starts_with(texts, "/"),
        pc.ends_with(texts, "/"),
        pc.starts_with(texts, "./"),
        pc.ends_with(texts, "/."),
    ]
    return any(pc.any(end).as_py() for end in ends)


def shorter_ends(texts: pa.Array) -> Iterator[tuple[np.ndarray, pa.Array]]:
    """All shorter ends of paths, the longest first: ``a/b/c`` → ``b/c``, then ``c``; each step with its rows, int64."""
    rows = np.arange(len(texts))
    while len(texts) and holds_byte(texts, b"/"):
        deeper = pc.match_substring(texts, "/")
        rows = rows[deeper.to_numpy(zero_copy_only=False)]
        texts = pc.list_element(pc.split_pattern(texts.filter(deeper), "/", max_splits=1), 1)
        yield rows, texts


def last_parts(texts: pa.Array) -> pa.Array:
    """The part after the last ``/`` of each path."""
    if not holds_byte(texts, b"/"):
        return texts
    parts = pc.split_pattern(texts, "/", max_splits=1, reverse=True)
    return parts.flatten().take(pc.subtract(parts.offsets[1:], 1))


def folded(texts: pa.Array) -> pa.Array | None:
    """Paths in a form on which tables and file systems agree; None if that changes no path.

    Characters that Windows forbids become ``_``, white space around a name or folder is removed, and letters with
    accents become one character (macOS decomposes them). Folders lose the name of a format at their end.
    """
    content = text_bytes(texts)[0].tobytes()
    usual = not content.translate(None, delete=USUAL_BYTES) and not any(
        f"_{one}/".encode() in content for one in FORMATS
    )
    if usual or not pc.any(unusual := pc.match_substring_regex(texts, UNUSUAL)).as_py():
        return None
    odd = pc.utf8_normalize(texts.filter(unusual), form="NFC")
    odd = pc.utf8_trim_whitespace(pc.replace_substring_regex(odd, FORBIDDEN, "_"))
    odd = pc.replace_substring_regex(odd, FORMAT_FOLDER, r"\1/")
    return pc.replace_with_mask(texts, unusual, pc.replace_substring_regex(odd, r"\s*/\s*", "/"))


def youtube_ids(stems: pa.Array) -> pa.Array:
    """`artifacts.clips.clip_id.youtube_id` of each stem: VGGSound's form first, then AudioSet's; else null."""
    return read_forms(stems)[0]


def timed_ids(stems: pa.Array) -> pa.Array:
    """The first eleven characters of ``<id>_30.000_40.000`` (AudioSet copies without the "Y"); else null."""
    form = whole(TIMED_FORM.pattern)
    fits = pc.match_substring_regex(stems, form)
    return pc.if_else(fits, pc.replace_substring_regex(stems, form, r"\1"), pa.scalar(None, stems.type))


def read_forms(stems: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """The YouTube id (or null) and the start second of VGGSound's form (or NaN) of each stem.

    If all bytes may occur in an id, the two frequent forms are recognised by their length and a few bytes; regular
    expressions read the rest.
    """
    content, offsets = text_bytes(stems)
    lengths = np.diff(offsets)
    seconds = np.full(len(stems), np.nan)
    audioset, vggsound = np.zeros(len(stems), bool), np.zeros(len(stems), bool)
    if only_id_bytes(content):
        rows = np.flatnonzero(lengths == AUDIOSET_LENGTH)
        audioset[rows] = content[offsets[rows]] == ord("Y")
        rows = np.flatnonzero(lengths == VGGSOUND_LENGTH)
        tail = content[offsets[rows, None] + np.arange(ID_LENGTH, VGGSOUND_LENGTH)].astype(np.int64)
        digits = tail[:, 1:] - ord("0")
        is_form = (tail[:, 0] == ord("_")) & ((digits >= 0) & (digits <= 9)).all(axis=1)
        vggsound[rows[is_form]] = True
        seconds[rows[is_form]] = digits[is_form] @ 10 ** np.arange(5, -1, -1)
    ids = _windows(content, offsets[:-1] + audioset, audioset | vggsound)
    left = ~(audioset | vggsound) & (lengths >= AUDIOSET_LENGTH)
    if left.any():
        others = stems.filter(pa.array(left))
        ids = pc.replace_with_mask(ids, pa.array(left), _read_with_expressions(others))
        seconds[left] = _start_with_expressions(others)
    return ids, seconds


def _windows(content: np.ndarray, starts: np.ndarray, there: np.ndarray) -> pa.Array:
    """The texts (N,) of `ID_LENGTH` bytes from ``starts`` on; null where ``there`` is False."""
    if not there.any():
        return pa.nulls(len(starts), pa.string())
    windows = np.ndarray(len(content) - ID_LENGTH + 1, f"V{ID_LENGTH}", content, strides=(1,))
    texts = windows[np.where(there, starts, 0)]
    offsets = np.arange(len(starts) + 1, dtype=np.int32) * ID_LENGTH
    validity = None if there.all() else pa.py_buffer(np.packbits(there, bitorder="little"))
    return pa.StringArray.from_buffers(len(starts), pa.py_buffer(offsets), pa.py_buffer(texts), validity)


def _read_with_expressions(stems: pa.Array) -> pa.Array:
    vggsound, audioset = whole(VGGSOUND_FORM.pattern), whole(AUDIOSET_FORM.pattern)
    return pc.if_else(
        pc.match_substring_regex(stems, vggsound),
        pc.replace_substring_regex(stems, vggsound, r"\1"),
        pc.if_else(
            pc.match_substring_regex(stems, audioset),
            pc.replace_substring_regex(stems, audioset, r"\1"),
            pa.scalar(None, stems.type),
        ),
    )


def _start_with_expressions(stems: pa.Array) -> np.ndarray:
    form = whole(VGGSOUND_FORM.pattern)
    digits = pc.if_else(
        pc.match_substring_regex(stems, form), pc.replace_substring_regex(stems, form, r"\2"), pa.scalar(None)
    )
    return digits.cast(pa.string()).cast(pa.float64()).to_numpy(zero_copy_only=False)


def whole(pattern: str) -> str:
    """A regular expression that must match all of a text."""
    return rf"^(?:{pattern})$"


@dataclass(frozen=True)
class AllReadings:
    """Every reading of some names: their whole paths, the ends of these, YouTube ids, and last parts.

    ``whole`` and ``ends`` are texts with the rows to which they belong (None: all rows).
    """

    whole: list[tuple[np.ndarray | None, pa.Array]]
    ends: list[tuple[np.ndarray | None, pa.Array]]
    youtube_ids: pa.Array
    stems: pa.Array

    @classmethod
    def of(cls, names: pa.Array, *, listed: bool = False) -> AllReadings:
        """If the names are ``listed`` log-mels, their paths without the first folder still count as whole."""
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
        """bool (N,): whether each of these names may mean the same clip as any of the ``others``."""
        return self.partner(others) >= 0

    def partner(self, others: AllReadings) -> np.ndarray:
        """int64 (N,): for each of these names the row of one of the ``others`` that may mean the same clip, or -1."""
        found = np.full(len(self.stems), -1, np.int64)
        for readings, wanted in (
            (self.whole, [*others.whole, *others.ends]),
            (self.ends, others.whole),
            ([(None, self.youtube_ids)], [(None, others.youtube_ids), (None, others.stems)]),
            ([(None, self.stems)], [(None, others.youtube_ids)]),
        ):
            values = pa.concat_arrays([pa.array([], pa.string()), *(texts for _, texts in wanted)])
            of_value = np.concatenate(
                [np.zeros(0, np.int64), *(np.arange(len(t)) if rows is None else rows for rows, t in wanted)]
            )
            for rows, texts in readings:
                at = pc.index_in(texts, value_set=values, skip_nulls=True)
                there = at.is_valid().to_numpy(zero_copy_only=False)
                mine = np.flatnonzero(there) if rows is None else rows[there]
                new = found[mine] < 0
                found[mine[new]] = of_value[at.drop_null().to_numpy(zero_copy_only=False)][new]
        return found
