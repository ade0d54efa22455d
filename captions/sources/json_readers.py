"""Reads captions in JSON: WavCaps' parts, LAION's one file per clip, lists of Audio Flamingo and FusionAudio,
ACAVCaps, and JSON lines with any keys."""

from __future__ import annotations

import gzip
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from m2dprep.artifacts.clips.clip_id import file_stem, youtube_id
from m2dprep.artifacts.errors import UserError, first_line
from m2dprep.artifacts.folders import APPLE_DOUBLE_PREFIX, walk
from m2dprep.artifacts.json_files import parse_json
from m2dprep.artifacts.layout import require_file, require_folder
from m2dprep.artifacts.text_files import EXAMPLES, Tally, decode, listing, open_binary, read_bytes

# WavCaps' folders and files. Ids of its AudioSet part are names like "Y….wav"; the other parts have ids of their own.
WAVCAPS_PARTS = {
    "fsd_final": "FreeSound",
    "bbc_final": "BBC_Sound_Effects",
    "sb_final": "SoundBible",
    "as_final": "AudioSet_SL",
}
AUDIOSET_PART = "AudioSet_SL"
AUDIOSET_NAME = re.compile(r"Y[\w-]{11}(\.\w+)?", re.ASCII)
TABLE_ROWS = 1 << 18
LAION_KEYS = ("text",)
ACAV_KEYS = ("long", "short")
ACAV_ID_KEYS = ("id", "key", "__key__", "audio_id", "clip_id")
AF_ID_KEYS = ("ytid", "youtube_id", "audio_id", "sound", "id")
AF_TEXT_KEYS = ("caption", "captions", "output", "conversations")
Pairs = list[tuple[str, str]]
Notes = list[tuple[str, Tally]]  # what was odd about a source, each with the beginning of a line


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
        pairs += [(name, caption) for caption in texts_of(entry["caption"], f"{place}: its caption")]
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


def read_laion(folder: Path, keys: Sequence[str] = ()) -> Pairs:
    """LAION's form, one ``<clip>.json`` per clip in any sub-folders: the texts under ``keys`` (default ``text``).

    A value is a text or a list of texts; other keys of LAION's are ``text_augment_t5`` and ``text_augment_all``. Ids
    are the files' paths in ``folder`` without ``.json``.
    """
    keys = tuple(keys) or LAION_KEYS
    require_folder(folder, "LAION's JSON files, one a clip")
    pairs: Pairs = []
    files = sorted(folder / prefix / entry.name for prefix, entry, _ in walk(folder) if _is_json(entry))
    for path in files:
        content = _json(path, "the texts of a clip")
        if not isinstance(content, dict):
            raise UserError(f"{path} is no object with texts.")
        name = path.relative_to(folder).with_suffix("").as_posix()
        there = [key for key in keys if key in content]
        found = [text for key in there for text in texts_of(content[key], f"{path}: {key!r}")]
        pairs += [(name, text) for text in found or [""]]  # a clip without a text counts as one empty text
    if not files:
        raise UserError(f"{folder} holds no .json file.")
    return pairs


def _is_json(entry: os.DirEntry[str]) -> bool:
    name = entry.name
    return name.endswith(".json") and not name.startswith(APPLE_DOUBLE_PREFIX) and Path(entry.path).is_file()


def read_jsonl(path: Path, id_key: str, caption_keys: Sequence[str]) -> Iterator[tuple[str, str]]:
    """JSON lines: the texts under ``caption_keys`` of every object, with the id under ``id_key``."""
    empty = True
    for number, entry in _lines(path, "JSON lines of captions"):
        if missing := _missing(entry, [id_key, *caption_keys]):
            raise UserError(f"{path}:{number} has no {', '.join(missing)}; it has {_keys(entry)}.")
        empty = False
        name = _id(entry[id_key], f"{path}:{number}: {id_key!r}")
        for key in caption_keys:
            yield from ((name, text) for text in texts_of(entry[key], f"{path}:{number}: {key!r}"))
    if empty:
        raise UserError(f"{path} holds no captions.")


