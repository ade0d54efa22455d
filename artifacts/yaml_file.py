"""YAML files that people write: whatever is wrong with one is a line that names the file and the line in it.

The library's reader ends in a traceback on deep nesting, impossible dates and numbers of thousands of digits, and a few
hundred bytes of aliases of aliases can ask it for billions of entries.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from artifacts.errors import UserError
from artifacts.layout import require_file

DEEPEST = 64
MOST_ENTRIES = 100_000  # aliases counted as often as they stand for something
LARGEST_INTEGER = 2**64 - 1


@dataclass(frozen=True)
class YamlDocument:
    """What a YAML file holds: its ``node`` (with lines; None for an empty file), and its ``value``."""

    node: yaml.Node | None
    value: Any


def read_yaml(path: Path, purpose: str, loader_class: type[Any] = yaml.SafeLoader) -> YamlDocument:
    """The one document in ``path``; values are made by ``loader_class`` (`yaml.BaseLoader` leaves them texts).

    Raises `UserError`, naming the line, where it is missing, not UTF-8 or not YAML, nested too deeply, has too many
    entries, an alias within what it stands for, or a value that there cannot be, such as the 30th of February.
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
            for scalar in _scalars(node):
                _value(path, loader, scalar)
            return YamlDocument(node, loader.construct_document(node))
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}{line} is not YAML: {error.problem or error.context}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read as {purpose}: {error.strerror}.") from error


def scalar_value(node: yaml.ScalarNode) -> Any:
    """The value of a scalar of a document that was read."""
    return yaml.SafeLoader("").construct_object(node)


def _require_shallow(path: Path, text: str) -> None:
    """Before nodes are made, which is done by recursion."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > DEEPEST:
                line = f", line {event.start_mark.line + 1}" if event.start_mark else ""
                raise UserError(f"{path}{line}: nested more than {DEEPEST} deep.")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _require_few_entries(path: Path, node: yaml.Node) -> None:
    """Raise `UserError` where ``node``, with all that its aliases stand for, is too large or deep, or holds itself."""
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
        if entries > MOST_ENTRIES:
            raise UserError(f"{where} more than {MOST_ENTRIES:,} entries, what aliases stand for included.")
        if depth > DEEPEST + 1:
            raise UserError(f"{where} nested more than {DEEPEST} deep, what aliases stand for included.")
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


def _scalars(node: yaml.Node) -> Iterator[yaml.ScalarNode]:
    """Every scalar once."""
    seen: set[int] = set()
    waiting = [node]
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, yaml.ScalarNode):
            yield one
        waiting.extend(_children(one))


def _value(path: Path, loader: Any, node: yaml.ScalarNode) -> None:
    where = f"{path}, line {node.start_mark.line + 1}: {node.value[:40]!r}"
    try:
        value = loader.construct_object(node) if node.tag not in MARKERS else None
    except (ValueError, OverflowError, ArithmeticError) as error:
        raise UserError(f"{where} is no value that there can be ({error}).") from error
    if isinstance(value, int) and abs(value) > LARGEST_INTEGER:
        raise UserError(f"{where} is a number beyond 64 bits.")


MARKERS = ("tag:yaml.org,2002:merge", "tag:yaml.org,2002:value")  # << and =, which are no values
