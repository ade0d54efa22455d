"""The row-aligned index of an embedding store: which caption of which clip a row is, and the digest of all rows."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from artifacts.fingerprint import CAPTION_DIGEST_BYTES, utf8_digest

INDEX_SCHEMA = pa.schema(
    [
        pa.field("clip_id", pa.string(), nullable=False),
        pa.field("caption_index", pa.int32(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("caption_digest", pa.binary(CAPTION_DIGEST_BYTES), nullable=False),
    ]
)
DIGEST_ROWS = 65536  # texts that are Python objects at a time


def index_of(captions: pa.Table) -> pa.Table:
    """The index (`INDEX_SCHEMA`) of a captions table, row by row."""
    texts = captions["caption"].cast(pa.binary())
    chunks = [
        pa.array(map(utf8_digest, texts.slice(start, DIGEST_ROWS).to_pylist()), INDEX_SCHEMA.field(3).type)
        for start in range(0, len(texts), DIGEST_ROWS)
    ]
    digests = pa.chunked_array(chunks, INDEX_SCHEMA.field(3).type)
    return (
        captions.select(["clip_id", "caption_index", "source"])
        .append_column(INDEX_SCHEMA.field(3), digests)
        .cast(INDEX_SCHEMA)
    )


def rows_digest(index: pa.Table) -> str:
    """16 hex digits that change with any row of an index, or with their order.

    SHA-256 of the columns' own SHA-256s in the order of `INDEX_SCHEMA`: of a text column the lengths in bytes (uint32,
    little-endian) and then, hashed apart, the UTF-8 of all rows; of the others the values. Chunks do not matter.
    """
    digest = hashlib.sha256()
    for name in INDEX_SCHEMA.names:
        parts = [hashlib.sha256(), hashlib.sha256()]
        for chunk in index[name].chunks:
            for part, content in zip(parts, _contents(chunk), strict=False):
                part.update(np.ascontiguousarray(content).data)
        for part in parts:
            digest.update(part.digest())
    return digest.hexdigest()[:16]


def first_difference(ours: pa.Table, theirs: pa.Table) -> int | None:
    """The first row in which two indexes differ, as far as the shorter one goes; None where there is none."""
    rows = min(ours.num_rows, theirs.num_rows)
    firsts = [
        pc.index(pc.not_equal(ours[name].slice(0, rows), theirs[name].slice(0, rows)), True).as_py()
        for name in INDEX_SCHEMA.names
    ]
    return min((row for row in firsts if row >= 0), default=None)


def _contents(array: pa.Array) -> Iterator[np.ndarray]:
    """The values of a column without nulls as they lie in memory: of texts their lengths, then their bytes."""
    buffers, start, stop = array.buffers(), array.offset, array.offset + len(array)
    if pa.types.is_string(array.type):
        offsets = np.frombuffer(buffers[1], np.int32)[start : stop + 1] if len(array) else np.zeros(1, np.int32)
        yield np.diff(offsets).astype("<u4")
        content = np.frombuffer(buffers[2], np.uint8) if buffers[2] is not None else np.zeros(0, np.uint8)
        yield content[offsets[0] : offsets[-1]]
    else:
        width = array.type.byte_width
        content = np.frombuffer(buffers[1], np.uint8) if buffers[1] is not None else np.zeros(0, np.uint8)
        yield content[start * width : stop * width]
