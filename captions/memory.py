"""Memory for large tables: pages that were freed are used again rather than given back and fetched anew."""

from __future__ import annotations

import ctypes

import pyarrow as pa

# Of mallopt(3).
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEPT_BYTES, MAPPED_BYTES = 256 << 20, 32 << 20


def reuse_pages() -> None:
    """Let pyarrow use jemalloc in this process, where its build has it: on tables of millions of rows it spares a
    quarter of the memory, and most of the time that the system spends on pages. For commands, not for libraries."""
    if "jemalloc" in pa.supported_memory_backends():
        pa.set_memory_pool(pa.jemalloc_memory_pool())


def keep_freed_memory() -> None:
    """Let glibc keep what torch frees on a CPU for its next operation, instead of fetching zeroed pages anew: a
    quarter of the time of a small encoder. For commands, not for libraries."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, MAPPED_BYTES)
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
