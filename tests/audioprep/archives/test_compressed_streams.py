"""Compressed tars: each kind unpacks to the same bytes, and what follows its end is never passed over in silence."""

import bz2
import gzip
import io
import lzma
import random
from collections.abc import Callable
from functools import cache, partial

import pytest

from m2dprep.audioprep.archives.compression import FAULTS, decompressed

Packer = Callable[[bytes], bytes]
PACKERS: dict[str, Packer] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "lzma": partial(lzma.compress, format=lzma.FORMAT_ALONE),
}
# More than is read at once, both packed and unpacked.
DATA = random.Random(0).randbytes(300_000) + bytes(300_000) + b"the end"


@cache
def packed(kind: str) -> bytes:
    return PACKERS[kind](DATA)


BEHIND: dict[str, Callable[[Packer], tuple[bytes, bytes | None]]] = {
    "nothing": lambda pack: (b"", DATA),
    "zeros": lambda pack: (bytes(512), DATA),
    "many zeros": lambda pack: (bytes(400_000), DATA),
    "another stream": lambda pack: (pack(b"more"), DATA + b"more"),
    "zeros and another stream": lambda pack: (bytes(12) + pack(b"more") + bytes(4), DATA + b"more"),
    "an empty stream": lambda pack: (pack(b""), DATA),
    "garbage": lambda pack: (b"garbage" * 9, None),
    "a byte": lambda pack: (b"B", None),
    "a line": lambda pack: (b"\n", None),
    "garbage behind zeros": lambda pack: (bytes(200_000) + b"garbage", None),
    "half a stream": lambda pack: (pack(bytes(10_240))[:-6], None),
    "garbage behind another stream": lambda pack: (pack(b"more") + b"garbage", None),
}


@pytest.mark.parametrize("behind", BEHIND)
@pytest.mark.parametrize("kind", PACKERS)
def test_what_follows_a_stream(kind: str, behind: str) -> None:
    pack = PACKERS[kind]
    follows, expected = BEHIND[behind](pack)
    with decompressed(io.BytesIO(packed(kind) + follows)) as file:
        assert file.read(len(DATA)) == DATA
        if expected is None:
            with pytest.raises(FAULTS):
                file.read()
        else:
            assert file.read() == expected[len(DATA) :]


@pytest.mark.parametrize("kind", PACKERS)
def test_places_may_be_asked_for_in_any_order(kind: str) -> None:
    with decompressed(io.BytesIO(packed(kind) + PACKERS[kind](b"more"))) as file:
        for place in (500_000, 0, 299_990, len(DATA) - 3, 17, 299_990):
            assert file.seek(place) == place == file.tell()
            assert file.read(20) == (DATA + b"more")[place : place + 20]
        file.seek(len(DATA) + 100)
        assert file.read(20) == b""


@pytest.mark.parametrize("kind", PACKERS)
@pytest.mark.parametrize("kept", [0.3, 0.999])
def test_a_cut_stream_gives_what_is_there_and_then_an_error(kind: str, kept: float) -> None:
    whole, found = packed(kind), b""
    with decompressed(io.BytesIO(whole[: int(kept * len(whole))])) as file, pytest.raises(EOFError):
        while part := file.read1(1 << 16):  # type: ignore[attr-defined]
            found += part
    assert DATA.startswith(found)
    assert kind == "bz2" or len(found) > 80_000  # bzip2 unpacks whole blocks of 900 kB
