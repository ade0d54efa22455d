"""``_melspec/unpacked.parquet``: digests of arrays that were unpacked with other bytes than their records say."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from m2dprep.artifacts.layout import LmsLayout
from m2dprep.artifacts.tables import read_parquet, write_parquet

UNPACKED = "unpacked.parquet"
SCHEMA = pa.schema(
    [pa.field("file_name", pa.string(), nullable=False), pa.field("digest", pa.string(), nullable=False)]
)


def read_unpacked(layout: LmsLayout) -> dict[str, str]:
    """The digest of each file in ``unpacked.parquet``. Raises `UserError` if the table is damaged."""
    path = layout.melspec / UNPACKED
    if not path.exists():
        return {}
    table = read_parquet(path, SCHEMA, "the digests of unpacked arrays")
    return dict(zip(table["file_name"].to_pylist(), table["digest"].to_pylist(), strict=True))


def note_unpacked(layout: LmsLayout, digests: Mapping[str, str]) -> None:
    """Add ``digests`` by file name to ``unpacked.parquet``, if there are any."""
    if digests and layout.melspec.is_dir():
        write_unpacked(layout, {**read_unpacked(layout), **digests})


def write_unpacked(layout: LmsLayout, digests: Mapping[str, str]) -> None:
    """Replace ``unpacked.parquet`` by ``digests``; remove it if there are none."""
    if not digests:
        (layout.melspec / UNPACKED).unlink(missing_ok=True)
        return
    names = sorted(digests)
    table = pa.table({"file_name": names, "digest": [digests[name] for name in names]}, schema=SCHEMA)
    write_parquet(layout.melspec / UNPACKED, table)
