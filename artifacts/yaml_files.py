"""Reads YAML files that people write.

Every fault of such a file is an error of one line that names the file and the line in it. The library's own reader ends
in a traceback on deep nesting, impossible dates and numbers of thousands of digits, and a few hundred bytes of aliases
of aliases can ask it for billions of entries.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.layout import require_file

MAX_DEPTH = 64
MAX_ENTRIES = 100_000  # each use of an alias counts all entries that it stands for
MAX_INTEGER = 2**64 - 1
MARKERS = ("tag:yaml.org,2002:merge", "tag:yaml.org,2002:value")  # << and =, which are not values


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


class Setting(NamedTuple):
    """A value and its place: ``<file>, line <n>``."""

    value: Any
    place: str


class _Loader(yaml.SafeLoader):
    """A loader that reads 1e-6 as a number: YAML 1.1 takes it for a text, because it has no dot."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+\Z"), list("-+0123456789")
)


def read_settings(
    path: Path, known: Collection[str], purpose: str = "a file of settings", loader_class: type[Any] = _Loader
) -> dict[str, Setting]:
    """The settings in a YAML file (``key: value``) by key (``-`` counts as ``_``), without those that are null.

    Raises `UserError`, naming file and line, if the file is not a mapping, has a key twice, or has a key that is not
    ``known``; the message then suggests the nearest known key.
    """
    document = read_yaml(path, purpose, loader_class)
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
