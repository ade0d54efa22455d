"""Digests of arrays that came out of a pack with other bytes than their records say: `_melspec/unpacked.parquet`."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from artifacts.layout import LmsLayout
from artifacts.tables import read_parquet, write_parquet

UNPACKED = "unpacked.parquet"
SCHEMA = pa.schema(
    [pa.field("file_name", pa.string(), nullable=False), pa.field("digest", pa.string(), nullable=False)]
)


def read_unpacked(layout: LmsLayout) -> dict[str, str]:
    """The digest of each such file. Raises `UserError` where the table is damaged."""
    path = layout.melspec / UNPACKED
    if not path.exists():
        return {}
    table = read_parquet(path, SCHEMA, "the digests of unpacked arrays")
    return dict(zip(table["file_name"].to_pylist(), table["digest"].to_pylist(), strict=True))


def note_unpacked(layout: LmsLayout, digests: Mapping[str, str]) -> None:
    """Add ``digests`` of files to the table, if there are any."""
    if digests and layout.melspec.is_dir():
        write_unpacked(layout, {**read_unpacked(layout), **digests})


def write_unpacked(layout: LmsLayout, digests: Mapping[str, str]) -> None:
    """Let the table be of ``digests``; without any there is none."""
    if not digests:
        (layout.melspec / UNPACKED).unlink(missing_ok=True)
        return
    names = sorted(digests)
    table = pa.table({"file_name": names, "digest": [digests[name] for name in names]}, schema=SCHEMA)
    write_parquet(layout.melspec / UNPACKED, table)
