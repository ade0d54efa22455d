"""Text that the system stops giving in the middle: the error names the file."""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path
from typing import Any

import pytest

from m2dprep.artifacts.tables import read_csv_columns
from m2dprep.artifacts.text_files import read_bytes


class Stale(io.BytesIO):
    """A file whose every read fails, as one on a server that has lost it."""

    def read(self, *_: Any) -> bytes:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))


@pytest.mark.parametrize("read", [read_bytes, lambda path, purpose: read_csv_columns(path, ["a"], purpose)])
def test_the_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Any) -> None:
    path = tmp_path / "list.csv"
    path.write_text("a\nb\n")
    monkeypatch.setattr(Path, "open", lambda self, *_, **__: Stale())
    with pytest.raises(OSError, match="Stale file handle") as caught:
        read(path, "a list")
    assert caught.value.filename == str(path)
