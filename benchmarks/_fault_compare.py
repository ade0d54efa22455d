"""What a stage has left, file by file: bytes, but values of checkpoints, and no times in training logs."""

from __future__ import annotations

import hashlib
import json
import re
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

TEMPORARY = ".m2dprep-*.tmp"
# How often a pack has been replaced is in the names of its files and in its meta.json; both may differ.
GENERATION, OF_GENERATION = re.compile(r"(?<=_packed/)g\d+-"), ("generation", "digest")
Snapshot = dict[str, str]


def snapshot(folder: Path, ignored: tuple[str, ...]) -> Snapshot:
    """A digest of every file below ``folder`` but those that match ``ignored``; temporaries are among them."""
    found: Snapshot = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not any(fnmatch(name, pattern) or fnmatch(f"/{name}", pattern) for pattern in ignored):
            plain = GENERATION.sub("", name)
            found[name if plain in found else plain] = digest(path)
    return found


def digest(path: Path) -> str:
    """Of the bytes, or of what counts where two equal runs may write other bytes."""
    if path.suffix == ".pth":
        return _checkpoint_digest(path)
    data = path.read_bytes()
    if path.name == "log.jsonl":
        data = _without_times(data)
    elif path.name == "meta.json" and path.parent.name == "_packed":
        data = json.dumps({key: value for key, value in _json(data).items() if key not in OF_GENERATION}).encode()
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def differences(expected: Snapshot, found: Snapshot) -> list[str]:
    """Files that are missing, other than expected, or too many; temporaries left behind are no difference."""
    names = {name for name in {*expected, *found} if not is_temporary(name)}
    return [
        f"{name} {'is missing' if name not in found else 'is new' if name not in expected else 'differs'}"
        for name in sorted(names)
        if expected.get(name) != found.get(name)
    ]


def is_temporary(name: str) -> bool:
    return fnmatch(name.rpartition("/")[2], TEMPORARY)


def leftovers(found: Snapshot) -> list[str]:
    """Temporaries that nobody has swept."""
    return [name for name in found if is_temporary(name)]


def _json(data: bytes) -> dict[str, Any]:
    try:
        return dict(json.loads(data))
    except ValueError:
        return {"damaged": data.hex()}


def _without_times(log: bytes) -> bytes:
    from m2dprep.training.speed import TIMING_FIGURES

    try:
        lines = [json.loads(line) for line in log.splitlines()]
    except ValueError:  # half a line, left by a kill
        return log
    left_out = {*TIMING_FIGURES, "digest"}  # the digest is that of the times as well
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
