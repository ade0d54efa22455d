"""Settings: dataclasses that are checked by their annotations, and whose fields say how users set them.

Fields have the right type and finite numbers in range, annotated like ``Annotated[int, Range(1, 1024)]``. A field that
users may set is declared with `option`: its key in files, its help, its default; flags and files follow from that. The
module is light enough for audio workers, and for the help of commands.
"""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from m2dprep.artifacts.errors import UserError

Settings = TypeVar("Settings")


@dataclass(frozen=True)
class Range:
    """From ``low`` to ``high``; ``above`` excludes ``low`` itself, and ``below`` excludes ``high``."""

    low: float
    high: float
    above: bool = False
    below: bool = False

    def __contains__(self, value: float) -> bool:
        over = self.low < value if self.above else self.low <= value
        return over and (value < self.high if self.below else value <= self.high)

    def __str__(self) -> str:
        low = f"above {self.low:,.15g}" if self.above else f"from {self.low:,.15g}"
        return f"{low} {'and below' if self.below else 'to'} {self.high:,.15g}"


@dataclass(frozen=True)
class OneOf:
    """One of several texts."""

    choices: Collection[str]

    def __contains__(self, value: str) -> bool:
        return value in self.choices

    def __str__(self) -> str:
        return ", ".join(self.choices)


@dataclass(frozen=True)
class Option:
    """How a field is offered to users, as `option` describes it."""

    help: str
    key: str
    group: str
    flag: bool
    shown: str
    metavar: str | None
    later: bool
    role: str


def option(
    default: Any,
    help: str,  # noqa: A002 (the word of Click, which shows it)
    *,
    key: str = "",
    group: str = "",
    flag: bool = True,
    shown: str = "",
    metavar: str | None = None,
    later: bool = False,
    role: str = "",
) -> Any:
    """A field of a dataclass that users may set in a file, under ``key`` (or the field's name), and with a ``flag``.

    Help shows it in a ``group`` (or in the ``GROUP`` of its class) with its default, or with the text ``shown`` for a
    default that is worked out. A field that came ``later`` than the first runs on disk is recorded, and compared with
    what they recorded, only if it is set. ``role`` is "place" for a folder that is not read itself, and "model" for a
    model's name or folder.
    """
    return field(default=default, metadata={"option": Option(help, key, group, flag, shown, metavar, later, role)})


class Declared(NamedTuple):
    """A field that users may set: a value of the kind ``base`` (several if ``many``) within ``allowed``."""

    key: str
    option: Option
    group: str
    owner: type
    field: str
    default: Any
    kind: Any
    base: Any
    allowed: Any
    many: bool


def declared(settings: Any) -> Iterator[Declared]:
    """The fields of a dataclass, and of those within it, that users may set."""
    for one in fields(settings):
        kind, told = kinds_of(settings)[one.name], one.metadata.get("option")
        if is_dataclass(kind):
            yield from declared(kind)
        elif told is not None:
            group = told.group or settings.GROUP
            default = None if one.default is MISSING else one.default
            yield Declared(told.key or one.name, told, group, settings, one.name, default, kind, *_parts(kind))


def _parts(kind: Any) -> tuple[Any, Any, bool]:
    """The type, the limits, and whether there may be any number of them."""
    if get_origin(kind) in (Union, types.UnionType):
        return _parts(next(one for one in get_args(kind) if one is not type(None)))
    if get_origin(kind) is Annotated:
        return (*get_args(kind)[:2], False)
    if get_origin(kind) is tuple:
        several = get_args(kind)
        return (*_parts(several[0])[:2], True) if several[-1] is Ellipsis else (tuple, None, False)
    return kind, None, False


def filled(settings: Callable[..., Settings], values: Mapping[str, Any], **others: Any) -> Settings:
    """A dataclass from the ``values`` of its declared fields by key, and ``others``, by field."""
    keys = {one.field: one.key for one in declared(settings) if one.owner is settings}
    given = {name: values[key] for name, key in keys.items() if key in values} | others
    for one in fields(settings):  # type: ignore[arg-type]
        if is_dataclass(inner := kinds_of(settings)[one.name]):
            given[one.name] = filled(inner, values)  # type: ignore[arg-type]
    return settings(**given)


def values_of(settings: Any) -> dict[str, Any]:
    """The values of a dataclass by key: the inverse of `filled`."""
    keys = {one.field: one.key for one in declared(type(settings)) if one.owner is type(settings)}
    values: dict[str, Any] = {}
    for one in fields(settings):
        value = getattr(settings, one.name)
        values |= values_of(value) if is_dataclass(value) else {keys[one.name]: value} if one.name in keys else {}
    return values


def recorded(settings: Any) -> dict[str, Any]:
    """The fields of a dataclass as runs record and compare them: without later ones that are not set."""
    values = {}
    for one in fields(settings):
        told, value = one.metadata.get("option"), getattr(settings, one.name)
        if told is None or not told.later or value != one.default:
            values[one.name] = value
    return values


