"""Files of formats that only ffmpeg reads: do they end where their own sizes say? It does not always tell itself."""

from __future__ import annotations

import struct
from collections.abc import Callable

from audioprep.containers import require_whole_outside
from audioprep.content import Content
from audioprep.faults import DecodeError
from audioprep.following import require_no_second_header

MOST_ATOMS = 4096
ASF_FILE_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
EBML_SEGMENT = b"\x18\x53\x80\x67"
TTA_HEADER_BYTES = 22
# Bytes of the frames of AMR behind the first one, by the type that this tells (RFC 4867).
AMR_FRAMES = {0: 12, 1: 13, 2: 15, 3: 17, 4: 19, 5: 20, 6: 26, 7: 31, 8: 5, 15: 0}
AMR_WB_FRAMES = {0: 17, 1: 23, 2: 32, 3: 36, 4: 40, 5: 46, 6: 50, 7: 58, 8: 60, 9: 5, 14: 0, 15: 0}


def require_whole_foreign(content: Content, name: str) -> None:
    """Raise `DecodeError` where a file of the format ``name`` (`audioprep.signatures.FOREIGN`) was cut off or joined.

    Formats that do not state their length pass: of these the decoder has to tell.
    """
    check = CHECKS.get(name)
    if check is not None:
        check(content)


def _mp4(content: Content) -> None:
    """Every atom on the outermost level states its size; the last one may leave it open."""
    position = 0
    for _ in range(MOST_ATOMS):
        header = content.at(position, 16)
        size = int.from_bytes(header[:4], "big")
        size = int.from_bytes(header[8:16], "big") if size == 1 else size
        if size < 8 or len(header) < 8 or not header[4:8].isascii() or not header[4:8].decode().isprintable():
            break
        position += size
        if position > content.size:
            raise _cut(content, f"its {header[4:8].decode()} atom ends at byte {position}")
    require_no_second_header(content, position)


def _asf(content: Content) -> None:
    """The file's properties state its size, unless it was broadcast."""
    position = content.head.find(ASF_FILE_PROPERTIES)
    properties = content.at(position, 104) if position >= 0 else b""
    if len(properties) == 104 and not properties[88] & 1:
        size = int.from_bytes(properties[40:48], "little")
        if size > content.size:
            raise _cut(content, f"its header promises {size} bytes")
        require_no_second_header(content, size)


def _matroska(content: Content) -> None:
    """The segment states its size, unless it was streamed."""
    position = content.head.find(EBML_SEGMENT)
    field = content.at(position + 4, 8) if position >= 0 else b""
    if len(field) < 8 or not field[0]:
        return
    length = 9 - field[0].bit_length()
    most = (1 << 7 * length) - 1
    size = int.from_bytes(field[:length], "big") & most
    end = position + 4 + length + size
    if size == most:
        return
    if end > content.size:
        raise _cut(content, f"its segment ends at byte {end}")
    require_no_second_header(content, end)


def _tta(content: Content) -> None:
    """A table states the size of every frame."""
    if len(content.head) < TTA_HEADER_BYTES:
        raise DecodeError("truncated", "the file ends within its header")
    rate, samples = struct.unpack_from("<II", content.head, 10)
    frames = -(-samples // max(1, rate * 256 // 245))
    table = content.at(TTA_HEADER_BYTES, 4 * frames)
    end = TTA_HEADER_BYTES + 4 * frames + 4 + sum(struct.unpack(f"<{len(table) // 4}I", table[: len(table) // 4 * 4]))
    if len(table) < 4 * frames or end > content.size:
        raise _cut(content, f"its last frame ends at byte {end}")
    require_no_second_header(content, end)


def _wavpack(content: Content) -> None:
    """Every block states its size."""
    position = 0
    while (header := content.at(position, 8))[:4] == b"wvpk":
        position += 8 + int.from_bytes(header[4:], "little")
        if len(header) < 8 or position > content.size:
            raise _cut(content, f"its last block ends at byte {position}")
    require_no_second_header(content, position)


def _amr(content: Content) -> None:
    """Every frame begins with a byte that tells its length; what is of no known length is for the decoder."""
    wide = content.head[5:9] == b"-WB\n"
    data = content.at(9 if wide else 6, content.size)
    position = 0
    while position < len(data):
        length = AMR_WB_FRAMES.get(data[position] >> 3 & 15) if wide else AMR_FRAMES.get(data[position] >> 3 & 15)
        if length is None:
            return
        position += 1 + length
    if position > len(data):
        raise DecodeError("truncated", "the file ends within an AMR frame")


def _cut(content: Content, said: str) -> DecodeError:
    return DecodeError("truncated", f"{said}, the file has {content.size} bytes")


CHECKS: dict[str, Callable[[Content], None]] = {
    "MP4": _mp4,
    "WMA/ASF": _asf,
    "WebM/Matroska": _matroska,
    "True Audio": _tta,
    "AMR": _amr,
    "WavPack": _wavpack,
    "AVI": require_whole_outside,
}
