"""Recognises a whole item of a pickled dictionary of arrays at once: every pickler repeats the same opcodes.

Items that do not match these patterns (the first item, which introduces numpy's names; items across the borders of
frames) are left to the reader that goes opcode by opcode (`artifacts.embeddings.m2d_unpickler`).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from typing import NamedTuple

PUT = rb"(q.|r....|\x94)?"  # BINPUT, LONG_BINPUT, MEMOIZE: the object just made may be referred to later
GET = rb"(h.|j....)"  # BINGET, LONG_BINGET
INTEGER = rb"(?:K.|M..|J....)"
SHAPE = rb"(%s\x85|%s%s\x86|\(%s{1,2}t)" % ((INTEGER,) * 4)
LENGTH = rb"(B....|C.|\x8e.{8}|\x96.{8})"
# _reconstruct(ndarray, (0,), b"b"), then the state (1, shape, dtype, is in Fortran order, data).
RECONSTRUCTED = re.compile(
    PUT + GET + GET + rb"(?:K\0|J\0{4})\x85" + PUT + rb"(?:C\x01b|h.|j....)" + PUT + rb"\x87" + PUT + b"R" + PUT
    + rb"\((?:K\x01|J\x01\0{3})" + SHAPE + PUT + GET + rb"([\x88\x89])" + LENGTH,
    re.DOTALL,
)  # fmt: skip
RECONSTRUCTED_END = re.compile(PUT + b"t" + PUT + b"b", re.DOTALL)
# _frombuffer(data, dtype, shape, order)
BUFFER = re.compile(PUT + GET + rb"\(" + LENGTH, re.DOTALL)
BUFFER_END = re.compile(PUT + GET + SHAPE + PUT + GET + b"t" + PUT + b"R" + PUT, re.DOTALL)
MEMOIZE, ARRAY_PUT = b"\x94", 4
LENGTHS = {0x42: struct.Struct("<I"), 0x43: struct.Struct("<B"), 0x8E: struct.Struct("<Q"), 0x96: struct.Struct("<Q")}
INTEGERS = {0x4B: struct.Struct("<B"), 0x4D: struct.Struct("<H"), 0x4A: struct.Struct("<i")}


class Made(NamedTuple):
    """How an item's array is made: references to the function and its class (empty if it has none), the shape, and
    references to the dtype and the order (or the opcode that says whether that is Fortran's)."""

    function: bytes
    kind: bytes
    shape: bytes
    dtype: bytes
    order: bytes


class Item(NamedTuple):
    """Key at ``[key_start, key_stop)``, data at ``[data_start, data_stop)``, the next opcode at ``stop``.

    ``puts`` are the opcodes, empty ones included, that memoise objects; number `ARRAY_PUT` is that of the array.
    """

    key_start: int
    key_stop: int
    made: Made
    data_start: int
    data_stop: int
    stop: int
    puts: tuple[bytes | None, ...]


def match_item(content: memoryview, at: int) -> Item | None:
    """The item whose key's opcode is at ``at``; None if it matches no pattern or reaches beyond the content."""
    if content[at] == 0x58:
        start = at + 5
        stop = start + int.from_bytes(content[at + 1 : start], "little")
    else:
        start = at + 2
        stop = start + content[at + 1]
    found = RECONSTRUCTED.match(content, stop)
    if found is not None:
        p0, function, kind, p1, p2, p3, p4, shape, p5, dtype, order, length = found.groups()
        data_stop = found.end() + _length(length)
        end = RECONSTRUCTED_END.match(content, data_stop)
        if end is None:
            return None
        made, puts = Made(function, kind, shape, dtype, order), (p0, p1, p2, p3, p4, p5, *end.groups())
    else:
        found = BUFFER.match(content, stop)
        if found is None:
            return None
        p0, function, length = found.groups()
        data_stop = found.end() + _length(length)
        end = BUFFER_END.match(content, data_stop)
        if end is None:
            return None
        p1, dtype, shape, p2, order, p3, p4 = end.groups()
        made, puts = Made(function, b"", shape, dtype, order), (p0, p1, p2, p3, p4)
    return Item(start, stop, made, found.end(), data_stop, end.end(), puts)


def reference(opcode: bytes) -> int:
    """The number in a GET or PUT."""
    return int.from_bytes(opcode[1:], "little")


def shape_of(opcodes: bytes) -> tuple[int, ...]:
    """The integers of a `SHAPE`."""
    at, found = int(opcodes[0] == 0x28), []
    while at < len(opcodes) - 1:
        form = INTEGERS[opcodes[at]]
        found.append(form.unpack_from(opcodes, at + 1)[0])
        at += 1 + form.size
    return tuple(found)


def fits(shape: Sequence[int], item_bytes: int, length: int) -> bool:
    """Whether an array of ``shape`` has exactly ``length`` bytes."""
    total = item_bytes
    for size in shape:
        if size < 0:
            return False
        total *= size
    return total == length


def _length(opcodes: bytes) -> int:
    value: int = LENGTHS[opcodes[0]].unpack_from(opcodes, 1)[0]
    return value
