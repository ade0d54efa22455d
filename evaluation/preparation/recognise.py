"""Which data sets lie below a folder as they were downloaded, judged by their tables, lists and names of files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.layout import require_folder
from m2dprep.evaluation.preparation.clips import collect
from m2dprep.evaluation.preparation.download import Download
from m2dprep.evaluation.preparation.rule import Rule, read_rule
from m2dprep.evaluation.task import Task, known_tasks, read_task


def recognised(root: Path, names: Sequence[str], lists: Path | None = None) -> Iterator[tuple[str, Path]]:
    """(task, folder) of the tasks ``names`` that the package knows and whose data set is a sub-folder of ``root``."""
    tasks = {name: read_task(known_tasks()[name]) for name in names}
    for folder in sorted(path for path in require_folder(root, "the folder of data sets").iterdir() if path.is_dir()):
        download = Download.scan(folder, lists)
        places = [download]
        if len(inner := download.folders()) == 1:
            places += inner
        for name in list(tasks):
            if any(_is(place, tasks[name]) for place in places):
                del tasks[name]
                yield name, folder


def _is(download: Download, task: Task) -> bool:
    """Whether a folder is the data set of a task. Names of files alone tell only together with lists of splits, or if
    they have as many labels as the task has classes."""
    rule = read_rule(task.metadata)
    if not download.suits(rule):
        return False
    lacking = [one for one in _lists(rule) if download.table((one,)) is None]
    if any(one not in rule.fetched for one in lacking):
        return False
    if lacking:
        return _labels(download, rule) == task.classes
    try:
        found = collect(rule, download, task.name).clips.values()
    except UserError:
        return not any(source.names is not None for source in rule.sources)  # its tables have the right names
    return any(clip.split or clip.fold for clip in found)


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
