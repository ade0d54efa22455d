"""The content of a recipe file: strict YAML whose values know their line, ``${variables}``, and the kinds of stages.

The command line describes its own commands as `StageKind` and `Option`.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.yaml_files import read_yaml, scalar_value

VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")
MERGE_TAG = "tag:yaml.org,2002:merge"
MAX_DEPTH = 16


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

    def mapping(self, what: str) -> dict[str, Entry]:
        """The entries of a mapping, none for null. Raises `UserError` for any other value."""
        if self.value is None:
            return {}
        if not isinstance(self.value, dict):
            raise self.error(f"{what} must be keys with values, not {self.kind}.")
        return self.value

    def text(self, what: str) -> str:
        """The value as a text. Raises `UserError` if it is not one."""
        if not isinstance(self.value, str):
            raise self.error(f"{what} must be a text, not {self.kind}.")
        return self.value

    @property
    def kind(self) -> str:
        """The type of the value, in words for messages."""
        if isinstance(self.value, dict):
            return "keys with values"
        if isinstance(self.value, list):
            return "a list"
        if self.value is None or isinstance(self.value, bool):
            return {None: "nothing", True: "true", False: "false"}[self.value]
        return self.written or repr(self.value)


def read_recipe_file(path: Path) -> Entry:
    """Read the YAML file ``path``. Raises `UserError`, naming the line, if it is not valid YAML or sets a key twice."""
    node = read_yaml(path, "a recipe; `m2dprep init` writes one").node
    return Entry(None, path, 1) if node is None else _entry(node, path, node.start_mark.line + 1)


def _entry(node: yaml.Node, file: Path, line: int, depth: int = 0) -> Entry:
    if depth > MAX_DEPTH:
        raise UserError(f"{file}, line {line}: nested more than {MAX_DEPTH} deep.")
    if isinstance(node, yaml.MappingNode):
        return Entry(_mapping(node, file, depth), file, line)
    if isinstance(node, yaml.SequenceNode):
        return Entry([_entry(item, file, item.start_mark.line + 1, depth + 1) for item in node.value], file, line)
    assert isinstance(node, yaml.ScalarNode)
    value = scalar_value(node)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return Entry(value, file, line, str(node.value) if is_number else None)


def _mapping(node: yaml.MappingNode, file: Path, depth: int) -> dict[str, Entry]:
    """A mapping's entries, each with the line of its key. The mapping's own keys override those merged with ``<<``."""
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


Values = dict[str, list[str]]
"""A stage's settings: texts by key; a flag that is on is ``["true"]``, one that is off is ``["false"]``."""


@dataclass(frozen=True)
class Option:
    """An option or argument of a command.

    ``flag`` is None for an argument. ``off`` is the form that switches a flag off, if there is one. ``of_cluster``
    options say where workers come from. ``default`` is the text of a fixed default, and ``worked_out`` describes one
    that depends on other things. ``convert`` raises `ValueError` with a message for a text that is not valid.
    """

    key: str
    flag: str | None
    convert: Callable[[str], object]
    aliases: tuple[str, ...] = ()
    required: bool = False
    multiple: bool = False
    is_flag: bool = False
    off: str | None = None
    is_path: bool = False
    of_cluster: bool = False
    help: str = ""
    default: str | None = None
    worked_out: str | None = None
    choices: tuple[str, ...] = ()

    def texts(self, entry: Entry) -> list[str]:
        """The values of ``entry`` as texts. Raises `UserError`, naming file and line, if one has the wrong type."""
        if isinstance(entry.value, dict):
            raise entry.error(f"{self.key} must be {self._wanted}, not keys with values.")
        if isinstance(entry.value, list) and not self.multiple:
            raise entry.error(f"{self.key} takes one value, not a list.")
        items = entry.value if isinstance(entry.value, list) else [entry]
        return [self._text(item) for item in items]

    def _text(self, entry: Entry) -> str:
        value = entry.value
        if self.is_flag:
            if not isinstance(value, bool):
                raise entry.error(f"{self.key} must be true or false, not {entry.kind}.")
            return "true" if value else "false"
        if isinstance(value, bool):
            raise entry.error(f"{self.key} must be {self._wanted}, not {entry.kind}; a word goes in quotes.")
        if value is None or isinstance(value, list | dict):
            raise entry.error(f"{self.key} must be {self._wanted}, not {entry.kind}.")
        text = entry.written or str(value)
        try:
            self.convert(text)
        except ValueError as error:
            raise entry.error(f"{self.key}: {error}") from error
        return text

    @property
    def _wanted(self) -> str:
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        return "true or false" if self.is_flag else "a path" if self.is_path else "a value"


@dataclass(frozen=True)
class StageKind:
    """A command that a recipe may run.

    ``words`` follow ``m2dprep`` on the command line. ``not_here`` are the options that recipes do not take, with the
    reason.
    """

    name: str
    words: tuple[str, ...]
    help: str
    options: tuple[Option, ...]
    not_here: dict[str, str] = field(default_factory=dict)

    def option(self, key: str) -> Option | None:
        """The option with the name or alias ``key``; dashes count as underscores."""
        key = normal(key)
        return next((option for option in self.options if key == option.key or key in option.aliases), None)

    @property
    def replaces(self) -> bool:
        """Whether the command can start over with ``--overwrite``."""
        return "overwrite" in self.not_here

    def keys(self) -> list[str]:
        return [option.key for option in self.options]

    def values(self, entries: dict[str, Entry], where: Entry) -> Values:
        """The settings of a stage. Null means the command's own default.

        Raises `UserError` for an unknown key (with the nearest known one), a value of the wrong type, and missing keys.
        """
        values: Values = {}
        for key, entry in entries.items():
            option = self.option(key)
            if option is None:
                raise entry.error(self._unknown(key))
            if option.key in values:
                raise entry.error(f"{option.key} is set twice: {key} means the same.")
            if entry.value is not None:
                values[option.key] = option.texts(entry)
        missing = [option.key for option in self.options if option.required and not values.get(option.key)]
        if missing:
            raise where.error(f"{self.name} needs {', '.join(missing)}.")
        return values

    def _unknown(self, key: str) -> str:
        if (reason := self.not_here.get(normal(key))) is not None:
            return f"{key} is not for recipes: {reason}."
        return f"{self.name} has no {key!r}{did_you_mean(normal(key), self.keys())}"

    def arguments(self, values: Values) -> list[str]:
        """The command line for ``values`` without the program's name; options come first."""
        line = list(self.words)
        for option in self.options:
            for text in values.get(option.key, ()) if option.flag else ():
                if not option.is_flag:
                    line.append(f"{option.flag}={text}")
                elif (flag := option.flag if text == "true" else option.off) is not None:
                    line.append(str(flag))
        places = [text for option in self.options if option.flag is None for text in values.get(option.key, ())]
        return [*line, "--", *places] if any(text.startswith("-") for text in places) else [*line, *places]


def normal(key: str) -> str:
    return key.replace("-", "_")


def did_you_mean(word: str, known: Collection[str] | Iterable[str]) -> str:
    """The text ``; did you mean 'x'?`` with the nearest of the ``known`` words."""
    nearest = difflib.get_close_matches(word, list(known), 1, cutoff=0.0)
    return f"; did you mean {nearest[0]!r}?" if nearest else "."
