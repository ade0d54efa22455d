"""Writes tensors as PyTorch does; if that fails, with the error of the system, whose reason PyTorch drops."""

from __future__ import annotations

from typing import IO, Any

import torch


def save_tensors(value: Any, file: IO[bytes]) -> None:
    """``torch.save`` to an open file. Raises `OSError` if the disk is full, or cannot be written to."""
    noting = _NotingFile(file)
    try:
        torch.save(value, noting)  # type: ignore[arg-type]
    except RuntimeError as error:
        if noting.error is None:
            raise
        raise noting.error from error


class _NotingFile:
    """Writes to a file and keeps the system's error."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()
