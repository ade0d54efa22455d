"""What a file looks like, to tell which known set it is when it is given as another one."""

from __future__ import annotations

import csv
import json
import re
import tarfile
import zipfile
import zlib
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from m2dprep.artifacts.clips.archive_names import ARCHIVE_ENDINGS
from m2dprep.artifacts.clips.caption_sets import (
    ARCHIVE,
    CSV,
    ENTRIES,
    FOLDER,
    JSON_LINES,
    JSON_LIST,
    JSON_OBJECT,
    PARQUET,
    ROWS,
    TEXT,
    TSV,
    Kind,
)
from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.folders import walk
from m2dprep.artifacts.text_files import BYTE_ORDER_MARK, open_binary

HEAD_BYTES = 1 << 16
MOST_ENTRIES = 10_000
SHOWN_NAMES = 12
KEY = re.compile(r'"([^"\\]{1,60})"\s*:')
VIDEO = re.compile(r"[\w-]{11}", re.ASCII)


class Look(NamedTuple):
    """The container of a file, and the names of columns or keys in it, in their order."""

    container: str
    names: tuple[str, ...] = ()

    def fits(self, kind: Kind) -> bool:
        """Whether a file of this kind looks so."""
        return self.container == kind.container and all(
            any(name in self.names for name in need.split("|")) for need in kind.needs
        )

    def __str__(self) -> str:
        if not self.names:
            return self.container
        what = "columns" if self.container in (CSV, TSV, PARQUET) else "names"
        more = ", …" if len(self.names) > SHOWN_NAMES else ""
        return f"{self.container} with the {what} {', '.join(self.names[:SHOWN_NAMES])}{more}"


def look_at(path: Path) -> Look | None:
    """What a file or folder looks like by its beginning; None if it cannot be read."""
    with suppress(OSError, EOFError, zlib.error, pa.ArrowException, tarfile.TarError, UserError):
        if path.is_dir():
            names = (entry.name for _, entry, is_folder in islice(walk(path), MOST_ENTRIES) if not is_folder)
            endings = {f"*.{name.rpartition('.')[2].lower()}" for name in names if "." in name}
            archives = {f"*.{ending.rpartition('.')[2]}" for ending in ARCHIVE_ENDINGS}
            if endings & archives and not endings & {"*.json", "*.txt"}:
                return Look(ARCHIVE)
            return Look(PARQUET) if "*.parquet" in endings else Look(FOLDER, tuple(sorted(endings)))
        with open_binary(path) as file:
            head = file.read(HEAD_BYTES)
        if head.startswith(b"PAR1"):
            return Look(PARQUET, tuple(pq.read_schema(path).names))
        if zipfile.is_zipfile(path) or tarfile.is_tarfile(path):
            return Look(ARCHIVE)
        if b"\0" in head:
            return None
        return _text(head.removeprefix(BYTE_ORDER_MARK).decode(errors="replace").lstrip())
    return None


def _text(text: str) -> Look:
    if text.startswith("["):
        return Look(JSON_LIST, tuple(_keys(text[1:].lstrip())))
    if text.startswith("{"):
        line, _, rest = text.partition("\n")
        with suppress(ValueError, RecursionError):
            value = json.loads(line)
            if rest.strip() or _is_clip(value):
                inner = next(iter(value.values()), None) if _is_clip(value) else value
                return Look(JSON_LINES, tuple(inner or ()))
        return Look(JSON_OBJECT, tuple(dict.fromkeys(KEY.findall(text[:4096]))))
    line = text.partition("\n")[0].rstrip("\r")
    delimiter = "\t" if "\t" in line else ","
    try:
        cells = [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter, skipinitialspace=True), [])]
    except csv.Error:
        return Look(TEXT)
    if delimiter == "\t":
        return Look(TSV, tuple(cells))
    if len(cells) == 4 and VIDEO.fullmatch(cells[0]) and cells[1].isdecimal():
        return Look(ROWS, next(kind.needs for kind in ENTRIES if kind.container == ROWS))
    return Look(CSV, tuple(cells)) if len(cells) > 1 else Look(TEXT)


def _keys(text: str) -> list[str]:
    with suppress(ValueError, RecursionError):
        value, _ = json.JSONDecoder().raw_decode(text)
        return list(value) if isinstance(value, dict) else []
    return list(dict.fromkeys(KEY.findall(text[:4096])))


def _is_clip(value: object) -> bool:
    """Whether a line is ``{id: {key: …}}``."""
    return isinstance(value, dict) and bool(value) and all(isinstance(inner, dict) for inner in value.values())


def known_as(look: Look) -> list[Kind]:
    """The kinds that a file may be by its look: those whose columns or keys say most."""
    fitting = [kind for kind in ENTRIES if (kind.needs or kind.container == ARCHIVE) and look.fits(kind)]
    most = max((len(kind.needs) for kind in fitting), default=0)
    return [kind for kind in fitting if len(kind.needs) == most]


def _of_any(look: Look) -> list[Kind]:
    """The kinds for any file in a container."""
    return [kind for kind in ENTRIES if kind.needs_name and kind.container == look.container]


def require_not_another(path: Path, kind: Kind) -> None:
    """Raise `UserError` if a file could be read as ``kind``, but has all columns or keys of another one.

    AudioCaps' tables could be read as Auto-ACD's, whose ids have other forms, and Auto-ACD's as AudioCaps'.
    """
    look = look_at(path) if kind.needs else None
    if look is None or kind.container == FOLDER or not (look.fits(kind) or kind.is_plain):
        return
    others = known_as(look)
    if others and kind not in others:
        raise UserError(f"{path} is not {kind.title} ({kind.files}). {_use(others)}")


def hint(path: Path, kind: Kind) -> str:
    """For an error about a file: what was expected, and what the file looks like. Empty if it looks right."""
    look = look_at(path) if path.exists() else None
    without_names = not kind.needs or kind.container == TSV  # a table with tabs may lack its header
    if look is None or look.fits(kind) or (without_names and look.container == kind.container):
        return ""
    expected = f"{kind.option} reads {kind.title}: {kind.files}."
    others = [other for other in known_as(look) or _of_any(look) if other is not kind]
    return f"{expected} {_use(others)}" if others else f"{expected} This is {look}."


def _use(kinds: list[Kind]) -> str:
    titles = " or ".join(kind.title for kind in kinds)
    return f"It looks like {titles}: use {' or '.join(kind.option for kind in kinds)}."
