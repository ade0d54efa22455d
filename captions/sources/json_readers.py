"""Reads captions in JSON: WavCaps' parts, LAION's one file per clip, and JSON lines with any keys."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from m2dprep.artifacts.clips.clip_id import file_stem, youtube_id
from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.folders import APPLE_DOUBLE_PREFIX, walk
from m2dprep.artifacts.json_files import parse_json
from m2dprep.artifacts.layout import require_folder
from m2dprep.artifacts.text_files import decode, read_bytes

# WavCaps' folders and files. Ids of its AudioSet part are names like "Y….wav"; the other parts have ids of their own.
WAVCAPS_PARTS = {
    "fsd_final": "FreeSound",
    "bbc_final": "BBC_Sound_Effects",
    "sb_final": "SoundBible",
    "as_final": "AudioSet_SL",
}
AUDIOSET_PART = "AudioSet_SL"
AUDIOSET_NAME = re.compile(r"Y[\w-]{11}(\.\w+)?", re.ASCII)
LAION_KEYS = ("text",)
Pairs = list[tuple[str, str]]


def read_wavcaps(path: Path) -> Pairs:
    """One of the four JSON files of WavCaps: (clip id, caption) of every entry.

    Clips of the AudioSet part have their YouTube id. Those of the others are ``<part>/<id>``, since the parts share
    numbers; files that lie as ``<part>/<id>.npy`` match them. The part is told by the file's name (``fsd_final.json``,
    ``bbc_final.json``, ``sb_final.json``, ``as_final.json``), its folder's (``FreeSound`` …), or ids like ``Y….wav``.
    """
    content = _json(path, "a part of WavCaps")
    entries = content.get("data") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{path} is no part of WavCaps: an object with a list 'data' of entries was expected.")
    pairs = []
    for number, entry in enumerate(entries, 1):
        if missing := _missing(entry, ["id", "caption"]):
            raise UserError(f"{path}: entry {number} of 'data' has no {' and '.join(missing)}; it has {_keys(entry)}.")
        place = f"{path}: entry {number} of 'data'"
        name = _id(entry["id"], f"{place}: its id")
        pairs += [(name, caption) for caption in _texts(entry["caption"], f"{place}: its caption")]
    part = _wavcaps_part(path, pairs)
    if part != AUDIOSET_PART:
        return [(f"{part}/{name}" if name else "", caption) for name, caption in pairs]
    return [(youtube_id(file_stem(name)) or name, caption) for name, caption in pairs]


def _wavcaps_part(path: Path, pairs: Pairs) -> str:
    if part := WAVCAPS_PARTS.get(path.name.partition(".")[0]):
        return part
    if path.parent.name in WAVCAPS_PARTS.values():
        return path.parent.name
    if all(AUDIOSET_NAME.fullmatch(name) for name, _ in pairs if name):
        return AUDIOSET_PART
    raise UserError(
        f"{path}: which part of WavCaps is it? Name it {', '.join(f'{stem}.json' for stem in WAVCAPS_PARTS)}, "
        f"or put it into a folder named {', '.join(WAVCAPS_PARTS.values())}."
    )


def read_laion(folder: Path, caption_columns: Sequence[str] = ()) -> Pairs:
    """LAION's form, one ``<clip>.json`` per clip in any sub-folders: the texts under the keys ``caption_columns``.

    The default is ``text``; other keys of LAION's are ``text_augment_t5`` and ``text_augment_all``. A value is a text
    or a list of texts. Ids are the files' paths in ``folder`` without ``.json``.
    """
    keys = tuple(caption_columns) or LAION_KEYS
    require_folder(folder, "LAION's JSON files, one a clip")
    pairs: Pairs = []
    files = sorted(folder / prefix / entry.name for prefix, entry, _ in walk(folder) if _is_json(entry))
    for path in files:
        content = _json(path, "the texts of a clip")
        if not isinstance(content, dict):
            raise UserError(f"{path} is no object with texts.")
        name = path.relative_to(folder).with_suffix("").as_posix()
        there = [key for key in keys if key in content]
        found = [text for key in there for text in _texts(content[key], f"{path}: {key!r}")]
        pairs += [(name, text) for text in found or [""]]  # a clip without a text counts as one empty text
    if not files:
        raise UserError(f"{folder} holds no .json file.")
    return pairs


def _is_json(entry: os.DirEntry[str]) -> bool:
    name = entry.name
    return name.endswith(".json") and not name.startswith(APPLE_DOUBLE_PREFIX) and Path(entry.path).is_file()


def read_jsonl(path: Path, id_column: str, caption_columns: Sequence[str]) -> Pairs:
    """JSON lines: the texts under ``caption_columns`` of every object, with the id under ``id_column``."""
    pairs: Pairs = []
    for number, line in enumerate(decode(path, read_bytes(path, "JSON lines of captions")).split("\n"), 1):
        if not line.strip():
            continue
        entry = parse_json(line, f"{path}:{number}", "JSON lines of captions")
        if missing := _missing(entry, [id_column, *caption_columns]):
            raise UserError(f"{path}:{number} has no {', '.join(missing)}; it has {_keys(entry)}.")
        name = _id(entry[id_column], f"{path}:{number}: {id_column!r}")
        pairs += [(name, text) for key in caption_columns for text in _texts(entry[key], f"{path}:{number}: {key!r}")]
    if not pairs:
        raise UserError(f"{path} holds no captions.")
    return pairs


def _json(path: Path, purpose: str) -> Any:
    return parse_json(decode(path, read_bytes(path, purpose)), path, purpose)


def _id(value: Any, place: str) -> str:
    """An id as text; empty for null, which counts as a caption without an id."""
    if value is None:
        return ""
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise UserError(f"{place} is neither a text nor a whole number.")
    return str(value).strip()


def _texts(value: Any, place: str) -> Iterator[str]:
    """The texts of a value; null, or a list without texts, gives one empty text, so that it is counted."""
    for text in (value or [None]) if isinstance(value, list) else [value]:
        if not isinstance(text, str | None):
            raise UserError(f"{place} is neither a text nor a list of texts.")
        yield text or ""


def _missing(entry: Any, keys: Sequence[str]) -> list[str]:
    return [key for key in keys if not isinstance(entry, dict) or key not in entry]


def _keys(entry: Any) -> str:
    return ", ".join(map(str, entry)) if isinstance(entry, dict) and entry else "no keys"