@lru_cache(maxsize=64)
def kinds_of(settings: type) -> dict[str, Any]:
    """The annotation of each field."""
    hints = get_type_hints(settings, include_extras=True)
    return {field.name: hints[field.name] for field in fields(settings)}


def check(settings: Any) -> None:
    """Check every field of a dataclass in its ``__post_init__``. Integers in float fields become floats, and lists
    become tuples. Raises `UserError`, naming the field."""
    cls: type = type(settings)
    for name, kind in kinds_of(cls).items():
        object.__setattr__(settings, name, typed(kind, getattr(settings, name), name))


def build(settings: type[Settings], values: Any, what: str, prefix: str = "") -> Settings:
    """A dataclass of settings from a mapping. Raises a `UserError` that begins with ``what`` for missing and unknown
    keys (named with their ``prefix``), and for values that a field cannot have."""
    if not isinstance(values, Mapping):
        raise UserError(f"{what} is {values!r}, not a table of settings.")
    required = {field.name: field.default is MISSING for field in fields(settings)}  # type: ignore[arg-type]
    unknown = sorted(f"{prefix}{key}" for key in values if key not in required)
    missing = [f"{prefix}{name}" for name, needed in required.items() if needed and name not in values]
    if unknown or missing:
        parts = [f"unknown {', '.join(unknown)}" if unknown else "", f"missing {', '.join(missing)}" if missing else ""]
        raise UserError(f"{what} has other keys: {'; '.join(filter(None, parts))}.")
    try:
        return settings(**values)
    except UserError as error:
        raise UserError(f"{what}: {error}") from error


def typed(kind: Any, value: Any, name: str) -> Any:
    """``value`` converted to the annotation ``kind``. Raises `UserError`, naming ``name``, if it does not fit."""
    allowed = None
    if get_origin(kind) is Annotated:
        kind, allowed = get_args(kind)
    if get_origin(kind) in (Union, types.UnionType):
        return (
            None if value is None else typed(next(one for one in get_args(kind) if one is not type(None)), value, name)
        )
    if get_origin(kind) is tuple:
        return _several(get_args(kind), value, name)
    readers: dict[Any, Callable[..., Any]] = {bool: _truth, int: _whole, float: _number, str: _text, Path: _path}
    reads = readers.get(kind)
    if reads is None:  # settings within settings check themselves
        if not isinstance(value, kind):
            raise UserError(f"{name} is {shown(value)}, not a table of settings.")
        return value
    return reads(value, name, allowed)


def shown(value: Any) -> str:
    """A value as it is shown in a message, shortened if it is long."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}…"


def _refuse(name: str, value: Any, wanted: str) -> UserError:
    hint = " (write numbers without quotes)" if isinstance(value, str) and "number" in wanted else ""
    return UserError(f"{name} is {shown(value)}; it must be {wanted}{hint}.")


def _within(allowed: Range | None) -> str:
    return "" if allowed is None else f" {allowed}"


def _whole(value: Any, name: str, allowed: Range | None) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or (allowed is not None and value not in allowed):
        raise _refuse(name, value, f"a whole number{_within(allowed)}")
    return value


def _number(value: Any, name: str, allowed: Range | None) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(_as_float(value)) or (allowed is not None and value not in allowed):
        raise _refuse(name, value, f"a finite number{_within(allowed)}")
    return float(value)


def _as_float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:  # a whole number of hundreds of digits
        return math.inf


def _truth(value: Any, name: str, allowed: None) -> bool:
    if not isinstance(value, bool):
        raise _refuse(name, value, "true or false")
    return value


def _text(value: Any, name: str, allowed: OneOf | None) -> str:
    if not isinstance(value, str) or (allowed is not None and value not in allowed):
        raise _refuse(name, value, "a text" if allowed is None else f"one of {allowed}")
    return value


def _path(value: Any, name: str, allowed: None) -> Path:
    return value if isinstance(value, Path) else Path(_text(value, name, None))


def _several(kinds: tuple[Any, ...], value: Any, name: str) -> tuple[Any, ...]:
    """A tuple with one value per kind, or, if ``kinds`` ends with ``…``, any number of values of one kind."""
    any_number = kinds[-1] is Ellipsis
    if not isinstance(value, list | tuple) or not (any_number or len(value) == len(kinds)):
        wanted = "a list" if any_number else f"a list of {len(kinds)} numbers"
        raise UserError(f"{name} is {shown(value)}; it must be {wanted}.")
    each = [kinds[0]] * len(value) if any_number else kinds
    return tuple(typed(kind, one, name) for kind, one in zip(each, value, strict=True))


def settings_text(values: Mapping[str, Any]) -> str:
    """Settings by key as the text of a file for ``--config``."""
    import yaml

    return yaml.safe_dump({key: _plain(value) for key, value in values.items()}, sort_keys=False, allow_unicode=True)


def _plain(value: Any) -> Any:
    """Paths as absolute text; sequences as lists."""
    if isinstance(value, Path):
        return str(value.resolve())
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value
