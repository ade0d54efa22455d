"""JSON files: those of others, read strictly, and our own, which carry a digest.

Python's reader accepts NaN, numbers that overflow, and halves of surrogate pairs, and ends in a traceback on deep
nesting or a number of thousands of digits. Here, each of these is an error of one line that names the file and the
place.

The first key of our own objects, ``proof``, says that there is a digest; the last one, ``digest``, is the digest of all
bytes before it. Other programs simply see two more keys.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from m2dprep.artifacts.digests import KIND, digest_of
from m2dprep.artifacts.errors import UserError, first_line
from m2dprep.artifacts.files import write_text
from m2dprep.artifacts.layout import require_file
from m2dprep.artifacts.reading import read_file

HALF = re.compile(r"\\u[dD][89a-fA-F]")  # half a surrogate pair, with or without its other half
MAX_INTEGER = 2**64 - 1


def load_json(path: Path) -> Any:
    """The value in the JSON file ``path``. Raises `OSError` if it cannot be read and `ValueError` as `loads_json`."""
    return loads_json(path.read_bytes())


def loads_json(content: str | bytes, *, any_number: bool = False) -> Any:
    """The value of a JSON text. ``any_number`` accepts what other programs write for "no limit": 1e30, infinity.

    Raises `ValueError` with a message of one line if the text is not UTF-8, is not JSON, is nested too deeply, or holds
    NaN, infinity, a number beyond 64 bits, or half a character.
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
    """The value in the JSON file ``path``. Raises `UserError` if it is missing or not sound (`loads_json`)."""
    require_file(path, purpose)
    try:
        return loads_json(path.read_bytes(), any_number=any_number)
    except OSError as error:
        raise UserError(f"{path} cannot be read as {purpose}: {error.strerror}.") from error
    except ValueError as error:
        raise UserError(f"{path} cannot be read as {purpose}: it is not JSON, or not sound: {error}.") from error


def read_json_object(path: Path, purpose: str, *, any_number: bool = False) -> dict[str, Any]:
    """`read_json` for a file that must hold an object (``{"key": value}``)."""
    value = read_json(path, purpose, any_number=any_number)
    if not isinstance(value, dict):
        raise UserError(f"{path} cannot be read as {purpose}: it holds a {_kind(value)}, not an object.")
    return value


def parse_json(text: str, place: object, purpose: str) -> Any:
    """The value of a JSON text from ``place`` (a file, or file:line).

    Raises `UserError` if the text is not JSON, is nested too deeply, or holds a number of thousands of digits or half a
    character (a lone ``\\\\ud83d``), which no UTF-8 file can hold.
    """
    try:
        value = _parsed(text, any_number=True)
    except ValueError as error:  # including a number that Python refuses to convert
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
    """The places of texts with half characters, such as ``data[3].caption``. Entries count from 0, as in JSON paths."""
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
    value = int(digits) if len(digits) <= len(str(MAX_INTEGER)) + 1 else None
    if value is None or abs(value) > MAX_INTEGER:
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


PROOF, DIGEST = "proof", "digest"
END = f'  "{DIGEST}": ""\n}}'
TAIL = re.compile(rb'  "digest": "([0-9a-f]{16})"\n\}\n\Z')


def write_object(path: Path, value: Mapping[str, Any]) -> None:
    """Write ``value`` as an indented object with its digest, atomically. Raises `ValueError` for NaN and infinity."""
    content = {key: item for key, item in value.items() if key not in (PROOF, DIGEST)}
    text = json.dumps({PROOF: KIND, **content, DIGEST: ""}, indent=2, ensure_ascii=False, allow_nan=False)
    before = text.removesuffix(END)
    write_text(path, f'{before}  "{DIGEST}": "{digest_of(before.encode())}"\n}}\n')


def read_object(path: Path) -> dict[str, Any] | None:
    """The object in ``path``, without its digest; None if the file is missing.

    Raises `UserError` if it is not a JSON object or if its digest shows damage. An object without a digest, written by
    an earlier version or another program, is accepted as it is.
    """
    found = _read(path)
    return None if found is None else found[0]


def is_proven(path: Path) -> bool:
    """Whether ``path`` has a correct digest. Raises `UserError` as `read_object` does."""
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
