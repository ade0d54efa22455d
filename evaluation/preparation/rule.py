"""The rule by which a task's table of clips is made from the data set as it is downloaded: ``metadata`` in its YAML.

Rows come from one of four kinds of places, below the download or, if the user fetches them, in the folder of lists:

```yaml
metadata:
  table: meta/esc50.csv              # a CSV; its columns are the fields of a row. columns: [a, b] if it has no header
  lines: iden_split.txt              # a text file; the named groups of `pattern` are the fields
  items: nsynth-test/examples.json   # objects by key, or a list of them; fields are theirs, and key
  names: '(?P<word>[a-z]+)/[^/]+'    # audio files whose path without suffix matches; groups, path and stem are fields
  file: audio/{filename}             # the path of a row's audio file from its fields; several are tried in turn
  find: {names: …, key: "{id}"}      # instead of file: the audio file whose groups give the row's key
  label: "{category}"                # several labels per clip are joined by commas
  captions: ["{caption_1}", …]       # for retrieval, instead of a label
  fold: "{fold}"
  group: "{src_file}"                # the recording that a clip is from
  split: "{split}"                   # or a table of values, lists of names, or a table of names (`Split`)
  fields: {part: train}              # further fields with these values
  replace: {":": _}                  # also tried in names of files
  optional: true                     # rows of this place may be missing as a whole
  missing: allowed                   # a row without a file is none of the failures
  fetched: {name: address}           # lists that are no part of the download, and where they are
  signs: ['(?:.*/)?etc/PROMPTS', …]  # names of files (whole paths) that tell the download without these lists
  label_names: {table: …, label: …, name: …}
  sources: [{table: …, split: …}, …] # several places; what stands beside holds for all of them
```
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.settings import typed
from m2dprep.evaluation.prepared import SPLIT_NAMES

FIELD = re.compile(r"\{(\w+)\}")
PLACES = ("table", "lines", "items", "names")
Fields = Mapping[str, str]


@dataclass(frozen=True)
class Template:
    """Text with fields of a row in braces."""

    text: str

    def __call__(self, row: Fields) -> str:
        """The text for a row. Raises `UserError` if the row lacks a field."""
        return FIELD.sub(lambda match: self._value(row, match[1]), self.text).strip()

    def _value(self, row: Fields, name: str) -> str:
        if name not in row:
            raise UserError(f"{self.text!r} needs the field {name!r}; there are {', '.join(row)}.")
        return row[name]


@dataclass(frozen=True)
class Split:
    """How a row gets its split: by a value (``of``) as it is, through ``values``, by lists of names, or by a table.

    Names in lists and tables are compared with ``of`` without audio suffixes. ``otherwise`` is for rows that nothing
    names; without it they take no part.
    """

    of: Template
    values: Mapping[str, str] | None = None
    lists: Mapping[str, str] = field(default_factory=dict)
    table: str = ""
    key: str = ""
    value: str = ""
    otherwise: str = ""


@dataclass(frozen=True)
class Find:
    """The audio file whose path without suffix matches ``names``, and whose groups give the ``key`` of the row."""

    names: re.Pattern[str]
    key: Template


@dataclass(frozen=True)
class LabelNames:
    """The table with words for labels that are none."""

    table: tuple[str, ...]
    label: str
    name: str


@dataclass(frozen=True)
class Source:
    """A place that rows come from, and how a row becomes a clip; see the module."""

    kind: str
    places: tuple[str, ...] = ()
    names: re.Pattern[str] | None = None
    pattern: re.Pattern[str] | None = None
    columns: tuple[str, ...] = ()
    file: tuple[Template, ...] = ()
    find: Find | None = None
    label: Template | None = None
    captions: tuple[Template, ...] = ()
    fold: Template | None = None
    group: Template | None = None
    split: Split | None = None
    fields: Mapping[str, str] = field(default_factory=dict)
    replace: Mapping[str, str] = field(default_factory=dict)
    optional: bool = False

    def templates(self) -> Iterator[Template]:
        """Everything that is made from the fields of a row."""
        yield from (*self.file, *self.captions)
        yield from (one for one in (self.label, self.fold, self.group) if one is not None)
        if self.find is not None:
            yield self.find.key
        if self.split is not None:
            yield self.split.of

    @property
    def looked_for(self) -> str:
        """What the download must have for this source, in words."""
        if self.names is not None:
            return f"audio files named like {self.names.pattern}"
        return " or ".join(self.places) + (
            f" and audio files named like {self.find.names.pattern}" if self.find else ""
        )


@dataclass(frozen=True)
class Rule:
    """All sources, and what holds for the task as a whole."""

    sources: tuple[Source, ...]
    label_names: LabelNames | None = None
    missing_allowed: bool = False
    fetched: Mapping[str, str] = field(default_factory=dict)
    signs: tuple[re.Pattern[str], ...] = ()


FOR_ALL = ("missing", "fetched", "label_names", "signs", "sources")
OF_SOURCE = (*PLACES, *(one.name for one in fields(Source) if one.name not in ("kind", "places", "names")))


def read_rule(metadata: Mapping[str, Any]) -> Rule:
    """The rule that ``metadata`` of a task describes. Raises `UserError`, naming the setting, if it is none."""
    if not metadata:
        raise UserError("the task has no metadata rule, so that its table of clips cannot be made.")
    _require_known(metadata, (*FOR_ALL, *OF_SOURCE), "metadata")
    common = {key: value for key, value in metadata.items() if key not in FOR_ALL}
    given = metadata.get("sources", [{}])
    if not isinstance(given, list) or not given:
        raise UserError("metadata.sources must be a list of tables, each with table, lines, items or names.")
    sources = []
    for number, one in enumerate(given, 1):
        where = f"metadata.sources, entry {number}" if "sources" in metadata else "metadata"
        _require_known(_mapping(one, where), OF_SOURCE, where)
        sources.append(_source({**common, **one}, where))
    missing = metadata.get("missing", "failures")
    if missing not in ("allowed", "failures"):
        raise UserError(f"metadata.missing is {missing!r}; it must be allowed or failures.")
    names = metadata.get("label_names")
    return Rule(
        tuple(sources),
        None if names is None else _label_names(names),
        missing == "allowed",
        _texts(metadata.get("fetched", {}), "metadata.fetched"),
        tuple(
            _regex(sign, "metadata.signs")
            for sign in typed(tuple[str, ...], metadata.get("signs", []), "metadata.signs")
        ),
    )


def _source(given: Mapping[str, Any], where: str) -> Source:
    kinds = [kind for kind in PLACES if kind in given]
    if len(kinds) != 1:
        raise UserError(f"{where} must have one of {', '.join(PLACES)}, and has {', '.join(kinds) or 'none'}.")
    kind = kinds[0]
    if (kind == "lines") != ("pattern" in given):
        raise UserError(f"{where}: lines and pattern go together.")
    if ("file" in given) + ("find" in given) != (kind != "names"):
        raise UserError(f"{where} must have file or find{', but not beside names' if kind == 'names' else ''}.")
    if ("label" in given) + ("captions" in given) != 1:
        raise UserError(f"{where} must have label or captions.")
    return Source(
        kind=kind,
        places=() if kind == "names" else _places(given[kind], f"{where}.{kind}"),
        names=_regex(given["names"], f"{where}.names") if kind == "names" else None,
        pattern=_regex(given["pattern"], f"{where}.pattern") if "pattern" in given else None,
        columns=typed(tuple[str, ...], given.get("columns", []), f"{where}.columns"),
        file=_templates(given["file"], f"{where}.file") if "file" in given else (),
        find=_find(given["find"], f"{where}.find") if "find" in given else None,
        label=_template(given["label"], f"{where}.label") if "label" in given else None,
        captions=_templates(given.get("captions", []), f"{where}.captions"),
        fold=_template(given["fold"], f"{where}.fold") if "fold" in given else None,
        group=_template(given["group"], f"{where}.group") if "group" in given else None,
        split=_split(given["split"], f"{where}.split") if "split" in given else None,
        fields=_texts(given.get("fields", {}), f"{where}.fields"),
        replace=_texts(given.get("replace", {}), f"{where}.replace"),
        optional=typed(bool, given.get("optional", False), f"{where}.optional"),
    )


def _split(given: Any, where: str) -> Split:
    if not isinstance(given, Mapping):
        return Split(_template(given, where))
    _require_known(given, ("of", "is", "lists", "table", "key", "value", "otherwise"), where)
    if "of" not in given or sum(name in given for name in ("is", "lists", "table")) != 1:
        raise UserError(f"{where} must have of, and one of is, lists and table.")
    if "table" in given and not {"key", "value"} <= set(given):
        raise UserError(f"{where}.table needs key and value, the columns of names and of splits.")
    values = {name: _texts(given[name], f"{where}.{name}") for name in ("is", "lists") if name in given}
    otherwise = typed(str, given.get("otherwise", ""), f"{where}.otherwise")
    splits = [*values.get("is", {}).values(), *values.get("lists", {}), *([otherwise] if otherwise else [])]
    if unknown := [split for split in splits if split not in SPLIT_NAMES]:
        raise UserError(f"{where} has the split {unknown[0]!r}; it must be one of {', '.join(SPLIT_NAMES)}.")
    return Split(
        _template(given["of"], f"{where}.of"), values.get("is"), values.get("lists", {}), otherwise=otherwise,
        **{name: typed(str, given.get(name, ""), f"{where}.{name}") for name in ("table", "key", "value")},
    )  # fmt: skip


def _find(given: Any, where: str) -> Find:
    _require_known(_mapping(given, where), ("names", "key"), where)
    if set(given) != {"names", "key"}:
        raise UserError(f"{where} must have names and key.")
    names, key = _regex(given["names"], f"{where}.names"), _template(given["key"], f"{where}.key")
    if unknown := [name for name in FIELD.findall(key.text) if name not in names.groupindex]:
        raise UserError(f"{where}.key has {unknown[0]!r}, which is no named group of {where}.names.")
    return Find(names, key)


def _label_names(given: Any) -> LabelNames:
    where = "metadata.label_names"
    _require_known(_mapping(given, where), ("table", "label", "name"), where)
    if set(given) != {"table", "label", "name"}:
        raise UserError(f"{where} must have table, label and name.")
    return LabelNames(
        _places(given["table"], f"{where}.table"),
        typed(str, given["label"], f"{where}.label"),
        typed(str, given["name"], f"{where}.name"),
    )


def _require_known(given: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 1, cutoff=0.0)
            raise UserError(f"{where} has the unknown setting {key!r}; did you mean {near[0]!r}?")


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise UserError(f"{where} is {value!r}, not a table of settings.")
    return value


def _texts(value: Any, where: str) -> dict[str, str]:
    return {str(key): typed(str, item, f"{where}.{key}") for key, item in _mapping(value, where).items()}


def _places(value: Any, where: str) -> tuple[str, ...]:
    places: tuple[str, ...] = typed(tuple[str, ...], [value] if isinstance(value, str) else value, where)
    if not places:
        raise UserError(f"{where} names no file.")
    return places


def _template(value: Any, where: str) -> Template:
    return Template(typed(str, value, where))


def _templates(value: Any, where: str) -> tuple[Template, ...]:
    texts = typed(tuple[str, ...], [value] if isinstance(value, str) else value, where)
    return tuple(map(Template, texts))


def _regex(value: Any, where: str) -> re.Pattern[str]:
    text = typed(str, value, where)
    try:
        return re.compile(text)
    except re.error as error:
        raise UserError(f"{where} {text!r} is no regular expression: {error}.") from error
