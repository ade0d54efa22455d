"""Rows of a conversion on their way to the disk: a part of the records every few seconds."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

from artifacts.layout import LmsLayout
from artifacts.records import append_records

PART_ROWS = 8192
PART_SECONDS = 20.0


class RecordBuffer:
    """Collects rows and writes them as a new part every few seconds, and when it is left, however it is left.

    ``given_up`` counts the good records that could only be written as failures.
    """

    def __init__(self, layout: LmsLayout) -> None:
        self._layout = layout
        self._rows: list[Mapping[str, Any]] = []
        self._written = time.monotonic()
        self.given_up = 0

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        self._rows.extend(rows)
        if len(self._rows) >= PART_ROWS or time.monotonic() - self._written > PART_SECONDS:
            self._flush()

    def _flush(self) -> None:
        self.given_up += len(append_records(self._layout, self._rows))
        self._rows, self._written = [], time.monotonic()

    def __enter__(self) -> RecordBuffer:
        return self

    def __exit__(self, *exception: object) -> None:
        self._flush()
