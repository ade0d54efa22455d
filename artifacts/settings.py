"""Dataclasses of settings, checked by their annotations: right types, finite numbers, in range. One way for all.

A number is annotated with what it may be: ``Annotated[int, Range(1, 1024)]``. Light enough for audio workers.
"""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from functools import lru_cache
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

from artifacts.errors import UserError

Settings = TypeVar("Settings")


@dataclass(frozen=True)
class Range:
    """From ``low`` to ``high``, both included unless ``above`` (low) or ``below`` (high) excludes one."""

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


@lru_cache(maxsize=64)
def kinds_of(settings: type) -> dict[str, Any]:
    """The annotation of each field."""
    hints = get_type_hints(settings, include_extras=True)
    return {field.name: hints[field.name] for field in fields(settings)}


def check(settings: Any) -> None:
    """Check every field of a dataclass, for its ``__post_init__``; whole numbers where floats are due become floats,
    and lists tuples. Raises `UserError`, naming the field."""
    cls: type = type(settings)
    for name, kind in kinds_of(cls).items():
        object.__setattr__(settings, name, typed(kind, getattr(settings, name), name))


def build(settings: type[Settings], values: Any, what: str, prefix: str = "") -> Settings:
    """A dataclass of settings from a mapping. Raises `UserError` that begins with ``what`` for missing and unknown
    keys (``prefix`` and key), and for values that no such settings have."""
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
    """``value`` as the annotation ``kind`` says. Raises `UserError`, naming it by ``name``, where it is of another."""
    allowed = None
    if get_origin(kind) is Annotated:
        kind, allowed = get_args(kind)
    if get_origin(kind) in (Union, types.UnionType):
        return (
            None if value is None else typed(next(one for one in get_args(kind) if one is not type(None)), value, name)
        )
    if get_origin(kind) is tuple:
        return _several(get_args(kind), value, name)
    readers: dict[Any, Callable[..., Any]] = {bool: _truth, int: _whole, float: _number, str: _text}
    reads = readers.get(kind)
    if reads is None:  # settings within settings check themselves
        if not isinstance(value, kind):
            raise UserError(f"{name} is {shown(value)}, not a table of settings.")
        return value
    return reads(value, name, allowed)


def shown(value: Any) -> str:
    """A value as it stands in a message, cut where it is long."""
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


def _text(value: Any, name: str, allowed: None) -> str:
    if not isinstance(value, str):
        raise _refuse(name, value, "a text")
    return value


def _several(kinds: tuple[Any, ...], value: Any, name: str) -> tuple[Any, ...]:
    """A tuple of so many values, or with ``…`` of any number of one kind."""
    any_number = kinds[-1] is Ellipsis
    if not isinstance(value, list | tuple) or not (any_number or len(value) == len(kinds)):
        wanted = "a list" if any_number else f"a list of {len(kinds)} numbers"
        raise UserError(f"{name} is {shown(value)}; it must be {wanted}.")
    each = [kinds[0]] * len(value) if any_number else kinds
    return tuple(typed(kind, one, name) for kind, one in zip(each, value, strict=True))
