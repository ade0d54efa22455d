"""pyarrow without pandas, as long as nobody asks for it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


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
