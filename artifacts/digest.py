"""Fast digests that prove bytes: XXH3 with 64 bits. They find what a disk or a slip has changed, not a forger."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from artifacts.steady import open_regular, read_at

KIND = "xxh3_64"
DIGITS = 16
# Of a file in parts: few enough digests to stand in a JSON file, and little to read again where one differs.
BLOCK_BYTES = 16 << 20


def digest_of(*parts: Any) -> str:
    """16 hex digits of ``parts`` (contiguous buffers), one after the other."""
    if len(parts) == 1:
        return xxhash.xxh3_64_hexdigest(parts[0])
    state = xxhash.xxh3_64()
    for part in parts:
        state.update(part)
    return state.hexdigest()


def int_digest(part: Any) -> int:
    """The same of one buffer, as a number."""
    return xxhash.xxh3_64_intdigest(part)


def plain_digest(path: Path) -> str:
    """That of a file's bytes. Raises `UserError` where it is no file and `OSError` where it cannot be read."""
    state = xxhash.xxh3_64()
    for block in read_blocks(path):
        state.update(block)
    return state.hexdigest()


def block_digests(path: Path) -> str:
    """Those of all blocks of `BLOCK_BYTES` of a file, one behind the other."""
    return "".join(xxhash.xxh3_64_hexdigest(block) for block in read_blocks(path))


def differing_blocks(path: Path, digests: str) -> list[int]:
    """The blocks of a file that are not those of ``digests``; a missing and a further one count too."""
    found = [xxhash.xxh3_64_hexdigest(block) for block in read_blocks(path)]
    wanted = [digests[start : start + DIGITS] for start in range(0, len(digests), DIGITS)]
    shorter = min(len(found), len(wanted))
    differing = [number for number in range(shorter) if found[number] != wanted[number]]
    return differing + list(range(shorter, max(len(found), len(wanted))))


def read_blocks(path: Path, size: int = BLOCK_BYTES) -> Iterator[memoryview]:
    """The bytes of a file, ``size`` at a time, in a buffer that is used again.

    They are read, not mapped: a page that the disk cannot read is an `OSError` that names the file, and not the end of
    the process.
    """
    with open_regular(path) as file:
        buffer = np.empty(min(size, max(1, file.size)), np.uint8)
        for start in range(0, file.size, size):
            view = buffer.data[: min(size, file.size - start)]
            yield view[: read_at(file, view, start)]


def row_digests(rows: Iterable[Any]) -> np.ndarray:
    """uint64 (n,): the digest of each of some buffers."""
    return np.fromiter(map(xxhash.xxh3_64_intdigest, rows), np.uint64)
