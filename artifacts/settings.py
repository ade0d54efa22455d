"""Settings: dataclasses that are checked by their annotations, and YAML files that people write.

Fields have the right type and finite numbers in range, annotated like ``Annotated[int, Range(1, 1024)]``. The module is
light enough for audio workers.

Every fault of a YAML file is an error of one line that names the file and the line in it. The library's own reader ends
in a traceback on deep nesting, impossible dates and numbers of thousands of digits, and a few hundred bytes of aliases
of aliases can ask it for billions of entries.
"""

from __future__ import annotations

import difflib
import math
import re
import types
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.layout import require_file

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
    readers: dict[Any, Callable[..., Any]] = {bool: _truth, int: _whole, float: _number, str: _text}
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


def _text(value: Any, name: str, allowed: None) -> str:
    if not isinstance(value, str):
        raise _refuse(name, value, "a text")
    return value


def _several(kinds: tuple[Any, ...], value: Any, name: str) -> tuple[Any, ...]:
    """A tuple with one value per kind, or, if ``kinds`` ends with ``…``, any number of values of one kind."""
    any_number = kinds[-1] is Ellipsis
    if not isinstance(value, list | tuple) or not (any_number or len(value) == len(kinds)):
        wanted = "a list" if any_number else f"a list of {len(kinds)} numbers"
        raise UserError(f"{name} is {shown(value)}; it must be {wanted}.")
    each = [kinds[0]] * len(value) if any_number else kinds
    return tuple(typed(kind, one, name) for kind, one in zip(each, value, strict=True))


MAX_DEPTH = 64
MAX_ENTRIES = 100_000  # each use of an alias counts all entries that it stands for
MAX_INTEGER = 2**64 - 1


@dataclass(frozen=True)
class YamlDocument:
    """The content of a YAML file: its ``node``, which knows its lines (None for an empty file), and its ``value``."""

    node: yaml.Node | None
    value: Any


def read_yaml(path: Path, purpose: str, loader_class: type[Any] = yaml.SafeLoader) -> YamlDocument:
    """The one document in ``path``; ``loader_class`` makes its values (`yaml.BaseLoader` leaves them as texts).

    Raises `UserError`, naming the line, if the file is missing, is not UTF-8 or not YAML, is nested too deeply, has too
    many entries, or holds an alias within its own target or an impossible value, such as the 30th of February.
    """
    require_file(path, purpose)
    try:
        text = path.read_bytes().decode("utf-8-sig")
        _require_shallow(path, text)
        loader = loader_class(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return YamlDocument(None, None)
            _require_few_entries(path, node)
            for scalar, key in _scalars(node):
                _value(path, loader, scalar, key)
        finally:
            loader.dispose()
        # Parsed again, because making a value moves merged nodes (<<) into their mapping and so changes the node.
        return YamlDocument(node, yaml.load(text, Loader=loader_class))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}{line} is not YAML: {error.problem or error.context}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read as {purpose}: {error.strerror}.") from error


def scalar_value(node: yaml.ScalarNode) -> Any:
    """The value of a scalar node of a document that was read."""
    return yaml.SafeLoader("").construct_object(node)


def _require_shallow(path: Path, text: str) -> None:
    """Raise `UserError` if a text is nested too deeply; called before nodes are made, which recurses."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                line = f", line {event.start_mark.line + 1}" if event.start_mark else ""
                raise UserError(f"{path}{line}: nested more than {MAX_DEPTH} deep.")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _require_few_entries(path: Path, node: yaml.Node) -> None:
    """Raise `UserError` if ``node``, with all its aliases expanded, is too large or too deep, or contains itself."""
    measured: dict[int, tuple[int, int]] = {}  # entries and depth
    within: set[int] = set()

    def measure(one: yaml.Node) -> tuple[int, int]:
        if id(one) in measured:
            return measured[id(one)]
        where = f"{path}, line {one.start_mark.line + 1}:"
        if id(one) in within:
            raise UserError(f"{where} an alias stands for something that it is part of.")
        within.add(id(one))
        below = [measure(child) for child in _children(one)]
        within.discard(id(one))
        entries, depth = 1 + sum(count for count, _ in below), 1 + max((deep for _, deep in below), default=0)
        if entries > MAX_ENTRIES:
            raise UserError(f"{where} more than {MAX_ENTRIES:,} entries, what aliases stand for included.")
        if depth > MAX_DEPTH + 1:
            raise UserError(f"{where} nested more than {MAX_DEPTH} deep, what aliases stand for included.")
        measured[id(one)] = entries, depth
        return entries, depth

    try:
        measure(node)
    except RecursionError:
        raise UserError(f"{path}: its aliases are nested too deeply.") from None


def _children(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield key
            yield value
    elif isinstance(node, yaml.SequenceNode):
        yield from node.value


def _scalars(node: yaml.Node) -> Iterator[tuple[yaml.ScalarNode, str]]:
    """Every scalar once, with its key if it is the value of a mapping."""
    seen: set[int] = set()
    waiting: list[tuple[yaml.Node, str]] = [(node, "")]
    while waiting:
        one, key = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, yaml.ScalarNode):
            yield one, key
        elif isinstance(one, yaml.MappingNode):
            for name, value in one.value:
                waiting += [(name, ""), (value, str(name.value)[:40] if isinstance(name, yaml.ScalarNode) else "")]
        else:
            waiting += [(child, key) for child in _children(one)]


def _value(path: Path, loader: Any, node: yaml.ScalarNode, key: str) -> None:
    where = f"{path}, line {node.start_mark.line + 1}: {key and f'{key}: '}{node.value[:40]!r}"
    try:
        value = loader.construct_object(node) if node.tag not in MARKERS else None
    except (ValueError, OverflowError, ArithmeticError) as error:
        raise UserError(f"{where} is no value that there can be ({error}).") from error
    if isinstance(value, int) and abs(value) > MAX_INTEGER:
        raise UserError(f"{where} is a number beyond 64 bits.")


MARKERS = ("tag:yaml.org,2002:merge", "tag:yaml.org,2002:value")  # << and =, which are not values


class Setting(NamedTuple):
    """A value and its place: ``<file>, line <n>``."""

    value: Any
    place: str


class _Loader(yaml.SafeLoader):
    """A loader that reads 1e-6 as a number: YAML 1.1 takes it for a text, because it has no dot."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+\Z"), list("-+0123456789")
)


def read_settings(path: Path, known: Collection[str]) -> dict[str, Setting]:
    """The settings in a YAML file (``key: value``) by key (``-`` counts as ``_``), without those that are null.

    Raises `UserError`, naming file and line, if the file is not a mapping, has a key twice, or has a key that is not
    ``known``; the message then suggests the nearest known key.
    """
    document = read_yaml(path, "a file of settings", _Loader)
    node, values = document.node, document.value
    if values is None:
        return {}
    if not isinstance(values, dict) or not isinstance(node, yaml.MappingNode):
        raise UserError(f"{path} holds no settings (key: value), but a {type(values).__name__}.")
    found: dict[str, Setting] = {}
    for key_node, _ in node.value:
        place = f"{path}, line {key_node.start_mark.line + 1}"
        key = str(key_node.value).replace("-", "_")
        if key not in known:
            nearest = difflib.get_close_matches(key, known, 1, cutoff=0.0)
            raise UserError(f"{place}: unknown setting {key!r}; did you mean {nearest[0]!r}?")
        if key in found:
            raise UserError(f"{place}: the file sets {key} twice.")
        found[key] = Setting(values[key_node.value], place)
    return {key: setting for key, setting in found.items() if setting.value is not None}