def _lines(path: Path, purpose: str) -> Iterator[tuple[int, Any]]:
    """The value of every line that is not empty, with the line's number. The file may be larger than the memory.

    Raises `UserError` that names the lines that are not JSON, once all are read.
    """
    broken: list[str] = []
    count = 0
    require_file(path, purpose)
    for number, line in enumerate(_bytes_of_lines(path, purpose), 1):
        if not line.strip():
            continue
        try:
            value = parse_json(_text(path, number, line), f"{path}:{number}", purpose)
        except UserError as error:
            count += 1
            broken += [str(error)] * (len(broken) < EXAMPLES)
            continue
        if not count:
            yield number, value
    if count:
        more = f" Of {count:,} such lines the next are: {listing(broken[1:], count - 1)}" if count > 1 else ""
        raise UserError(broken[0] + more)


def _bytes_of_lines(path: Path, purpose: str) -> Iterator[bytes]:
    try:
        with open_binary(path) as file:
            yield from file
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path} is no whole gzip file ({purpose}): {first_line(error)}") from error


def _text(path: Path, number: int, line: bytes) -> str:
    """A line as text; the first one may have a byte order mark."""
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        if number == 1:
            decode(path, line)  # names UTF-16
        byte = line[error.start]
        raise UserError(f"{path}:{number} is not UTF-8 (byte {byte:#04x}); convert the file.") from error


def read_acavcaps(path: Path, keys: Sequence[str] = ()) -> Iterator[tuple[str, str]]:
    """ACAVCaps: the texts under ``keys`` (default `ACAV_KEYS`) of every clip, each a text or a list of texts.

    A line is ``{id: {key: texts, …}, …}``, or an object that has the id beside the texts under one of `ACAV_ID_KEYS`.
    """
    purpose = "the captions of ACAVCaps"
    keys = tuple(keys) or ACAV_KEYS
    empty = True
    for number, value in _lines(path, purpose):
        place = f"{path}:{number}"
        for name, texts in _acav_clips(value, place):
            if not isinstance(texts, dict) or not any(key in texts for key in keys):
                raise UserError(f"{place}: {name!r} has none of the texts {', '.join(keys)}; it has {_keys(texts)}.")
            empty = False
            for key in keys:
                if key in texts:
                    yield from ((name, text) for text in texts_of(texts[key], f"{place}: {key!r}"))
    if empty:
        raise UserError(f"{path} holds no captions ({purpose}).")


def _acav_clips(value: Any, place: str) -> list[tuple[str, Any]]:
    if not isinstance(value, dict) or not value:
        raise UserError(f"{place} is no object with texts of a clip of ACAVCaps; it is {_shown(value)}.")
    if (key := next((key for key in ACAV_ID_KEYS if key in value), None)) is not None:
        return [(_id(value[key], f"{place}: {key!r}"), value)]
    return [(name.strip(), texts) for name, texts in value.items()]


def read_af_audioset(path: Path) -> Pairs:
    """AF-AudioSet's and AudioSkills' lists: an id under one of `AF_ID_KEYS`, texts under one of `AF_TEXT_KEYS`.

    Of a conversation the first answer is the caption: the first text that is not the human's.
    """
    pairs: Pairs = []
    for place, entry in _entries(path, "the captions of Audio Flamingo"):
        id_key = next((key for key in AF_ID_KEYS if key in entry), None)
        text_key = next((key for key in AF_TEXT_KEYS if key in entry), None)
        if id_key is None or text_key is None:
            lacks = f"no id ({', '.join(AF_ID_KEYS)})" if id_key is None else f"no text ({', '.join(AF_TEXT_KEYS)})"
            raise UserError(f"{place} has {lacks}; it has {_keys(entry)}.")
        name = _id(entry[id_key], f"{place}: {id_key!r}")
        value = entry[text_key]
        value = _first_answer(value, f"{place}: {text_key!r}") if text_key == AF_TEXT_KEYS[-1] else value
        pairs += [(name, text) for text in texts_of(value, f"{place}: {text_key!r}")]
    return pairs


def _first_answer(turns: Any, place: str) -> Any:
    if turns is None:
        return None
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise UserError(f"{place} is no list of turns with 'from' and 'value'.")
    return next((turn.get("value") for turn in turns if turn.get("from") not in ("human", "user", "system")), None)


