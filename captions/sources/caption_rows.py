"""The form into which all readers of captions read: one row per caption, with the file's id."""

from __future__ import annotations

import re

import pyarrow as pa

CAPTION_ROWS = pa.schema(
    [pa.field("id", pa.string(), nullable=False), pa.field("caption", pa.string(), nullable=False)]
)
ANY_TABLE = "a table of captions"
CAPTION_NAME = re.compile(r"captions?|caption_?\d+", re.IGNORECASE | re.ASCII)
