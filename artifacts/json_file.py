"""JSON files that prove themselves: the last key of the object is a digest of all bytes before it.

Everybody else reads two more keys, ``proof`` (the first, which says that there is a digest) and ``digest``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from artifacts.atomic import write_text
from artifacts.digest import KIND, digest_of
from artifacts.errors import UserError
from artifacts.json_text import loads_json
from artifacts.steady import read_file

PROOF, DIGEST = "proof", "digest"
END = f'  "{DIGEST}": ""\n}}'
TAIL = re.compile(rb'  "digest": "([0-9a-f]{16})"\n\}\n\Z')


def write_object(path: Path, value: Mapping[str, Any]) -> None:
    """Write ``value`` (JSON values) as an indented object with its digest, atomically. NaN and infinity are refused."""
    content = {key: item for key, item in value.items() if key not in (PROOF, DIGEST)}
    text = json.dumps({PROOF: KIND, **content, DIGEST: ""}, indent=2, ensure_ascii=False, allow_nan=False)
    before = text.removesuffix(END)
    write_text(path, f'{before}  "{DIGEST}": "{digest_of(before.encode())}"\n}}\n')


def read_object(path: Path) -> dict[str, Any] | None:
    """The object in ``path``, without its digest; None where the file is missing.

    Raises `UserError` where it is no JSON object or its digest says that it is damaged; one without a digest, which an
    earlier version or somebody else wrote, is taken as it is.
    """
    found = _read(path)
    return None if found is None else found[0]


def is_proven(path: Path) -> bool:
    """Whether ``path`` has a digest, which is right. Raises `UserError` as `read_object` does."""
    found = _read(path)
    return found is not None and found[1]


def _read(path: Path) -> tuple[dict[str, Any], bool] | None:
    if not path.exists():
        return None
    try:
        content = read_file(path).tobytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    tail = TAIL.search(content)
    if tail is not None and digest_of(content[: tail.start()]) != tail[1].decode():
        raise _damaged(path)
    try:
        value = loads_json(content)
    except ValueError as error:
        message = str(error).splitlines()[0]
        raise UserError(f"{path} cannot be read as JSON: {message}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no JSON object.")
    if tail is None and (PROOF in value or DIGEST in value):
        raise _damaged(path)
    return {key: item for key, item in value.items() if key not in (PROOF, DIGEST)}, tail is not None


def _damaged(path: Path) -> UserError:
    return UserError(
        f"{path} is damaged, or was edited: its digest is not that of its bytes. Restore it, or make it anew."
    )
