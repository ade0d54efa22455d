"""Players of sounds, which a page holds as data or links to."""

from __future__ import annotations

import base64
import os
from pathlib import Path
from urllib.parse import quote

from m2dprep.artifacts.pages.markup import Markup, tag

# What browsers play, by suffix.
PLAYED = {"wav": "audio/wav", "mp3": "audio/mpeg", "ogg": "audio/ogg", "oga": "audio/ogg", "opus": "audio/ogg",
          "flac": "audio/flac", "m4a": "audio/mp4", "webm": "audio/webm"}  # fmt: skip


def data_uri(content: bytes, kind: str) -> str:
    """Bytes of a media type as an address that holds them."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def player_of(content: bytes, kind: str) -> Markup:
    """A player that holds its sound."""
    return tag("audio", controls="", preload="none", src=data_uri(content, kind))


def linked_player(path: Path, page: Path | None) -> Markup:
    """A player of a file, by its path from where the ``page`` will be."""
    start = page.parent if page is not None else Path()
    return tag("audio", controls="", preload="none", src=quote(os.path.relpath(path.resolve(), start.resolve())))
