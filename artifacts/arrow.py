"""How commands set up pyarrow: without pandas, and with an allocator that suits tables of millions of rows."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

from artifacts.memory import keep_freed_memory


class _NoPandas(MetaPathFinder):
    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name == "pandas":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None


def keep_pandas_out() -> None:
    """Keep pyarrow from importing pandas with the first array that it makes, in case that were one of pandas'.

    Nothing here hands it such a one, and the import takes half a second of every command. `to_pandas` still imports it.
    """
    import pyarrow

    finder = _NoPandas()
    sys.meta_path.insert(0, finder)
    try:
        pyarrow.array([0])  # it tries once, and remembers
    finally:
        sys.meta_path.remove(finder)


def suit_large_tables() -> None:
    """Let pyarrow use jemalloc in this process, where its build has it: on tables of millions of rows it spares a
    quarter of the memory, and most of the time that the system spends on pages. Freed memory is kept for the next
    array. For commands, not for libraries."""
    import pyarrow

    keep_freed_memory()
    if "jemalloc" in pyarrow.supported_memory_backends():
        pyarrow.set_memory_pool(pyarrow.jemalloc_memory_pool())
