"""From rows to clips: each gets its audio file, label or captions, and split or fold, or a reason to be left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from m2dprep.artifacts.errors import Failure, UserError
from m2dprep.artifacts.layout import leads_out
from m2dprep.evaluation.preparation.download import AS_NAMED, Download
from m2dprep.evaluation.preparation.rows import rows_of
from m2dprep.evaluation.preparation.rule import Fields, Rule, Source
from m2dprep.evaluation.preparation.splits import Splits, UnknownSplitError, missing_list

MISSING, MALFORMED, OUTSIDE, REPEATED = "missing", "malformed", "outside", "repeated"
NO_LABEL, NO_CAPTION, NO_FOLD, UNKNOWN_SPLIT = "no_label", "no_caption", "no_fold", "unknown_split"


@dataclass(frozen=True)
class Clip:
    """A clip of the task; ``split`` is empty if it takes no part."""

    file_name: str
    label: str = ""
    split: str = ""
    fold: str = ""
    group: str = ""
    captions: tuple[str, ...] = ()


class LeftOutRow(NamedTuple):
    """A row that became no clip: where it stands, and why it is left out; the file's name is empty if it names none."""

    where: str
    failure: Failure


@dataclass
class Collected:
    """Everything that the sources gave, in their order."""

    clips: dict[str, Clip] = field(default_factory=dict)
    left_out: list[LeftOutRow] = field(default_factory=list)
    how_found: Counter[str] = field(default_factory=Counter)
    absent: list[str] = field(default_factory=list)

    def add(self, clip: Clip, where: str) -> None:
        """Add a clip; of one that is there already, the captions."""
        before = self.clips.setdefault(clip.file_name, clip)
        if before is clip:
            return
        if clip.captions and before.split == clip.split:
            self.clips[clip.file_name] = Clip(
                clip.file_name, split=clip.split, captions=(*before.captions, *clip.captions)
            )
            return
        other = "" if before == clip else f" as {_facts(before)}, and here as {_facts(clip)}"
        self.leave_out(clip.file_name, where, REPEATED, f"an earlier row has this file{other}")

    def leave_out(self, file_name: str, where: str, reason: str, message: str) -> None:
        """Note a row that becomes no clip."""
        self.left_out.append(LeftOutRow(where, Failure(file_name, reason, message)))


class RowError(Exception):
    """A row that is left out."""

    def __init__(self, reason: str, message: str, file_name: str = "") -> None:
        super().__init__(message)
        self.reason, self.file_name = reason, file_name


def collect(rule: Rule, download: Download, title: str) -> Collected:
    """All clips of a download. Raises `UserError` if a table or list is missing or cannot be read."""
    found = Collected()
    read: list[Source] = []
    for source in rule.sources:
        if not download.has(source):
            if not source.optional:
                raise UserError(missing_list(download, rule.fetched, source.looked_for, title))
            found.absent.append(source.looked_for)
            continue
        read.append(source)
        _collect(source, rule, download, title, found)
    if not read:
        raise UserError(missing_list(download, rule.fetched, rule.sources[-1].places[0], title))
    return found


def _collect(source: Source, rule: Rule, download: Download, title: str, found: Collected) -> None:
    splits = None if source.split is None else Splits(source.split, download, rule, title)
    keys = None if source.find is None else download.keys(source.find.names, source.find.key)
    looked_at = False
    for where, row, name in rows_of(source, download):
        if row is None:
            found.leave_out("", where, MALFORMED, "the line is not of the form that the task's pattern describes")
            continue
        try:
            if not looked_at:  # a column that is not there is a fault of the table, not of all its rows
                looked_at = all(template(row) is not None for template in source.templates())
            how = AS_NAMED
            if not name:
                name, how = _audio_file(source, row, download, keys)
            found.how_found[how] += 1
            found.add(_clip(source, row, name, splits), where)
        except RowError as error:
            found.leave_out(error.file_name or name, where, error.reason, str(error))
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
    if source.names is not None and splits is not None:
        for listed, where in splits.unseen():
            found.leave_out(listed, where, MISSING, "listed, and not in the download")


def _clip(source: Source, row: Fields, name: str, splits: Splits | None) -> Clip:
    try:
        split = "" if splits is None else splits(row)
    except UnknownSplitError as error:
        raise RowError(UNKNOWN_SPLIT, str(error), name) from error
    fold = "" if source.fold is None else source.fold(row)
    if source.fold is not None and not fold:
        raise RowError(NO_FOLD, "the row has no fold", name)
    if source.captions:
        captions = tuple(text for one in source.captions if (text := " ".join(one(row).split())))
        if not captions:
            raise RowError(NO_CAPTION, "the row has no caption", name)
        return Clip(name, split=split, fold=fold, captions=captions)
    assert source.label is not None
    label = " ".join(source.label(row).split())
    if not label:
        raise RowError(NO_LABEL, "the row has no label", name)
    return Clip(name, label, split, fold, "" if source.group is None else source.group(row))


def _audio_file(source: Source, row: Fields, download: Download, keys: dict[str, str] | None) -> tuple[str, str]:
    """The audio file of a row, and how it was found."""
    if keys is not None:
        assert source.find is not None
        key = source.find.key(row)
        if key not in keys:
            raise RowError(MISSING, "no such file in the download", key)
        return keys[key], AS_NAMED
    names = list(_names(source, row))
    for name in names:
        if leads_out(name):
            raise RowError(OUTSIDE, "the path leads out of the download", name)
    for name in names:
        if (found := download.audio(name)) is not None:
            return found
    raise RowError(MISSING, "no such file in the download", names[0])


def _names(source: Source, row: Fields) -> Iterator[str]:
    """The names to look for: as the templates give them, then with other characters."""
    plain = [template(row).removeprefix("./") for template in source.file]
    yield from plain
    for name in plain:
        other = name
        for old, new in source.replace.items():
            other = other.replace(old, new)
        if other != name:
            yield other


def _facts(clip: Clip) -> str:
    return ", ".join(filter(None, (clip.label, clip.split, clip.fold and f"fold {clip.fold}"))) or "the same"
