"""From the name of an audio file to its clip id: the YouTube id in names of AudioSet and VGGSound, else the stem.

This module has the only list of audio suffixes: the search for sources, the names of arrays, clip ids, exclusion lists
and caption tables all use it, because a second list would give a caption table other clips than the folder has. Which
clip of a table a name means is decided in `artifacts.clips.matching`.
"""

from __future__ import annotations

import re

# Formats that libsndfile reads, by itself or with our own readers in front.
PLAIN_SUFFIXES = frozenset(
    {
        *("wav", "wave", "bwf", "bw64", "rf64", "w64", "aiff", "aif", "aifc", "aff", "au", "snd", "caf", "flac"),
        *("ogg", "oga", "opus", "mp3", "mp2", "mp1", "mpga", "mpa", "sph", "nist", "voc", "gsm", "avr", "svx"),
        *("8svx", "ircam", "sd2", "pvf"),
    }
)
# Other encodings of sound alone; they need a second decoder.
CODED_SUFFIXES = frozenset(
    {
        *("m4a", "m4b", "m4p", "m4r", "mka", "weba", "aac", "adts", "ac3", "eac3", "ec3", "ac4", "dts", "dtshd"),
        *("mlp", "thd", "truehd", "alac", "ape", "tta", "tak", "wv", "wma", "amr", "awb", "3ga", "spx", "mpc", "mpp"),
        *("mp+", "ofr", "shn", "qcp", "ra", "aa", "aax", "dsf", "dff", "xwma", "aptx", "lc3"),
    }
)
# Videos; their first audio stream counts.
VIDEO_SUFFIXES = frozenset(
    {
        *("mp4", "m4v", "mov", "qt", "mkv", "mk3d", "webm", "avi", "flv", "f4v", "f4a", "f4b", "3gp", "3gpp", "3g2"),
        *("3gp2", "mpg", "mpeg", "mpe", "m2ts", "mts", "m2p", "vob", "ogv", "ogm", "ogx", "wmv", "asf", "rm", "rmvb"),
        *("divx", "mxf"),
    }
)
AUDIO_SUFFIXES = PLAIN_SUFFIXES | CODED_SUFFIXES | VIDEO_SUFFIXES
LOG_MEL_SUFFIX = "npy"
KNOWN_SUFFIXES = AUDIO_SUFFIXES | {LOG_MEL_SUFFIX}

# For whole columns of names (RE2): group 1 is the name of an audio file or log-mel without folder and suffix.
AUDIO_FILE = rf"(?i)^(?:.*/)?([^/]+)\.(?:{'|'.join(map(re.escape, sorted(KNOWN_SUFFIXES)))})$"
# The shape of a suffix that is on no list. Start times (`_30.000`), running numbers (`blues.00000`), single letters
# (`Yabc.d`) and words belong to the name.
UNKNOWN_SUFFIX = re.compile(r"(?=[0-9]?[a-z])[a-z0-9]{2,5}", re.ASCII | re.IGNORECASE)


def suffix_of(name: str) -> str:
    """The part after the last dot of a file's name, in lower case; empty for a file called ``.wav``."""
    stem, _, suffix = name.rpartition(".")
    return suffix.lower() if stem and stem[-1] != "/" else ""


def has_audio_suffix(name: str) -> bool:
    """Whether the name alone says that a file holds sound."""
    return suffix_of(name) in AUDIO_SUFFIXES


def without_suffix(name: str) -> str:
    """A file's name or path without its last suffix, whatever format that names: ``a.tar.gz`` → ``a.tar``."""
    stem, _, suffix = name.rpartition(".")
    if stem and stem[-1] != "/" and (suffix.lower() in KNOWN_SUFFIXES or UNKNOWN_SUFFIX.fullmatch(suffix)):
        return stem
    return name


# VGGSound: 11-character YouTube id, "_", start second in six digits. Tried before any form with a leading "Y".
VGGSOUND_FORM = re.compile(r"([\w-]{11})_(\d{6})", re.ASCII)
# AudioSet copies: "Y" + 11-character id, optionally followed by start (and end) in seconds or milliseconds.
AUDIOSET_FORM = re.compile(r"Y([\w-]{11})(?:_\d+(?:\.\d+)?){0,2}", re.ASCII)
# AudioSet copies that carry the segment's times without the "Y".
TIMED_FORM = re.compile(r"([\w-]{11})(?:_\d+(?:\.\d+)?){1,2}", re.ASCII)


def youtube_id(name: str) -> str | None:
    """The YouTube id in a name of the forms ``<id>_<6 digits>``, ``Y<id>`` or ``Y<id>_<start>[_<end>]``, else None.

    The form decides, never the first letter: ``YXqu1CeA2c4_000044`` is the VGGSound clip of the video ``YXqu1CeA2c4``.
    A name of exactly 11 characters gives None: it is an id already.
    """
    match = VGGSOUND_FORM.fullmatch(name) or AUDIOSET_FORM.fullmatch(name)
    return match[1] if match else None


def clip_id(file_name: str) -> str:
    """The clip id of an audio file or log-mel: the YouTube id if the name has one of its forms, else the stem."""
    stem = file_stem(file_name)
    return youtube_id(stem) or stem


def file_stem(file_name: str) -> str:
    """The last part of a path without its suffix; dots in start times are kept."""
    parts = [part for part in file_name.split("/") if part not in ("", ".")]
    return without_suffix(parts[-1] if parts else "")
