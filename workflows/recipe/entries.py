"""The text of a recipe: strict YAML whose values know their line, with ``${variables}``."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.yaml_files import read_yaml, scalar_value

VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")
MERGE_TAG = "tag:yaml.org,2002:merge"


@dataclass(frozen=True)
class Entry:
    """A value and its place in the file. ``value`` is a scalar, a list of entries, or a dictionary of entries.

    ``written`` is the text of a number as it stands in the file: YAML reads 12:00:00 as 43200.
    """

    value: Any
    file: Path
    line: int
    written: str | None = None

    def error(self, message: str) -> UserError:
        """A `UserError` that names the file and the line."""
        return UserError(f"{self.file}, line {self.line}: {message}")

    def mapping(self, what: str, known: Iterable[str] | None = None) -> dict[str, Entry]:
        """The entries of a mapping, none for null. Raises `UserError` for other values, and for keys not ``known``."""
        if not isinstance(self.value, dict | None):
            raise self.error(f"{what} must be keys with values, not {self.kind}.")
        entries: dict[str, Entry] = self.value or {}
        for key, entry in entries.items() if known is not None else ():
            if key not in (known := list(known or ())):
                raise entry.error(f"{what} has no {key!r}{did_you_mean(key, known)}")
        return entries

    def text(self, what: str) -> str:
        """The value as a text. Raises `UserError` if it is not one."""
        if not isinstance(self.value, str):
            raise self.error(f"{what} must be a text, not {self.kind}.")
        return self.value

    def items(self) -> list[Entry]:
        """The entries of a list; any other value is its only item, and null has none."""
        return self.value if isinstance(self.value, list) else [] if self.value is None else [self]

    @property
    def kind(self) -> str:
        """The type of the value, in words for messages."""
        if isinstance(self.value, dict | list):
            return "keys with values" if isinstance(self.value, dict) else "a list"
        if self.value is None or isinstance(self.value, bool):
            return {None: "nothing", True: "true", False: "false"}[self.value]
        return self.written or repr(self.value)


def read_recipe_file(path: Path) -> Entry:
    """Read the YAML file ``path``. Raises `UserError`, naming the line, if it is not valid YAML or sets a key twice."""
    node = read_yaml(path, "a recipe; `m2dprep init` writes one").node
    return Entry(None, path, 1) if node is None else _entry(node, path, node.start_mark.line + 1)


def _entry(node: yaml.Node, file: Path, line: int) -> Entry:
    if isinstance(node, yaml.MappingNode):
        return Entry(_mapping(node, file), file, line)
    if isinstance(node, yaml.SequenceNode):
        return Entry([_entry(item, file, item.start_mark.line + 1) for item in node.value], file, line)
    assert isinstance(node, yaml.ScalarNode)
    value = scalar_value(node)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return Entry(value, file, line, str(node.value) if is_number else None)


def _mapping(node: yaml.MappingNode, file: Path) -> dict[str, Entry]:
    """A mapping's entries, each with the line of its key. The mapping's own keys override those merged with ``<<``."""
    merged: dict[str, Entry] = {}
    own: dict[str, Entry] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if key.tag == MERGE_TAG:
            merged |= _entry(value, file, line).mapping("what is merged with <<")
            continue
        if not isinstance(key, yaml.ScalarNode):
            raise UserError(f"{file}, line {line}: a key must be a text.")
        if key.value in own:
            raise UserError(f"{file}, line {line}: {key.value!r} is set twice, first in line {own[key.value].line}.")
        own[key.value] = _entry(value, file, line)
    return {**merged, **own}


def expand(entry: Entry, variables: Mapping[str, Callable[[], str]]) -> Entry:
    """``entry`` with ``${NAME}``, ``${NAME:-otherwise}`` and a leading ``~`` in its texts replaced.

    A name is looked up in ``variables``, then in the environment. Raises `UserError` if it is in neither.
    """

    def value_of(match: re.Match[str]) -> str:
        name, otherwise = match.groups()
        if name in variables:
            return variables[name]()
        found = os.environ.get(name) or otherwise
        if found is None:
            raise entry.error(f"${{{name}}} is not set: export {name}=…, or write ${{{name}:-otherwise}}.")
        return found

    value = entry.value
    if isinstance(value, list):
        value = [expand(item, variables) for item in value]
    elif isinstance(value, dict):
        value = {key: expand(item, variables) for key, item in value.items()}
    elif isinstance(value, str):
        value = VARIABLE.sub(value_of, value)
        value = str(Path(value).expanduser()) if value == "~" or value.startswith("~/") else value
    return replace(entry, value=value)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The text ``; did you mean 'x'?`` with the nearest of the ``known`` words."""
    nearest = difflib.get_close_matches(word, list(known), 1, cutoff=0.0)
    return f"; did you mean {nearest[0]!r}?" if nearest else "."
