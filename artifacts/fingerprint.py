"""What an output was made from and with: digests, and the comparison that protects a resumed run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from artifacts.errors import FingerprintConflictError
from artifacts.steady import named, steadily

CAPTION_DIGEST_BYTES = 16


def fingerprint(configuration: Mapping[str, Any]) -> str:
    """16 hex digits that change with any key or value of ``configuration`` (JSON values; key order is irrelevant)."""
    canonical = json.dumps(configuration, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def caption_digest(caption: str) -> bytes:
    """16 bytes that identify a caption's text, byte for byte. Ties a row of embeddings to the text it came from."""
    return utf8_digest(caption.encode())


def utf8_digest(caption: bytes) -> bytes:
    """`caption_digest` of a caption's UTF-8."""
    return hashlib.blake2b(caption, digest_size=CAPTION_DIGEST_BYTES).digest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex. Raises `OSError`, naming it, where the system cannot read it."""
    try:
        return steadily(lambda: _sha256(path))
    except OSError as error:
        raise named(error, path) from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def differing_keys(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """``key: old → new`` for every key whose value differs, nested keys joined with dots, sorted."""
    lines: list[str] = []
    for key in sorted(set(old) | set(new)):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            lines += differing_keys(before, after, f"{prefix}{key}.")
        elif before != after:
            lines.append(f"{prefix}{key}: {before!r} → {after!r}")
    return lines


def require_same(old: Mapping[str, Any], new: Mapping[str, Any], output: Path) -> None:
    """Raise `FingerprintConflictError`, naming the keys, unless ``output`` was begun with the configuration ``new``."""
    lines = differing_keys(old, new)
    if lines:
        raise FingerprintConflictError(
            f"{output} was begun with another configuration: {'; '.join(lines)}. "
            "Use the old settings to go on, another output, or --overwrite to start anew."
        )
