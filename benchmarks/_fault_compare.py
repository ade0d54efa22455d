"""Snapshots of a stage's files: bytes, except values for checkpoints, and training logs without their times."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import stat
import time
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

TEMPORARY = ".m2dprep-*.tmp"
# The number of times that a pack was replaced is in its files' names and in its meta.json; both may differ.
GENERATION, OF_GENERATION = re.compile(r"(?<=_packed/)g\d+-"), ("generation", "digest")
Snapshot = dict[str, str]
# What the system says of a file, which differs after every change.
Condition = tuple[int, ...]
# Changes of a file within this time may look alike.
TICK_NS = 50_000_000


def snapshot(folder: Path, ignored: tuple[str, ...]) -> Snapshot:
    """A digest of every file below ``folder``, temporaries included, except files that match ``ignored``."""
    found: Snapshot = {}
    for path in sorted(folder.rglob("*"), key=lambda path: (GENERATION.sub("", str(path)), len(str(path)))):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not any(fnmatch(name, pattern) or fnmatch(f"/{name}", pattern) for pattern in ignored):
            plain = GENERATION.sub("", name)  # a new pack and the earlier one may lie there side by side
            free = next(each for each in (plain, name, f"{name} (earlier)") if each not in found)
            found[free] = _digest_of(path)
    return found


def content(folder: Path) -> frozenset[tuple[str, int, str]]:
    """Everything below ``folder`` but empty locks, byte for byte, whatever the names of temporaries."""
    found = []
    for path in folder.rglob("*"):
        name = path.relative_to(folder)
        about = path.lstat()
        if path.name.endswith(".lock") and not about.st_size:
            continue
        shown = str(name.parent / TEMPORARY) if is_temporary(path.name) else str(name)
        found.append((shown, about.st_mode, _known_bytes(path, _condition(about)) if path.is_file() else ""))
    return frozenset(found)


@functools.lru_cache(maxsize=10_000)
def _known_bytes(path: Path, condition: Condition) -> str:
    return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()


def conditions(folder: Path) -> dict[str, Condition]:
    """The condition of everything below ``folder``; of folders themselves only that they are there, and their mode."""
    found: dict[str, Condition] = {}
    for path in folder.rglob("*"):
        about = os.lstat(path)
        found[path.relative_to(folder).as_posix()] = (
            (about.st_mode,) if stat.S_ISDIR(about.st_mode) else _condition(about)
        )
    return found


def _condition(about: os.stat_result) -> Condition:
    return about.st_mode, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns


def _digest_of(path: Path) -> str:
    """`digest`, which is not computed again as long as the file's condition is the same."""
    about = path.stat()
    if time.time_ns() - about.st_ctime_ns < TICK_NS:
        return digest(path)
    return _known_digest(path, _condition(about))


@functools.lru_cache(maxsize=10_000)
def _known_digest(path: Path, condition: Condition) -> str:
    return digest(path)


def digest(path: Path) -> str:
    """A digest of the bytes, or of the relevant content if two equal runs may write different bytes."""
    if path.suffix == ".pth":
        return _checkpoint_digest(path)
    data = path.read_bytes()
    if path.name == "log.jsonl":
        data = _without_times(data)
    elif path.name == "meta.json" and path.parent.name == "_packed":
        data = json.dumps({key: value for key, value in _json(data).items() if key not in OF_GENERATION}).encode()
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def differences(expected: Snapshot, found: Snapshot) -> list[str]:
    """Files that are missing, different or unexpected; temporaries left behind are not a difference."""
    names = {name for name in {*expected, *found} if not is_temporary(name)}
    return [
        f"{name} {'is missing' if name not in found else 'is new' if name not in expected else 'differs'}"
        for name in sorted(names)
        if expected.get(name) != found.get(name)
    ]


def is_temporary(name: str) -> bool:
    return fnmatch(name.rpartition("/")[2], TEMPORARY)


def leftovers(found: Snapshot) -> list[str]:
    """Temporaries that were not removed."""
    return [name for name in found if is_temporary(name)]


def _json(data: bytes) -> dict[str, Any]:
    try:
        return dict(json.loads(data))
    except ValueError:
        return {"damaged": data.hex()}


def _without_times(log: bytes) -> bytes:
    from m2dprep.training.speed import TIMING_METRICS

    try:
        lines = [json.loads(line) for line in log.splitlines()]
    except ValueError:  # a kill left half a line
        return log
    left_out = {*TIMING_METRICS, "digest"}  # the digest covers the times as well
    kept = [{key: value for key, value in line.items() if key not in left_out} for line in lines]
    return json.dumps(kept).encode()


def _checkpoint_digest(path: Path) -> str:
    import torch

    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        return f"unreadable: {type(error).__name__}"
    found = hashlib.blake2b(digest_size=16)
    _add(found, value)
    return found.hexdigest()


def _add(found: Any, value: Any) -> None:
    import torch

    if isinstance(value, dict):
        for key in sorted(value, key=repr):
            found.update(repr(key).encode())
            _add(found, value[key])
    elif isinstance(value, list | tuple):
        for item in value:
            _add(found, item)
    elif isinstance(value, torch.Tensor):
        found.update(f"{value.dtype}{tuple(value.shape)}".encode())
        found.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    else:
        found.update(repr(value).encode())
