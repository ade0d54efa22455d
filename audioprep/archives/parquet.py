"""Lists the rows of a Parquet file that has a column of audio: a struct of ``bytes`` and ``path``, or plain bytes."""

from __future__ import annotations

from typing import IO, TYPE_CHECKING, Any

from m2dprep.artifacts.clips.archive_names import ROW_ID_COLUMNS
from m2dprep.artifacts.clips.clip_id import has_audio_suffix, suffix_of
from m2dprep.artifacts.errors import first_line
from m2dprep.audioprep.archives.place import ROW, UNKNOWN_SIZE, Listing, Member, Place, last_of_each_name, named

if TYPE_CHECKING:
    import pyarrow as pa

AUDIO_COLUMNS = ("audio", "bytes", "flac", "wav", "mp3", "sound")
OTHER_COLUMNS = ("image", "video", "jpg", "png")
BYTES, PATH = "bytes", "path"


def list_parquet(raw: IO[bytes], archive: str, time_ns: int, id_column: str | None) -> Listing | None:
    """The rows of an open file, called ``archive`` in their places; None if no column holds audio.

    Raises `OSError`.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(raw) as file:
            schema = file.schema_arrow
            columns = audio_columns(schema)
            if len(columns) > 1:
                return Listing(fault=("unsupported", _several(columns)))
            if not columns and (samples := _of_samples(schema)):
                said = f"its column {samples} holds numbers ({schema.field(samples).type}), not the bytes of files"
                return Listing(fault=("unsupported", f"{said}; write each sound to a file, such as FLAC"))
            if not columns:
                return None
            (column,) = columns
            names = _names(file, schema, column, id_column)
            if names is None:
                return Listing(fault=("unsupported", _no_name(schema, id_column)))
    except (pa.ArrowException, UnicodeError) as error:
        reason = "truncated" if _begins_as_parquet(raw) else "not_audio"
        return Listing(fault=(reason, f"it cannot be read as a Parquet file: {first_line(error)}"))
    members = [_member(name, row, archive, time_ns, column) for row, name in enumerate(names)]
    return Listing(last_of_each_name(members))


def audio_columns(schema: pa.Schema) -> list[str]:
    """The column that holds audio: a struct with ``bytes``, or binary with a telling name or as the only one.

    None if there is none; several if there are several such structs, and none of them has a telling name.
    """
    import pyarrow as pa

    fields = [field for field in schema if field.name not in OTHER_COLUMNS]
    structs = [
        field.name
        for field in fields
        if pa.types.is_struct(field.type)
        and field.type.get_field_index(BYTES) >= 0
        and _holds_bytes(field.type.field(BYTES).type)
    ]
    binary = [field.name for field in fields if _holds_bytes(field.type) and not _is_list(field.type)]
    lists = [field.name for field in fields if _holds_bytes(field.type) and _is_list(field.type)]
    telling = [name for name in AUDIO_COLUMNS if name in (*structs, *binary, *lists)]
    if telling:
        return telling[:1]
    return structs or (binary if len(binary) == 1 else [])


def _holds_bytes(kind: pa.DataType) -> bool:
    """Whether each value of a column is the bytes of a file: binary of any kind, or a list of whole numbers of 8 bits.

    Tables made without a schema have such lists.
    """
    import pyarrow as pa

    if _is_list(kind):
        return pa.types.is_uint8(kind.value_type) or pa.types.is_int8(kind.value_type)
    kinds = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_fixed_size_binary)
    return any(is_one(kind) for is_one in kinds)


def _is_list(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _of_samples(schema: pa.Schema) -> str:
    """The column of a telling name that holds decoded samples, or other numbers, in place of a file's bytes; or none.

    Texts and paths do not count: such a table names sounds that lie elsewhere.
    """
    import pyarrow as pa

    def holds_numbers(kind: pa.DataType) -> bool:
        if pa.types.is_struct(kind):
            return any(_is_list(field.type) and holds_numbers(field.type) for field in kind)
        return _is_list(kind) and (holds_numbers(kind.value_type) or _is_number(kind.value_type))

    return next((field.name for field in schema if field.name in AUDIO_COLUMNS and holds_numbers(field.type)), "")


def _is_number(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return pa.types.is_floating(kind) or pa.types.is_integer(kind)


def _has_names(kind: pa.DataType) -> bool:
    """Whether a column of this type holds texts or whole numbers, maybe as categories."""
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    kinds = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_integer)
    return any(is_one(kind) for is_one in kinds)


def _names(file: Any, schema: pa.Schema, column: str, id_column: str | None) -> list[str | None] | None:
    """The name of every row; None if no column has names."""
    import pyarrow as pa

    if id_column is not None:
        wanted = [id_column] if id_column in schema.names else []
    else:
        wanted = [name for name in ROW_ID_COLUMNS if name in schema.names and name != column]
    for name in wanted:
        if _has_names(schema.field(name).type):
            found = file.read(columns=[name], use_threads=False)[name].to_pylist()
            return [None if value is None else str(value) for value in found]
    kind = schema.field(column).type
    if id_column is None and pa.types.is_struct(kind) and kind.get_field_index(PATH) >= 0:
        table = file.read(columns=[f"{column}.{PATH}"], use_threads=False)
        return [value and value[PATH] for value in table[column].to_pylist()]
    return None


def _member(name: str | None, row: int, archive: str, time_ns: int, column: str) -> Member:
    place = Place(archive, ROW, row, UNKNOWN_SIZE, time_ns, column=column)
    if not name:
        return Member(f"row {row}", None, "bad_name", "the row has no id", f"row {row}")
    member = named(name, place)
    # An id is no file's name: only the suffix of a sound is taken from it.
    stem = member.name[: -len(suffix_of(member.name)) - 1] if has_audio_suffix(member.name) else member.name
    return member._replace(array=member.array or stem)


def _several(columns: list[str]) -> str:
    return f"several of its columns may hold the audio ({', '.join(columns)}); call one of them audio"


def _no_name(schema: pa.Schema, id_column: str | None) -> str:
    if id_column is not None:
        return f"it has no column {id_column} of texts or numbers (its columns: {', '.join(schema.names)})"
    return (
        f"none of its columns names the rows ({', '.join(ROW_ID_COLUMNS)}, or the path beside the bytes); name one "
        f"with --id-column (its columns: {', '.join(schema.names)})"
    )


def _begins_as_parquet(raw: IO[bytes]) -> bool:
    raw.seek(0)
    return raw.read(4) == b"PAR1"
