"""The split of a row: a value, a value that a table translates, or lists that name the clips of each split."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.tables import read_csv_columns
from m2dprep.artifacts.text_files import read_lines
from m2dprep.evaluation.preparation.download import Download, bare
from m2dprep.evaluation.preparation.rule import Fields, Rule, Split
from m2dprep.evaluation.prepared import NO_SPLIT, SPLIT_NAMES


class UnknownSplitError(UserError):
    """A row whose split is none of those that there are."""


class Splits:
    """Tells the split of rows, and afterwards which names of the lists no row had."""

    def __init__(self, rule: Split, download: Download, task_rule: Rule, title: str) -> None:
        self._rule = rule
        self._listed: dict[str, str] = {}
        self._where: dict[str, str] = {}
        self._seen: set[str] = set()
        for split, name in rule.lists.items():
            self._read_list(required(download, task_rule, name, title), SPLIT_NAMES[split])
        if rule.table:
            self._read_table(required(download, task_rule, rule.table, title))

    def __call__(self, row: Fields) -> str:
        """train, valid, test or, if the row takes no part, an empty text. Raises `UnknownSplitError`."""
        name = self._rule.of(row)
        if self._rule.values is not None:
            return self._ours(self._rule.values.get(name, self._rule.otherwise or name), name)
        if not self._rule.lists and not self._rule.table:
            return self._ours(name, name)
        key = bare(name)
        self._seen.add(key)
        return self._listed.get(key, self._rule.otherwise)

    def unseen(self) -> list[tuple[str, str]]:
        """(name, where it is listed) of all names that no row had."""
        return [(name, where) for name, where in self._where.items() if name not in self._seen]

    def _ours(self, value: str, given: str) -> str:
        text = value.strip().lower()
        if text in NO_SPLIT:
            return ""
        if text not in SPLIT_NAMES:
            raise UnknownSplitError(f"the split {given!r} is none of {', '.join(SPLIT_NAMES)}")
        return SPLIT_NAMES[text]

    def _read_list(self, path: Path, split: str) -> None:
        for number, line in enumerate(read_lines(path, "a list of the clips of a split").to_pylist(), 1):
            if line.strip():
                self._add(line.strip(), split, path, f"line {number}")

    def _read_table(self, path: Path) -> None:
        values = read_csv_columns(path, [self._rule.key, self._rule.value], "the table of splits")
        for number, (name, split) in enumerate(zip(values[self._rule.key], values[self._rule.value], strict=True), 2):
            try:
                ours = self._ours(split, split)
            except UnknownSplitError as error:
                raise UserError(f"{path}, row {number}: {error}.") from error
            self._add(name.strip(), ours, path, f"row {number}")

    def _add(self, name: str, split: str, path: Path, place: str) -> None:
        key = bare(name).removeprefix("./")
        if self._listed.setdefault(key, split) != split:
            raise UserError(
                f"{path}, {place}: {name} is in the split {split or 'none'}, and by {self._where[key]} in "
                f"{self._listed[key] or 'none'}."
            )
        self._where.setdefault(key, f"{path.name}, {place}")


def required(download: Download, rule: Rule, name: str, title: str) -> Path:
    """The list called ``name``. Raises `UserError`, saying where to fetch it, if there is none."""
    if (path := download.table((name,))) is not None:
        return path
    raise UserError(missing_list(download, rule.fetched, name, title))


def missing_list(download: Download, fetched: Mapping[str, str], name: str, title: str) -> str:
    """Where to get a list that is not there, in words."""
    looked = f"{download.root}" + (f" or {download.lists}" if download.lists else "")
    if name in fetched:
        return (
            f"{title} needs {name}, which is no part of the download and not in {looked}: fetch it from "
            f"{fetched[name]}, and name the folder that it is in with --lists."
        )
    return f"{title} needs {name}, which is not in {looked}; is the download whole?"
