"""The digest of a checkpoint, in the comment at the end of its zip archive, which every other reader skips.

Checksums of members leave some bytes of an archive open: times, padding, the tables that lead to the members.
"""

from __future__ import annotations

from pathlib import Path
from typing import IO

import xxhash

from m2dprep.artifacts.digests import DIGITS
from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.reading import RegularFile, open_regular, read_at

MARK = b"m2dXXH3:"
COMMENT_BYTES = len(MARK) + DIGITS
# The end of an archive's directory: its mark, 16 bytes, and the length of the comment that follows.
END_MARK, END_BYTES, LENGTH_BYTES = b"PK\x05\x06", 22, 2
SEARCHED_BYTES = 1 << 16
BLOCK_BYTES = 1 << 22


class DamagedError(UserError):
    """A file whose content is no longer what was written."""


def add_proof(file: IO[bytes], place: str) -> None:
    """Append the digest to a zip archive that was just written to ``file``, which is open for reading as well.

    ``place`` is a text that says where the archive belongs; the digest covers it too.
    """
    file.flush()
    size = file.seek(0, 2) - LENGTH_BYTES
    file.seek(0)
    state, left = xxhash.xxh3_64(), size
    while left and (block := file.read(min(BLOCK_BYTES, left))):
        state.update(block)
        left -= len(block)
    assert file.read() == bytes(LENGTH_BYTES), "an archive without a comment"
    file.seek(size)
    state.update(place.encode())
    comment = MARK + state.hexdigest().encode() + place.encode()
    file.write(len(comment).to_bytes(LENGTH_BYTES, "little") + comment)


def proven_place(path: Path) -> str | None:
    """The text that says where an archive belongs, if its digest proves all its bytes; None if it has no digest.

    Raises `DamagedError` if the digest is not that of the bytes, and the errors of `open_regular`.
    """
    with open_regular(path) as file:
        tail = _read(file, max(0, file.size - SEARCHED_BYTES), SEARCHED_BYTES)
        end = tail.rfind(END_MARK)
        length = int.from_bytes(tail[end + END_BYTES - LENGTH_BYTES : end + END_BYTES], "little") if end >= 0 else 0
        if length < COMMENT_BYTES and MARK not in tail:
            return None
        comment = tail[end + END_BYTES :]
        place = comment[COMMENT_BYTES:]
        whole = len(comment) == length >= COMMENT_BYTES
        if not whole or comment != MARK + _digest(file, file.size - length - LENGTH_BYTES, place) + place:
            raise DamagedError(
                f"{path} is damaged: its digest is not that of its bytes. Take another copy of it, or an earlier "
                "checkpoint."
            )
        return place.decode()


def _digest(file: RegularFile, size: int, place: bytes) -> bytes:
    state, buffer = xxhash.xxh3_64(), bytearray(min(size, BLOCK_BYTES))
    for start in range(0, size, BLOCK_BYTES):
        view = memoryview(buffer)[: min(BLOCK_BYTES, size - start)]
        state.update(view[: read_at(file, view, start)])
    state.update(place)
    return state.hexdigest().encode()


def _read(file: RegularFile, offset: int, count: int) -> bytes:
    content = bytearray(count)
    return bytes(content[: read_at(file, memoryview(content), offset)])
