"""Clip ids of whole columns: the forms of `artifacts.clip_id`, matched to the clips that a table knows."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from artifacts.audio_names import AUDIO_FILE
from artifacts.clip_id import AUDIOSET_FORM, TIMED_FORM, VGGSOUND_FORM
from captions.columns import Lookup, chunks, holds_byte, in_threads, one_array, text_bytes

ID_BYTES = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-"
FEW = 4  # names are few where clips are so many times as many
VGGSOUND_LENGTH, AUDIOSET_LENGTH, ID_LENGTH = 18, 12, 11


class Matches(NamedTuple):
    """For every name the row of its clip, int32 with null where no clip is meant, and the start second it names.

    ``start_seconds`` float64 (N,) is that of VGGSound's form, where the name was read by it; NaN elsewhere.
    """

    clip: pa.Array
    start_seconds: np.ndarray


def only_id_bytes(content: np.ndarray) -> bool:
    """Whether all bytes (uint8) are of characters that YouTube's ids consist of."""
    return not content.tobytes().translate(None, delete=ID_BYTES)


def youtube_ids(names: pa.Array) -> pa.Array:
    """`artifacts.clip_id.youtube_id` of every name: VGGSound's form first, then AudioSet's; else null."""
    return _read_forms(names)[0]


def _read_forms(names: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """The YouTube id (or null) and the start second (or NaN) of every name.

    Where all bytes may stand in an id, the two frequent forms are told by their length and a few bytes; regular
    expressions read what is left.
    """
    content, offsets = text_bytes(names)
    lengths = np.diff(offsets)
    seconds = np.full(len(names), np.nan)
    audioset, vggsound = np.zeros(len(names), bool), np.zeros(len(names), bool)
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
        others = names.filter(pa.array(left))
        ids = pc.replace_with_mask(ids, pa.array(left), _read_with_expressions(others))
        seconds[left] = _start_with_expressions(others)
    return ids, seconds


def _windows(content: np.ndarray, starts: np.ndarray, there: np.ndarray) -> pa.Array:
    """The texts of `ID_LENGTH` bytes from ``starts`` on (N,); null where they are not ``there``."""
    if not there.any():
        return pa.nulls(len(starts), pa.string())
    windows = np.ndarray(len(content) - ID_LENGTH + 1, f"V{ID_LENGTH}", content, strides=(1,))
    texts = windows[np.where(there, starts, 0)]
    offsets = np.arange(len(starts) + 1, dtype=np.int32) * ID_LENGTH
    validity = None if there.all() else pa.py_buffer(np.packbits(there, bitorder="little"))
    return pa.StringArray.from_buffers(len(starts), pa.py_buffer(offsets), pa.py_buffer(texts), validity)


def _read_with_expressions(names: pa.Array) -> pa.Array:
    vggsound, audioset = whole(VGGSOUND_FORM.pattern), whole(AUDIOSET_FORM.pattern)
    return pc.if_else(
        pc.match_substring_regex(names, vggsound),
        pc.replace_substring_regex(names, vggsound, r"\1"),
        pc.if_else(
            pc.match_substring_regex(names, audioset),
            pc.replace_substring_regex(names, audioset, r"\1"),
            pa.scalar(None, names.type),
        ),
    )


def _start_with_expressions(names: pa.Array) -> np.ndarray:
    form = whole(VGGSOUND_FORM.pattern)
    digits = pc.if_else(
        pc.match_substring_regex(names, form), pc.replace_substring_regex(names, form, r"\2"), pa.scalar(None)
    )
    return digits.cast(pa.string()).cast(pa.float64()).to_numpy(zero_copy_only=False)


def without_file_name(names: pa.Array) -> pa.Array:
    """Names of audio files without folder and suffix (``sub/rain.wav`` → ``rain``); other names stay as they are."""
    if not holds_byte(names, b"."):
        return names
    files = pc.match_substring_regex(names, AUDIO_FILE)
    return pc.replace_with_mask(names, files, pc.replace_substring_regex(names.filter(files), AUDIO_FILE, r"\1"))


def match_clips(names: pa.Array | pa.ChunkedArray, clips: pa.Array) -> Matches:
    """Find the clips that ``names`` (no nulls) mean among ``clips`` (unique ids).

    The most literal reading wins: the name itself, then without an audio file's folder and suffix, then the YouTube
    id where the name has one of its forms. A clip named ``dog_barking_000001`` is never taken for another one.
    """
    stems = [without_file_name(chunk) for chunk in chunks(names)]
    with _Finder(names, clips) as find:
        ids, seconds = zip(*in_threads(_read_forms, stems), strict=True)
        literal = find(names)
        if any(stem is not chunk for stem, chunk in zip(stems, chunks(names), strict=True)):
            literal = pc.coalesce(literal, find(pa.chunked_array(stems)))
        clip = pc.coalesce(literal, find(pa.chunked_array(ids)))
    start = np.concatenate(seconds)
    start[literal.is_valid().to_numpy(zero_copy_only=False)] = np.nan
    return Matches(clip, start)


class _Finder:
    """Finds the rows of names among ``clips``, which it sorts in a thread where ``names`` are many."""

    def __init__(self, names: pa.Array | pa.ChunkedArray, clips: pa.Array) -> None:
        self._clips = clips
        self._pool = ThreadPoolExecutor(1)
        self._lookup = self._pool.submit(Lookup, clips) if FEW * len(names) > len(clips) else None
        self._lengths = np.unique(pc.binary_length(clips).to_numpy(zero_copy_only=False))

    def __enter__(self) -> _Finder:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown()

    def __call__(self, names: pa.Array | pa.ChunkedArray) -> pa.Array:
        """int32 (N,): the clip of every name, null where there is none. Names as long as no clip's are passed over."""
        own = pc.fill_null(pc.binary_length(names), -1)
        possible = np.isin(np.asarray(own), self._lengths)
        if not possible.any():
            return pa.nulls(len(names), pa.int32())
        if possible.all():
            return self._index_in(one_array(names))
        rows = self._index_in(one_array(names.filter(pa.array(possible))))
        return pc.replace_with_mask(pa.nulls(len(names), pa.int32()), pa.array(possible), rows)

    def _index_in(self, names: pa.Array) -> pa.Array:
        """The row of every name. Of few names and many clips, the clips are looked up in the names."""
        if self._lookup is not None:
            return self._lookup.result()(names)
        encoded = names.dictionary_encode()
        name_of_clip = pc.index_in(self._clips, value_set=encoded.dictionary)
        known = np.flatnonzero(name_of_clip.is_valid().to_numpy(zero_copy_only=False))
        clip_of_name = np.full(len(encoded.dictionary), -1, np.int32)
        clip_of_name[name_of_clip.take(pa.array(known)).to_numpy()] = known
        rows = clip_of_name[encoded.indices.to_numpy(zero_copy_only=False)]
        return pa.array(rows, mask=rows < 0)


def whole(pattern: str) -> str:
    """A regular expression that must match all of a text."""
    return rf"^(?:{pattern})$"


def timed_ids(names: pa.Array) -> pa.Array:
    """The first eleven characters of names like ``<id>_30.000_40.000`` (AudioSet copies without the "Y"); else null."""
    form = whole(TIMED_FORM.pattern)
    fits = pc.match_substring_regex(names, form)
    return pc.if_else(fits, pc.replace_substring_regex(names, form, r"\1"), pa.scalar(None, names.type))
