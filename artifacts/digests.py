"""Digests of bytes, which show whether a file is what was written, and of settings, which protect a resumed run.

Bytes have XXH3 digests with 64 bits: they are fast, and find the changes of a disk or a slip, not those of a forger.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from m2dprep.artifacts.errors import FingerprintConflictError
from m2dprep.artifacts.reading import named, open_regular, read_at, with_retries

KIND = "xxh3_64"
DIGITS = 16
# Block size of files that are digested in parts: the digests fit into a JSON file, and a block is quick to read again.
BLOCK_BYTES = 16 << 20


def digest_of(*parts: Any) -> str:
    """16 hex digits: the digest of ``parts`` (contiguous buffers), one after another."""
    if len(parts) == 1:
        return xxhash.xxh3_64_hexdigest(parts[0])
    state = xxhash.xxh3_64()
    for part in parts:
        state.update(part)
    return state.hexdigest()


def growing_digest() -> Any:
    """An object that is updated with part after part; its ``hexdigest()`` is then `digest_of` all of them."""
    return xxhash.xxh3_64()


def int_digest(part: Any) -> int:
    """The digest of one buffer, as a number."""
    return xxhash.xxh3_64_intdigest(part)


def plain_digest(path: Path) -> str:
    """The digest of a file's bytes. Raises `UserError` if it is not a file and `OSError` if it cannot be read."""
    state = xxhash.xxh3_64()
    for block in read_blocks(path):
        state.update(block)
    return state.hexdigest()


def block_digests(path: Path) -> str:
    """The digests of all blocks (`BLOCK_BYTES` each) of a file, as one text."""
    return "".join(xxhash.xxh3_64_hexdigest(block) for block in read_blocks(path))


def differing_blocks(path: Path, digests: str) -> list[int]:
    """The numbers of the blocks of a file that differ from ``digests``, missing and surplus blocks included."""
    found = [xxhash.xxh3_64_hexdigest(block) for block in read_blocks(path)]
    wanted = [digests[start : start + DIGITS] for start in range(0, len(digests), DIGITS)]
    shorter = min(len(found), len(wanted))
    differing = [number for number in range(shorter) if found[number] != wanted[number]]
    return differing + list(range(shorter, max(len(found), len(wanted))))


def read_blocks(path: Path, size: int = BLOCK_BYTES) -> Iterator[memoryview]:
    """The bytes of a file, ``size`` at a time, in a buffer that is reused.

    They are read, not mapped: a page that the disk cannot read raises an `OSError` that names the file, where a map
    would end the process.
    """
    with open_regular(path) as file:
        buffer = np.empty(min(size, max(1, file.size)), np.uint8)
        for start in range(0, file.size, size):
            view = buffer.data[: min(size, file.size - start)]
            yield view[: read_at(file, view, start)]


def row_digests(rows: Iterable[Any]) -> np.ndarray:
    """uint64 (n,): one digest per buffer."""
    return np.fromiter(map(xxhash.xxh3_64_intdigest, rows), np.uint64)


CAPTION_DIGEST_BYTES = 16


def fingerprint(configuration: Mapping[str, Any]) -> str:
    """16 hex digits that change with any key or value of ``configuration`` (JSON values; key order is irrelevant)."""
    canonical = json.dumps(configuration, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def texts_digest(texts: Iterable[str]) -> str:
    """SHA-256, in hex, of texts in their order; of two texts and of one that joins them it differs."""
    state = hashlib.sha256()
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        state.update(len(data).to_bytes(4, "little") + data)
    return state.hexdigest()


def caption_digest(caption: str) -> bytes:
    """16 bytes that identify a caption's text, byte for byte. They tie a row of embeddings to the text it came from."""
    return utf8_digest(caption.encode())


def utf8_digest(caption: bytes) -> bytes:
    """`caption_digest` of a caption's UTF-8."""
    return hashlib.blake2b(caption, digest_size=CAPTION_DIGEST_BYTES).digest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex. Raises `OSError`, naming the file, if the system cannot read it."""
    try:
        return with_retries(lambda: _sha256(path))
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
