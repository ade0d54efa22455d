"""What a file or folder is at the moment, cheaply: a millionfold folder is known by what describes it, never by a walk.

| what | is known by |
|---|---|
| a file | size and modification time; where these differ, SHA-256 of up to 1 GiB decides |
| log-mels | the fingerprint in ``_melspec/config.json``; names, sizes and times of the record files |
| a pack, an embedding store | its ``meta.json``, which is written last |
| a training run | the fingerprint in its ``config.json``; name, size and time of its newest checkpoint |
| any other folder | the times of it and its sub-folders, among the first 4,096 entries |
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from artifacts.fingerprint import file_digest, fingerprint
from artifacts.json_text import load_json
from artifacts.layout import LmsLayout

Identity = dict[str, Any]
META = "meta.json"
LARGEST_DIGEST = 2**30
ENTRIES_LOOKED_AT = 4096


def identity(path: Path) -> Identity | None:
    """JSON values that change with what lies at ``path``; None where nothing does."""
    if path.is_file():
        return _file(path)
    if not path.is_dir():
        return None
    layout = LmsLayout(path)
    if layout.melspec.is_dir():
        return {"log_mels": _fingerprint_in(layout.config), "records": _stats(layout.melspec, "records-*.parquet")}
    if (path / META).is_file():
        return {"meta": _file(path / META)}
    if (path / "config.json").is_file() and (checkpoint := _newest_checkpoint(path)) is not None:
        return {"run": _fingerprint_in(path / "config.json"), "checkpoint": _stat(checkpoint)}
    return {"folders": fingerprint({"seen": sorted(_folders(path))})}


def same(old: Identity | None, new: Identity | None) -> bool:
    """Whether two identities are of the same content; a file that was only touched or written again is the same."""
    if old is None or new is None:
        return old is new
    if "meta" in old and "meta" in new:
        old, new = old["meta"], new["meta"]
    if (digest := old.get("sha256")) is not None and new.get("sha256") is not None:
        return bool(digest == new["sha256"])
    return old == new


def refreshed(path: Path, known: Identity | None) -> Identity | None:
    """`identity`, but a file whose size and time are those of ``known`` is not read again."""
    before = (known or {}).get("meta", known)
    file = path / META if known is not None and "meta" in known else path
    if before and "mtime_ns" in before and file.is_file() and _stat(file)[1:] == [before["size"], before["mtime_ns"]]:
        return known
    return identity(path)


def _file(path: Path) -> Identity:
    _, size, mtime_ns = _stat(path)
    digest = {"sha256": file_digest(path)} if size <= LARGEST_DIGEST else {}
    return {"size": size, "mtime_ns": mtime_ns, **digest}


def _stat(path: Path) -> list[Any]:
    status = path.stat()
    return [path.name, status.st_size, status.st_mtime_ns]


def _stats(folder: Path, pattern: str) -> list[list[Any]]:
    return [_stat(path) for path in sorted(folder.glob(pattern))]


def _fingerprint_in(config: Path) -> str | None:
    try:
        return str(load_json(config)["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _newest_checkpoint(run: Path) -> Path | None:
    found = [path for folder in (run, *run.glob("*/")) for path in folder.glob("checkpoint-*.pth")]
    return max(found, key=lambda path: path.stat().st_mtime_ns, default=None)


def _folders(root: Path) -> Iterator[str]:
    """``path time`` of the folder and of those below it that are among the first entries of a walk; reads no file."""
    yield f". {root.stat().st_mtime_ns}"
    for entry in islice(_walk(root), ENTRIES_LOOKED_AT):
        if entry.is_dir():
            yield f"{os.path.relpath(entry.path, root)} {entry.stat().st_mtime_ns}"


def _walk(folder: Path | str) -> Iterator[os.DirEntry[str]]:
    """The entries of a folder, then those of its sub-folders."""
    below = []
    with os.scandir(folder) as entries:
        for entry in entries:
            yield entry
            if entry.is_dir(follow_symlinks=False):
                below.append(entry.path)
    for path in below:
        yield from _walk(path)
