"""Compressed tars: what compresses one is seen from its first bytes, and Python's own libraries unpack it forwards."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
import tarfile
import zlib
from collections.abc import Callable
from functools import partial
from typing import IO, Any, NamedTuple

from m2dprep.audioprep.archives.streams import Streams

# Enough to tell all of them apart.
BEGINNING_BYTES = 10
BUFFER_BYTES = 1 << 17


class Compression(NamedTuple):
    """The pattern of a compressed file's first bytes, and how it is opened, or `NotImplementedError` says why not.

    The first bytes of a tar are a member's name, so that letters alone prove nothing.
    """

    beginning: bytes
    opened: Callable[[IO[bytes]], Any]


def _refusal(what: str, program: str) -> Callable[[IO[bytes]], Any]:
    def refuse(raw: IO[bytes]) -> Any:
        raise NotImplementedError(not_read(what, program))

    return refuse


def _streams(unpacker: Callable[[], Any], raw: IO[bytes]) -> IO[bytes]:
    return io.BufferedReader(Streams(raw, unpacker), BUFFER_BYTES)


def not_read(what: str, program: str) -> str:
    return f"it is {what}, which is not read; unpack it (`{program}`), or pack it as a .tar"


ZSTD = ("a tar compressed by zstd", "zstd -d")
LZ4 = ("a tar compressed by lz4", "lz4 -d")
LZIP = ("a tar compressed by lzip", "lzip -d")
COMPRESS = ("a tar compressed by compress", "uncompress")
SEVEN_ZIP, RAR = ("a 7-Zip archive", "7z x"), ("a RAR archive", "unrar x")
COMPRESSIONS = (
    Compression(rb"\x1f\x8b", lambda raw: gzip.GzipFile(fileobj=raw)),
    Compression(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)", partial(_streams, bz2.BZ2Decompressor)),
    Compression(rb"\xfd7zXZ\0", partial(_streams, lzma.LZMADecompressor)),
    Compression(rb"\x5d\0\0[^\0][\0-\x10]", partial(_streams, lzma.LZMADecompressor)),  # of the older program lzma
    *(
        Compression(beginning, _refusal(*what))
        for beginning, what in (
            (rb"\x28\xb5\x2f\xfd", ZSTD),
            (rb"\x04\x22\x4d\x18", LZ4),
            (rb"LZIP\x01", LZIP),
            (rb"\x1f\x9d", COMPRESS),
            (rb"7z\xbc\xaf\x27\x1c", SEVEN_ZIP),
            (rb"Rar!\x1a\x07", RAR),
        )
    ),
)
# What reading a damaged or cut archive raises. bz2 raises an `OSError` without a number.
FAULTS = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError)


def is_compressed(file: IO[bytes]) -> bool:
    """Whether a file that may be a tar is compressed, whatever its name says. The file is at its beginning again."""
    head = file.read(BEGINNING_BYTES)
    file.seek(0)
    return _compression(head) is not None


def decompressed(raw: IO[bytes]) -> IO[bytes]:
    """What a compressed file unpacks to. Raises `NotImplementedError`, which says what to do, for what is not read."""
    compression = _compression(raw.read(BEGINNING_BYTES))
    raw.seek(0)
    opened: IO[bytes] = raw if compression is None else compression.opened(raw)
    return opened


def _compression(head: bytes) -> Compression | None:
    return next((each for each in COMPRESSIONS if re.match(each.beginning, head, re.DOTALL)), None)


def require_damage(error: Exception) -> None:
    """Raise ``error`` again if the machine failed, as its number shows, and not the archive."""
    if isinstance(error, OSError) and error.errno is not None:
        raise error
