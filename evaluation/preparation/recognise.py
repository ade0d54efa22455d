"""Which data sets lie below a folder as they were downloaded, judged by their tables, lists and names of files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.layout import require_folder
from m2dprep.evaluation.preparation.clips import collect
from m2dprep.evaluation.preparation.download import Download
from m2dprep.evaluation.preparation.rule import Rule, read_rule
from m2dprep.evaluation.task import Task, known_tasks, read_task


class Likeness(IntEnum):
    """How sure it is that a folder is the data set of a task: by names of files alone, or by tables or lists too."""

    NONE, NAMES, TABLES = range(3)


class Recognised(NamedTuple):
    """A task whose data set is there: its folder, or None and why it cannot be told which folder that is."""

    task: str
    folder: Path | None
    problem: str = ""


def recognised(root: Path, names: Sequence[str], lists: Path | None = None) -> list[Recognised]:
    """The tasks ``names`` that the package knows and whose data set is a sub-folder of ``root``."""
    tasks = {name: read_task(known_tasks()[name]) for name in names}
    found: dict[str, dict[Path, Likeness]] = {name: {} for name in names}
    for folder in sorted(path for path in require_folder(root, "the folder of data sets").iterdir() if path.is_dir()):
        download = Download.scan(folder, lists)
        places = [download]
        if len(inner := download.folders()) == 1:
            places += inner
        for name, task in tasks.items():
            if likeness := max(_likeness(place, task) for place in places):
                found[name][folder] = likeness
    return [_decided(name, tasks, found) for name in names if found[name]]


def _decided(name: str, tasks: Mapping[str, Task], found: Mapping[str, Mapping[Path, Likeness]]) -> Recognised:
    """The only folder that is most like the task's data set."""
    own = found[name]
    title, best = tasks[name].title or name, max(own.values())
    folders = [folder for folder, likeness in own.items() if likeness == best]
    way = f"prepare the right one by name: m2dprep evaluate prepare {name} FOLDER -o DIR."
    if len(folders) > 1:
        several = " and ".join(folder.name for folder in folders)
        return Recognised(name, None, f"{several} both look like {title}; {way}")
    others = [other for other in found if other != name and found[other].get(folders[0]) == Likeness.NAMES]
    if best == Likeness.NAMES and others:
        and_others = " and ".join(tasks[other].title or other for other in others)
        return Recognised(
            name, None, f"by its names of files, {folders[0].name} looks like {title}, and like {and_others} too; {way}"
        )
    return Recognised(name, folders[0])


def _likeness(download: Download, task: Task) -> Likeness:
    """Names of files alone tell only by signs, or if they have as many labels as the task has classes."""
    rule = read_rule(task.metadata)
    suits = download.suits(rule)
    if suits is None:
        return _by_fetched_lists(download, rule, task)
    if not suits:
        return Likeness.NONE
    lacking = [one for one in _lists(rule) if download.table((one,)) is None]
    if any(one not in rule.fetched for one in lacking):
        return Likeness.NONE
    if lacking:
        return Likeness.NAMES if _labels(download, rule) == task.classes else Likeness.NONE
    try:
        found = collect(rule, download, task.name).clips.values()
    except UserError:  # its tables have the right names
        by_names = any(source.names is not None for source in rule.sources)
        return Likeness.NONE if by_names else Likeness.TABLES
    return Likeness.TABLES if any(clip.split or clip.fold for clip in found) else Likeness.NONE


def _by_fetched_lists(download: Download, rule: Rule, task: Task) -> Likeness:
    """A data set whose lists are all to be fetched: it has files that they name or, as long as they are not there, the
    signs of the task."""
    patterns = [source.find.names for source in rule.sources if source.find is not None]
    if patterns and not any(next(download.matching(names), None) for names in patterns):
        return Likeness.NONE
    if any(download.has(source) for source in rule.sources):
        try:
            return Likeness.TABLES if collect(rule, download, task.name).clips else Likeness.NONE
        except UserError:
            pass  # a list is damaged, or others are lacking: the preparation says which
    files = (*download.files, *download.other)
    signs = [*rule.signs, *patterns]
    there = bool(signs) and all(any(sign.fullmatch(name) for name in files) for sign in rule.signs)
    return Likeness.NAMES if there else Likeness.NONE


def _lists(rule: Rule) -> list[str]:
    splits = [source.split for source in rule.sources if source.split is not None]
    return [name for split in splits for name in (*split.lists.values(), *([split.table] if split.table else []))]


def _labels(download: Download, rule: Rule) -> int:
    """How many labels the names of the files have."""
    found = {
        source.label({**groups, "path": name, "stem": ""})
        for source in rule.sources
        if source.names is not None and source.label is not None
        for name, groups in download.matching(source.names)
    }
    return len(found)
