"""Files of settings: YAML, ``key: value``, each value with the line that it stands in."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from artifacts.errors import UserError
from artifacts.yaml_file import read_yaml


class Setting(NamedTuple):
    """A value, and where it is from: ``<file>, line <n>``."""

    value: Any
    place: str


class _Loader(yaml.SafeLoader):
    """YAML 1.1 takes 1e-6 for a text, as it has no dot."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+\Z"), list("-+0123456789")
)


def read_settings(path: Path, known: Collection[str]) -> dict[str, Setting]:
    """The settings in a YAML file by key (``-`` counts as ``_``), without those that are null.

    Raises `UserError`, naming file and line, where it is no mapping, or has a key that is not ``known``, naming the
    nearest that is, or twice.
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
