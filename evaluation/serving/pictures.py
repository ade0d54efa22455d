"""A log-mel as a picture: a PNG of 256 colours, low frequencies at the bottom, at most `MOST_COLUMNS` wide."""

from __future__ import annotations

import struct
import zlib

import numpy as np

MOST_COLUMNS = 1200
# What is 80 dB below the loudest is the darkest: 80 dB are 80 / 10 · ln 10 in a natural logarithm of power.
RANGE = 8 * float(np.log(10))
# The colours from silence to the loudest, evenly spaced; brightness rises evenly.
ANCHORS = ((13, 15, 28), (38, 33, 84), (47, 70, 132), (38, 112, 142), (49, 153, 140), (120, 196, 130), (238, 240, 180))
SIGNATURE = b"\x89PNG\r\n\x1a\n"
EIGHT_BITS, OF_A_PALETTE = 8, 3


def picture(log_mel: np.ndarray) -> bytes:
    """The PNG of a log-mel (n_mels, T), in natural logarithms of power."""
    columns = _fewer_columns(np.asarray(log_mel, np.float32))
    loudest = float(columns.max())
    quietest = max(float(columns.min()), loudest - RANGE)
    span = loudest - quietest
    levels = np.clip((columns - quietest) / span, 0, 1) if span > 0 else np.zeros_like(columns)
    return png(np.round(levels * 255).astype(np.uint8)[::-1])


def _fewer_columns(log_mel: np.ndarray) -> np.ndarray:
    """``log_mel`` with at most `MOST_COLUMNS` columns: the loudest of each few, so that a click is still seen."""
    frames = log_mel.shape[1]
    if frames <= MOST_COLUMNS:
        return log_mel
    starts = np.arange(MOST_COLUMNS) * frames // MOST_COLUMNS
    reduced: np.ndarray = np.maximum.reduceat(log_mel, starts, axis=1)
    return reduced


def png(pixels: np.ndarray) -> bytes:
    """The PNG file of ``pixels`` uint8 (height, width), each a number of the palette's colours."""
    height, width = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, EIGHT_BITS, OF_A_PALETTE, 0, 0, 0)
    rows = np.zeros((height, width + 1), np.uint8)  # a row begins with the number of its filter: 0, none
    rows[:, 1:] = pixels
    parts = ((b"IHDR", header), (b"PLTE", PALETTE), (b"IDAT", zlib.compress(rows.tobytes(), 6)), (b"IEND", b""))
    return SIGNATURE + b"".join(map(_chunk, parts))


def _chunk(part: tuple[bytes, bytes]) -> bytes:
    name, data = part
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _palette() -> bytes:
    places = np.linspace(0, len(ANCHORS) - 1, 256)
    channels = [np.interp(places, range(len(ANCHORS)), values) for values in zip(*ANCHORS, strict=True)]
    return np.round(np.stack(channels, 1)).astype(np.uint8).tobytes()


PALETTE = _palette()
