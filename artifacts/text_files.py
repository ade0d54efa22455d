"""Text files as others publish them: plain or gzipped UTF-8, with errors that name the line."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import pyarrow as pa
import pyarrow.compute as pc

from artifacts.errors import UserError, first_line
from artifacts.layout import require_file

GZIP_MAGIC = b"\x1f\x8b"
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")
EXAMPLES = 5


@dataclass(frozen=True)
class Finding:
    """Something that occurred ``count`` times and did not stop the run, with the first few places."""

    count: int
    examples: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return self.count > 0

    def __str__(self) -> str:
        return f"{self.count:,}" + (f" ({listing(self.examples, self.count)})" if self.examples else "")


def listing(examples: Iterable[str], count: int) -> str:
    """``a, b, c, …``: the first few of ``count`` things, and a sign that there are more."""
    shown = list(examples)[:EXAMPLES]
    return ", ".join(shown) + (", …" if count > len(shown) else "")


def read_bytes(path: Path, purpose: str) -> bytes:
    """The content of a file, unpacked where it is gzipped (by content, whatever its name)."""
    require_file(path, purpose)
    with _naming(path):
        data = path.read_bytes()
    if not data.startswith(GZIP_MAGIC):
        return data
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} is no whole gzip file ({purpose}): {first_line(error)}") from error


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Let an error of the system while ``path`` is read, which names no file, name it."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


@contextmanager
def open_binary(path: Path) -> Iterator[IO[bytes]]:
    """A file to be read in pieces, unpacked where it is gzipped (by content, whatever its name)."""
    with _naming(path), path.open("rb") as file:
        packed = file.read(len(GZIP_MAGIC)) == GZIP_MAGIC
        file.seek(0)
        if packed:
            with gzip.open(file) as unpacked:
                yield cast(IO[bytes], unpacked)
        else:
            yield file


def decode(path: Path, data: bytes) -> str:
    """UTF-8 text, without a byte order mark. Raises `UserError` naming the first line that is something else."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        if data.startswith(UTF_16_MARKS):
            raise UserError(f"{path} is UTF-16, not UTF-8; convert the file.") from error
        raise UserError(f"{path}:{line} is not UTF-8 (byte {data[error.start]:#04x}); convert the file.") from error


def read_lines(path: Path, purpose: str) -> pa.Array:
    """All lines of a text file (under 2 GiB) as strings; element i is line i + 1. Line ends may be ``\\r\\n``."""
    text = pa.array([decode(path, read_bytes(path, purpose))], pa.large_string())
    return pc.list_flatten(pc.split_pattern(text, "\n")).cast(pa.string())
