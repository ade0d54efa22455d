"""Clip ids from file names: YouTube ids in the forms that AudioSet copies and VGGSound use, plain stems otherwise.

Which clip of a table a name means is another question: `artifacts.clip_matching`.
"""

from __future__ import annotations

import re

from artifacts.audio_names import without_suffix

# VGGSound: 11-character YouTube id, "_", start second in six digits. Tried before any form with a leading "Y".
VGGSOUND_FORM = re.compile(r"([\w-]{11})_(\d{6})", re.ASCII)
# AudioSet copies: "Y" + 11-character id, optionally followed by start (and end) in seconds or milliseconds.
AUDIOSET_FORM = re.compile(r"Y([\w-]{11})(?:_\d+(?:\.\d+)?){0,2}", re.ASCII)
# AudioSet copies that carry the segment's times without the "Y".
TIMED_FORM = re.compile(r"([\w-]{11})(?:_\d+(?:\.\d+)?){1,2}", re.ASCII)


def youtube_id(name: str) -> str | None:
    """The YouTube id in a name of the forms ``<id>_<6 digits>``, ``Y<id>`` or ``Y<id>_<start>[_<end>]``, else None.

    The form decides, never a first letter: ``YXqu1CeA2c4_000044`` is the VGGSound clip of the video ``YXqu1CeA2c4``.
    A name of exactly 11 characters is returned by nobody here: it already is an id.
    """
    match = VGGSOUND_FORM.fullmatch(name) or AUDIOSET_FORM.fullmatch(name)
    return match[1] if match else None


def clip_id(file_name: str) -> str:
    """The clip id of an audio file or log-mel: the YouTube id where the name has one of its forms, else the stem."""
    stem = file_stem(file_name)
    return youtube_id(stem) or stem


def file_stem(file_name: str) -> str:
    """The last path component without its suffix; ids with dots in their start times keep them."""
    parts = [part for part in file_name.split("/") if part not in ("", ".")]
    return without_suffix(parts[-1] if parts else "")
