"""Memory for large tables: pages that were freed are used again rather than given back and fetched anew."""

from __future__ import annotations

import pyarrow as pa


def reuse_pages() -> None:
    """Let pyarrow use jemalloc in this process, where its build has it: on tables of millions of rows it spares a
    quarter of the memory, and most of the time that the system spends on pages. For commands, not for libraries."""
    if "jemalloc" in pa.supported_memory_backends():
        pa.set_memory_pool(pa.jemalloc_memory_pool())
