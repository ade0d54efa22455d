"""Parquet files that prove themselves: a digest of all their bytes lies between the last page and the footer.

Nothing points to that place, so other readers pass over it; pages have their usual checksums besides, which prove the
columns of whoever reads only some of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from artifacts.atomic import atomic_file
from artifacts.digest import BLOCK_BYTES, KIND
from artifacts.errors import UserError
from artifacts.steady import RegularFile, open_regular, read_at

# In the footer, under this key: that there is a digest.
PROOF = b"m2dprep.proof"
# Before the digest's 8 bytes.
MAGIC = b"m2dXXH3:"
PROOF_BYTES = len(MAGIC) + 8
# The footer's length (4 bytes) and Parquet's own mark.
END_BYTES = 8
# Where a proof is looked for that is not at its place.
SEARCHED_BYTES = 1 << 16


class _Hashing:
    """A file to write to that keeps the digest of what was written."""

    closed = False

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.state = xxhash.xxh3_64()

    def write(self, data: Any) -> int:
        self.state.update(data)
        return self._file.write(data)

    def tell(self) -> int:
        return self._file.tell()

    def flush(self) -> None:
        """Nothing: the file is flushed when it is whole."""

    def close(self) -> None:
        """Nothing: whoever opened the file closes it."""

    def writable(self) -> bool:
        return True


@contextmanager
def parquet_writer(path: Path, schema: pa.Schema, **options: Any) -> Iterator[pq.ParquetWriter]:
    """A writer of ``path``, which appears whole and with its digest when the block ends without an error."""
    metadata: Mapping[bytes, bytes] = {**(schema.metadata or {}), PROOF: KIND.encode()}
    with atomic_file(path) as file:
        hashing = _Hashing(file)
        with pq.ParquetWriter(hashing, schema.with_metadata(metadata), write_page_checksum=True, **options) as writer:
            yield writer
        _insert_proof(file, hashing.state.digest())


def _insert_proof(file: IO[bytes], digest: bytes) -> None:
    """Move the footer back, and put the digest before it."""
    file.seek(-END_BYTES, 2)
    footer_bytes = int.from_bytes(file.read(4), "little") + END_BYTES
    file.seek(-footer_bytes, 2)
    footer = file.read(footer_bytes)
    file.seek(-footer_bytes, 2)
    file.write(MAGIC + digest + footer)


def open_parquet(path: Path) -> pq.ParquetFile:
    """``path`` opened by pyarrow; it compares the checksums of the pages that it reads.

    Raises as pyarrow does, and `UserError` where it is no file.

    What is buffered in advance would stay for as long as the file is open, and what is mapped would end the process
    where the disk cannot read a page.
    """
    with open_regular(path):  # a pipe would be waited for
        pass
    return pq.ParquetFile(path, pre_buffer=False, memory_map=False, page_checksum_verification=True)


def verify_parquet(path: Path, purpose: str) -> bool:
    """Read all bytes of ``path``: whether a digest proves them. False for a file that has none.

    Raises `UserError` where it is no file, no Parquet file, or damaged; `OSError` where it cannot be read.
    """
    with open_regular(path) as file:
        footer_at = _footer_at(file)
        if footer_at is None:
            raise UserError(f"{path} cannot be read as {purpose}: it is no whole Parquet file.")
        proof_at = footer_at - PROOF_BYTES
        proof = _read(file, max(proof_at, 0), PROOF_BYTES)
        if not proof.startswith(MAGIC):
            end = _read(file, max(0, file.size - SEARCHED_BYTES), SEARCHED_BYTES)
            if PROOF in end or MAGIC in end:
                raise _damaged(path, purpose)
            return False
        state = xxhash.xxh3_64()
        for start, stop in ((0, proof_at), (footer_at, file.size)):
            for at in range(start, stop, BLOCK_BYTES):
                state.update(_read(file, at, min(BLOCK_BYTES, stop - at)))
        if state.digest() != proof[len(MAGIC) :]:
            raise _damaged(path, purpose)
        return True


def is_proven(file: pq.ParquetFile) -> bool:
    """Whether an open file says that it has a digest."""
    return PROOF in (file.metadata.metadata or {})


def _damaged(path: Path, purpose: str) -> UserError:
    return UserError(f"{path} cannot be read as {purpose}: it is damaged (its digest is not that of its bytes).")


def _footer_at(file: RegularFile) -> int | None:
    end = _read(file, max(0, file.size - END_BYTES), END_BYTES)
    start = file.size - END_BYTES - int.from_bytes(end[:4], "little")
    return start if end[4:] == b"PAR1" and start >= PROOF_BYTES else None


def _read(file: RegularFile, offset: int, count: int) -> bytearray:
    content = bytearray(count)
    return content[: read_at(file, memoryview(content), offset)]
