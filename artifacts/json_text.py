"""JSON that nobody vouches for: whatever is wrong with it is a single line that names the file and the place.

Python's reader accepts NaN, numbers that overflow, and halves of surrogate pairs, and ends in a traceback on deep
nesting or a number of thousands of digits. All of these would only fail later, elsewhere.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from artifacts.errors import UserError, first_line
from artifacts.layout import require_file

HALF = re.compile(r"\\u[dD][89a-fA-F]")  # may be half a character; two halves make one
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
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is not UTF-8") from error
    value = _parsed(text, any_number=any_number)
    if HALF.search(text) and (where := next(_halves(value, ""), None)) is not None:
        raise ValueError(f"it holds half a character in {where or 'its text'}")
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


def parse_json(text: str, place: object, purpose: str) -> Any:
    """The value of a JSON text that stands at ``place`` (a file, or file:line).

    Raises `UserError` for what is no JSON, is nested too deeply, holds a number of thousands of digits, or half a
    character (``\\\\ud83d`` alone), which no file can hold.
    """
    try:
        value = _parsed(text, any_number=True)
    except ValueError as error:  # also a number that Python refuses to convert
        raise UserError(f"{place} cannot be read as JSON ({purpose}): {first_line(error)}") from error
    if HALF.search(text) and (where := next(_halves(value, ""), None)) is not None:
        raise UserError(
            f"{place} holds half a character ({purpose}) in {where or 'its text'}: a surrogate without its other half, "
            "which cannot be written as UTF-8. Correct it or leave it out."
        )
    return value


def _parsed(text: str, *, any_number: bool) -> Any:
    numbers: dict[str, Any] = {"parse_constant": _constant, "parse_int": _integer, "parse_float": _real}
    try:
        return json.loads(text, **({} if any_number else numbers))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _halves(value: Any, place: str) -> Iterator[str]:
    """Where texts stand that are not characters alone: ``data[3].caption``. Entries count from 0, as in JSON paths."""
    waiting = [(place, value)]
    while waiting:
        place, value = waiting.pop()
        if isinstance(value, dict):
            inner = [(f"{place}.{key}" if place else str(key), part) for key, part in value.items()]
            waiting += [(name, key) for (name, _), key in zip(inner, value, strict=True)][::-1] + inner[::-1]
        elif isinstance(value, list):
            waiting += [(f"{place}[{number}]", part) for number, part in enumerate(value)][::-1]
        elif isinstance(value, str) and not _is_text(value):
            yield place.encode(errors="backslashreplace").decode()


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


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


def _kind(value: Any) -> str:
    names: dict[type, str] = {list: "list", str: "text", bool: "truth value", int: "number", float: "number"}
    return names.get(type(value), "null")
