"""JSON files that nobody vouches for: whatever is wrong with one is a single line that names the file.

Python's reader accepts NaN, numbers that overflow, and halves of surrogate pairs, and ends in a traceback on deep
nesting or a number of thousands of digits. All of these would only fail later, elsewhere.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from artifacts.errors import UserError
from artifacts.layout import require_file

LARGEST_INTEGER = 2**64 - 1


def load_json(path: Path) -> Any:
    """The value in the JSON file ``path``. Raises `OSError` where there is none, `ValueError` as `loads_json` does."""
    return loads_json(path.read_bytes())


def loads_json(content: str | bytes, *, any_number: bool = False) -> Any:
    """The value of a JSON text. ``any_number`` takes what others write for "no limit": 1e30 in full, infinity.

    Raises `ValueError`, whose message is a line, where it is not UTF-8 or not JSON, nested too deeply, or holds NaN,
    infinity, a number beyond 64 bits, or half a character.
    """
    try:
        text = content.decode("utf-8-sig") if isinstance(content, bytes) else content
        numbers: dict[str, Any] = {"parse_constant": _constant, "parse_int": _integer, "parse_float": _real}
        value = json.loads(text, **({} if any_number else numbers))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is not UTF-8") from error
    if "\\u" in text:
        _require_whole_characters(value)
    return value


def read_json(path: Path, purpose: str, *, any_number: bool = False) -> Any:
    """The value in the JSON file ``path``. Raises `UserError` where it is missing or not sound (`loads_json`)."""
    require_file(path, purpose)
    try:
        return loads_json(path.read_bytes(), any_number=any_number)
    except OSError as error:
        raise UserError(f"{path} cannot be read as {purpose}: {error.strerror}.") from error
    except ValueError as error:
        raise UserError(f"{path} cannot be read as {purpose}: it is not JSON, or not sound: {error}.") from error


def read_json_object(path: Path, purpose: str, *, any_number: bool = False) -> dict[str, Any]:
    """The same where it must be an object (``{"key": value}``)."""
    value = read_json(path, purpose, any_number=any_number)
    if not isinstance(value, dict):
        raise UserError(f"{path} cannot be read as {purpose}: it holds a {_kind(value)}, not an object.")
    return value


def _constant(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _integer(digits: str) -> int:
    value = int(digits) if len(digits) <= len(str(LARGEST_INTEGER)) + 1 else None
    if value is None or abs(value) > LARGEST_INTEGER:
        raise ValueError(f"the number {digits[:20]}… is beyond 64 bits")
    return value


def _real(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"the number {digits[:20]} is beyond 64 bits")
    return value


def _require_whole_characters(value: Any) -> None:
    """Raise `ValueError` where a text holds half a surrogate pair, which no file can hold as UTF-8."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            waiting.extend(one)
            waiting.extend(one.values())
        elif isinstance(one, list):
            waiting.extend(one)
        elif isinstance(one, str) and any("\ud800" <= character <= "\udfff" for character in one):
            raise ValueError(f"the text {one[:40]!r} holds half a character")


def _kind(value: Any) -> str:
    names: dict[type, str] = {list: "list", str: "text", bool: "truth value", int: "number", float: "number"}
    return names.get(type(value), "null")
