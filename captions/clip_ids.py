"""Clip ids of whole columns: the forms of `artifacts.clip_id`, matched to the clips that a table knows."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from artifacts.clip_id import AUDIOSET_FORM, VGGSOUND_FORM

AUDIO_FILE = r"(?i)^(?:.*/)?([^/]+)\.(?:wav|flac|mp3|ogg|opus|m4a|aac|aif|aiff|npy)$"


def youtube_ids(names: pa.Array) -> pa.Array:
    """`artifacts.clip_id.youtube_id` of every name: VGGSound's form first, then AudioSet's; else null."""
    vggsound = whole(VGGSOUND_FORM.pattern)
    audioset = whole(AUDIOSET_FORM.pattern)
    return pc.if_else(
        pc.match_substring_regex(names, vggsound),
        pc.replace_substring_regex(names, vggsound, r"\1"),
        pc.if_else(
            pc.match_substring_regex(names, audioset),
            pc.replace_substring_regex(names, audioset, r"\1"),
            pa.scalar(None, names.type),
        ),
    )


def without_file_name(names: pa.Array) -> pa.Array:
    """Names of audio files without folder and suffix (``sub/rain.wav`` → ``rain``); other names stay as they are."""
    files = pc.match_substring_regex(names, AUDIO_FILE)
    return pc.replace_with_mask(names, files, pc.replace_substring_regex(names.filter(files), AUDIO_FILE, r"\1"))


def match_clips(names: pa.Array, clips: pa.Array) -> pa.Array:
    """For every name the row of its clip in ``clips`` (unique ids), int32; null where no clip is meant.

    The most literal reading wins: the name itself, then without an audio file's folder and suffix, then the YouTube
    id where the name has one of its forms. A clip named ``dog_barking_000001`` is never taken for another one.
    """
    stems = without_file_name(names)
    readings = (names, stems, youtube_ids(stems))
    return pc.coalesce(*(pc.index_in(reading, value_set=clips, skip_nulls=True) for reading in readings))


def whole(pattern: str) -> str:
    """A regular expression that must match all of a text."""
    return rf"^(?:{pattern})$"
