"""JSON that others wrote: whatever is wrong with it is an error that names the file and the place."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from artifacts.errors import UserError, first_line

HALF = re.compile(r"\\u[dD][89a-fA-F]")  # may be half a character; two halves make one


def parse_json(text: str, place: object, purpose: str) -> Any:
    """The value of a JSON text that stands at ``place`` (a file, or file:line).

    Raises `UserError` for what is no JSON, is nested too deeply, holds a number of thousands of digits, or half a
    character (``\\\\ud83d`` alone), which no file can hold.
    """
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise UserError(f"{place} cannot be read as JSON ({purpose}): it is nested too deeply.") from error
    except ValueError as error:  # also a number that Python refuses to convert
        raise UserError(f"{place} cannot be read as JSON ({purpose}): {first_line(error)}") from error
    if HALF.search(text) and (where := next(_halves(value, ""), None)) is not None:
        raise UserError(
            f"{place} holds half a character ({purpose}) in {where or 'its text'}: a surrogate without its other half, "
            "which cannot be written as UTF-8. Correct it or leave it out."
        )
    return value


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
