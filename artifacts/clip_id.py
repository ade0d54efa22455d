"""Clip ids from file names: YouTube ids in the forms that AudioSet copies and VGGSound use, plain stems otherwise."""

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


def clip_id_candidates(file_name: str) -> list[str]:
    """Ids under which a file's captions may be found, from the most literal to the most derived, without repeats.

    A table that knows the whole stem wins over any reading of it, so a set with files ``dog_barking_01`` and
    ``dog_barking_02`` is never folded into one clip only because ``dog_barking`` has the length of a YouTube id. Sets
    of several parts that number their files alike (WavCaps) have ids with the part's folder: ``FreeSound/1234``.
    """
    folder, name = _last_two(file_name)
    stem = without_suffix(name)
    candidates = [f"{folder}/{stem}", stem] if folder and folder != ".." else [stem]
    derived = [youtube_id(stem)]
    if timed := TIMED_FORM.fullmatch(stem):
        derived.append(timed[1])
    for candidate in derived:
        if candidate and candidate not in candidates:
            candidates.append(candidate)
    return candidates


def file_stem(file_name: str) -> str:
    """The last path component without its suffix; ids with dots in their start times keep them."""
    return without_suffix(_last_two(file_name)[1])


def _last_two(file_name: str) -> tuple[str, str]:
    """Folder and name at the end of a path, as `PurePosixPath` tells them, which takes ten times as long."""
    parts = [part for part in file_name.split("/") if part not in ("", ".")]
    return parts[-2] if len(parts) > 1 else "", parts[-1] if parts else ""
