"""What comes of putting captions together: the table, how its inputs went in, and what found no clip."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from captions.assembly import Assembly
from captions.coverage import Coverage


@dataclass(frozen=True)
class Merged:
    """The new table (`CAPTIONS_SCHEMA`), how its inputs went in, and the captions that found no clip."""

    assembly: Assembly
    coverage: Coverage
    unmatched: pa.Table

    @property
    def captions(self) -> pa.Table:
        """The table as a whole."""
        return self.assembly.table()
