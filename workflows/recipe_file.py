"""A recipe file as values that know their line: strict YAML, and ``${variables}`` in its texts."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from artifacts.errors import UserError
from artifacts.yaml_file import read_yaml, scalar_value

VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")
MERGE_TAG = "tag:yaml.org,2002:merge"
DEEPEST = 16


@dataclass(frozen=True)
class Entry:
    """A value and where it is written. ``value`` is a scalar, a list of entries, or a dictionary of them by key.

    ``written`` is a number as it stands there: YAML takes 12:00:00 for 43200.
    """

    value: Any
    file: Path
    line: int
    written: str | None = None

    def error(self, message: str) -> UserError:
        """A `UserError` that names file and line."""
        return UserError(f"{self.file}, line {self.line}: {message}")

    def mapping(self, what: str) -> dict[str, Entry]:
        """The entries of a mapping, none for null. Raises `UserError` where it is something else."""
        if self.value is None:
            return {}
        if not isinstance(self.value, dict):
            raise self.error(f"{what} must be keys with values, not {self.kind}.")
        return self.value

    def text(self, what: str) -> str:
        """A text. Raises `UserError` where it is something else."""
        if not isinstance(self.value, str):
            raise self.error(f"{what} must be a text, not {self.kind}.")
        return self.value

    @property
    def kind(self) -> str:
        """What the value is, in words for messages."""
        if isinstance(self.value, dict):
            return "keys with values"
        if isinstance(self.value, list):
            return "a list"
        if self.value is None or isinstance(self.value, bool):
            return {None: "nothing", True: "true", False: "false"}[self.value]
        return self.written or repr(self.value)


def read_recipe_file(path: Path) -> Entry:
    """The YAML file ``path``. Raises `UserError`, naming the line, where it is not sound YAML or sets a key twice."""
    node = read_yaml(path, "a recipe; `m2dprep init` writes one").node
    return Entry(None, path, 1) if node is None else _entry(node, path, node.start_mark.line + 1)


def _entry(node: yaml.Node, file: Path, line: int, depth: int = 0) -> Entry:
    if depth > DEEPEST:
        raise UserError(f"{file}, line {line}: nested more than {DEEPEST} deep.")
    if isinstance(node, yaml.MappingNode):
        return Entry(_mapping(node, file, depth), file, line)
    if isinstance(node, yaml.SequenceNode):
        return Entry([_entry(item, file, item.start_mark.line + 1, depth + 1) for item in node.value], file, line)
    assert isinstance(node, yaml.ScalarNode)
    value = scalar_value(node)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return Entry(value, file, line, str(node.value) if is_number else None)


def _mapping(node: yaml.MappingNode, file: Path, depth: int) -> dict[str, Entry]:
    """A mapping's entries, each at the line of its key; what ``<<`` merges in is overridden by its own keys."""
    merged: dict[str, Entry] = {}
    own: dict[str, Entry] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if key.tag == MERGE_TAG:
            merged |= _entry(value, file, line, depth + 1).mapping("what is merged with <<")
            continue
        if not isinstance(key, yaml.ScalarNode):
            raise UserError(f"{file}, line {line}: a key must be a text.")
        if key.value in own:
            raise UserError(f"{file}, line {line}: {key.value!r} is set twice, first in line {own[key.value].line}.")
        own[key.value] = _entry(value, file, line, depth + 1)
    return {**merged, **own}


def expand(entry: Entry, variables: Mapping[str, Callable[[], str]]) -> Entry:
    """``entry`` with ``${NAME}`` and ``${NAME:-otherwise}`` in its texts replaced, and a leading ``~``.

    A name is one of ``variables``, or of the environment. Raises `UserError` where it is neither.
    """

    def value_of(match: re.Match[str]) -> str:
        name, otherwise = match.groups()
        if name in variables:
            return variables[name]()
        found = os.environ.get(name) or otherwise
        if found is None:
            raise entry.error(f"${{{name}}} is not set: export {name}=…, or write ${{{name}:-otherwise}}.")
        return found

    if isinstance(entry.value, list):
        return Entry([expand(item, variables) for item in entry.value], entry.file, entry.line)
    if isinstance(entry.value, dict):
        return Entry({key: expand(item, variables) for key, item in entry.value.items()}, entry.file, entry.line)
    if not isinstance(entry.value, str):
        return entry
    text = VARIABLE.sub(value_of, entry.value)
    if text == "~" or text.startswith("~/"):
        text = str(Path(text).expanduser())
    return Entry(text, entry.file, entry.line)
