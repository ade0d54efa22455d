"""The check of stores of embeddings of sounds (`m2dprep embed-audio`): whole, and as they were written."""

from __future__ import annotations

from pathlib import Path

from m2dprep.artifacts.embeddings.audio_store import SOURCES, AudioStore
from m2dprep.artifacts.embeddings.store import META
from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.layout import require_folder
from m2dprep.workflows.check.result import CheckResult, Collecting


def is_sound_store(folder: Path) -> bool:
    """Whether a folder is such a store, by the names of its files, which may be damaged."""
    return (folder / META).is_file() and (folder / SOURCES).is_file()


def check_sounds(root: Path, quick: bool) -> list[CheckResult]:
    """Check the store that ``root`` is, or those in it: unless ``quick``, all bytes of arrays and tables.

    Returns no result if there are none. Raises `UserError` if ``root`` is not a folder.
    """
    folders = [root] if is_sound_store(require_folder(root, "the data directory to check")) else sorted(root.iterdir())
    stores = [folder for folder in folders if is_sound_store(folder)]
    result = CheckResult("embeddings of sounds")
    for folder in stores:
        with Collecting(result, folder.name if folder != root else str(root)):
            store = AudioStore.open(folder)
            result.checked += len(store)
            if not quick:
                store.require_whole()
                counted = sum(store.sources["rows"].to_pylist())
                if store.index.num_rows != counted:
                    raise UserError(f"its sounds have {counted:,} rows, and its index has {store.index.num_rows:,}.")
    return [result] if stores else []