def read_fusionaudio(path: Path, notes: Notes) -> Pairs:
    """FusionAudio's lists: ``output`` of every entry whose ``task`` says caption, or that has no task.

    Entries of other tasks, such as questions and answers, are left out and counted in ``notes``.
    """
    pairs: Pairs = []
    others: dict[str, int] = {}
    for place, entry in _entries(path, "the captions of FusionAudio"):
        if missing := _missing(entry, ["audio_id", "output"]):
            raise UserError(f"{place} has no {' and '.join(missing)}; it has {_keys(entry)}.")
        task = entry.get("task")
        if task and "caption" not in str(task).lower():
            others[str(task)] = others.get(str(task), 0) + 1
            continue
        name = _id(entry["audio_id"], f"{place}: 'audio_id'")
        pairs += [(name, text) for text in texts_of(entry["output"], f"{place}: 'output'")]
    if others:
        tasks = [f"{task}: {count:,}" for task, count in others.items()]
        if not pairs:
            raise UserError(f"{path} has no entry whose task is captioning; its tasks: {listing(tasks, len(tasks))}.")
        notes.append((f"{path}: entries of other tasks, left out", Tally(sum(others.values()), tuple(tasks))))
    return pairs


def _entries(path: Path, purpose: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a JSON list or of JSON lines, each with its place."""
    text = decode(path, read_bytes(path, purpose))
    if _has_lines(text):
        for number, entry in _lines(path, purpose):
            yield f"{path}:{number}", _object(entry, f"{path}:{number}")
        return
    content = parse_json(text, path, purpose)
    if isinstance(content, dict):
        content = [content]
    if not isinstance(content, list) or not content:
        raise UserError(f"{path} is no list of entries ({purpose}); it is {_shown(content)}.")
    for number, entry in enumerate(content, 1):
        yield f"{path}: entry {number}", _object(entry, f"{path}: entry {number}")


def _has_lines(text: str) -> bool:
    """Whether a text is JSON lines, and not one value over several lines."""
    first, _, rest = text.lstrip().partition("\n")
    if not first.startswith("{") or not rest.strip():
        return False
    with suppress(ValueError, RecursionError):
        json.loads(first)
        return True
    return False


def _object(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{place} is no object but {_shown(value)}.")
    return value


def _shown(value: Any) -> str:
    return repr(value)[:60]


def pairs_table(pairs: Iterable[tuple[str, str]], schema: pa.Schema) -> pa.Table:
    """The pairs as a table of two columns of text, made in pieces, since texts take far more memory in Python."""
    waiting = iter(pairs)
    tables = [schema.empty_table()]
    while some := list(islice(waiting, TABLE_ROWS)):
        columns = [pa.array(column, pa.string()) for column in zip(*some, strict=True)]
        tables.append(pa.Table.from_arrays(columns, schema=schema))
    return pa.concat_tables(tables)


def _json(path: Path, purpose: str) -> Any:
    return parse_json(decode(path, read_bytes(path, purpose)), path, purpose)


def _id(value: Any, place: str) -> str:
    """An id as text; empty for null, which counts as a caption without an id."""
    if value is None or value != value:  # NaN, as pandas writes it
        return ""
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise UserError(f"{place} is neither a text nor a whole number.")
    return str(value).strip()


def texts_of(value: Any, place: str) -> Iterator[str]:
    """The texts of a value; null, NaN, or a list without texts, gives one empty text, so that it is counted."""
    for text in (value or [None]) if isinstance(value, list) else [value]:
        if isinstance(text, float) and text != text:  # NaN, as pandas writes it
            text = None
        if not isinstance(text, str | None):
            raise UserError(f"{place} is neither a text nor a list of texts.")
        yield text or ""


def _missing(entry: Any, keys: Sequence[str]) -> list[str]:
    return [key for key in keys if not isinstance(entry, dict) or key not in entry]


def _keys(entry: Any) -> str:
    return ", ".join(map(str, entry)) if isinstance(entry, dict) and entry else "no keys"
