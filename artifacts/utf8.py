"""Text that is UTF-8: what Parquet files and command lines call text need not be."""

from __future__ import annotations

import pyarrow as pa

from artifacts.errors import UserError


def require_utf8(table: pa.Table, source: object) -> None:
    """Raise `UserError` naming ``source``, row and column where a text column of ``table`` holds other bytes."""
    for name in table.column_names:
        if not pa.types.is_string(table.schema.field(name).type):
            continue
        try:
            table[name].validate(full=True)
        except pa.ArrowInvalid as error:
            row = next(row for row, text in enumerate(table[name].cast(pa.binary())) if not _is_utf8(text.as_py()))
            raise UserError(f"{source}: row {row} of the column {name} is not UTF-8.") from error


def require_text(text: str, option: str) -> str:
    """``text`` of the command line if its bytes were UTF-8, else a `UserError` that names the ``option``."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{option} {text!r}: its bytes are not UTF-8.") from error
    return text


def _is_utf8(content: bytes | None) -> bool:
    try:
        (content or b"").decode()
    except UnicodeDecodeError:
        return False
    return True
