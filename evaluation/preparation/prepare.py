"""Makes a prepared folder of a task from its data set as downloaded, and compares what was found with the task."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m2dprep.artifacts.digests import file_digest
from m2dprep.artifacts.errors import FailureLimit, UserError, top_reasons
from m2dprep.artifacts.files import replace_together, write_bytes, write_json
from m2dprep.artifacts.folders import make_folder
from m2dprep.artifacts.json_files import read_json_object
from m2dprep.artifacts.locks import exclusive
from m2dprep.artifacts.tables import read_csv_columns, write_csv
from m2dprep.evaluation.preparation.clips import MISSING, Collected, LeftOutRow, collect
from m2dprep.evaluation.preparation.download import AS_NAMED, Download, candidates
from m2dprep.evaluation.preparation.rule import Rule, read_rule
from m2dprep.evaluation.preparation.splits import required
from m2dprep.evaluation.prepared import LABELS, METADATA, PREPARED, TASK
from m2dprep.evaluation.task import SPLITS, Task

LEFT_OUT, EXTRA = "left_out.csv", "extra.csv"
FORMAT = 1
# Columns of the table of clips that not every task has.
OPTIONAL = ("split", "fold", "group")


@dataclass(frozen=True)
class Preparation:
    """What became of a download: counts found and expected by split (or ``all``), and what did not fit."""

    task: Task
    folder: Path
    root: Path
    found: dict[str, int]
    expected: dict[str, int]
    classes: int
    captions: int
    left_out: list[LeftOutRow]
    extra: list[str]
    without_split: int
    how_found: dict[str, int]
    absent: list[str]
    missing_allowed: bool
    sources: dict[str, str]

    @property
    def failures(self) -> list[LeftOutRow]:
        """The rows that count as failures: all that are left out, without missing files if the rule allows these."""
        return [row for row in self.left_out if not (self.missing_allowed and row.failure.reason == MISSING)]

    def require(self, limit: FailureLimit) -> None:
        """Raise `TooManyFailuresError` if more rows were left out than the limit allows."""
        rows = sum(self.found.values()) + self.without_split + len(self.left_out)
        limit.require(len(self.failures), rows, str(self.folder / LEFT_OUT))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values: what ``prepared.json`` holds."""
        return {
            "format": FORMAT,
            "task": self.task.name,
            "root": _relative(self.root, self.folder),
            "found": self.found,
            "expected": self.expected,
            "classes": self.classes,
            "captions": self.captions,
            "without_split": self.without_split,
            "left_out": dict(sorted(Counter(row.failure.reason for row in self.left_out).items())),
            "extra_files": len(self.extra),
            "how_found": self.how_found,
            "absent": self.absent,
            "sources": self.sources,
        }


def prepare(
    task: Task, task_file: Path, download: Path, folder: Path, *, lists: Path | None = None, overwrite: bool = False
) -> Preparation:
    """Write metadata.csv, task.yaml and prepared.json for ``task`` into ``folder``; clips stay where they are.

    Raises `UserError` if the download is another data set or lacks a table, a list is to be fetched, no clip is found,
    or the folder holds another table of clips (unless ``overwrite``).
    """
    title = task.title or task.name
    try:
        rule = read_rule(task.metadata)
    except UserError as error:
        raise UserError(f"{task_file}: {error}") from error
    scanned = Download.scan(download, lists)
    place, found = _first_with_clips(candidates(scanned, rule, title), rule, title)
    if not found.clips:
        reasons = top_reasons(Counter(row.failure.reason for row in found.left_out))
        example = f"; {found.left_out[0].failure.file_name} is the first" if found.left_out else ""
        raise UserError(f"{download} has no clip of {title} ({reasons or 'its tables have no rows'}{example}).")
    preparation = _preparation(task, folder, place, rule, found, title)
    _require_free(folder, preparation, overwrite)
    _write(preparation, task_file, place, rule, found)
    return preparation


def _first_with_clips(places: list[Download], rule: Rule, title: str) -> tuple[Download, Collected]:
    results = []
    for place in places:
        found = collect(rule, place, title)
        if found.clips:
            return place, found
        results.append((place, found))
    return results[0]


def _preparation(task: Task, folder: Path, place: Download, rule: Rule, found: Collected, title: str) -> Preparation:
    clips = list(found.clips.values())
    has_splits = any(source.split is not None for source in rule.sources)
    taking_part = [clip for clip in clips if clip.split or not has_splits]
    counts = Counter(clip.split for clip in taking_part) if has_splits else {}
    labels = {label for clip in taking_part for label in (clip.label.split(",") if task.multi_label else [clip.label])}
    tables = {source.places for source in rule.sources if source.places}
    paths = [path for places in sorted(tables) if (path := place.table(places)) is not None]
    for source in rule.sources:
        if source.split is not None:
            names = [*source.split.lists.values(), *([source.split.table] if source.split.table else [])]
            paths += [required(place, rule, name, title) for name in names]
    return Preparation(
        task=task,
        folder=folder,
        root=place.root,
        found={split: counts[split] for split in SPLITS if split in counts} or {"all": len(taking_part)},
        expected=dict(task.counts),
        classes=len({label.strip() for label in labels} - {""}),
        captions=sum(len(clip.captions) for clip in taking_part),
        left_out=found.left_out,
        extra=sorted((set(place.files) - set(found.clips)) | set(place.unnamed)),
        without_split=len(clips) - len(taking_part),
        how_found=dict(sorted(found.how_found.items())),
        absent=found.absent,
        missing_allowed=rule.missing_allowed,
        sources={path.name: file_digest(path) for path in dict.fromkeys(paths)},
    )


def _table(task: Task, found: Collected, rule: Rule) -> tuple[list[str], list[list[str]]]:
    """The header and the rows of metadata.csv: a row per clip, or per caption."""
    clips = found.clips.values()
    what = "caption" if any(source.captions for source in rule.sources) else "label"
    used = [[name for name in OPTIONAL if getattr(source, name) is not None] for source in rule.sources]
    extra = [name for name in OPTIONAL if any(name in names for names in used)]
    rows = [
        [clip.file_name, text, *(getattr(clip, name) for name in extra)]
        for clip in clips
        for text in (clip.captions or (clip.label,))
    ]
    return ["file_name", what, *extra], rows


def _require_free(folder: Path, preparation: Preparation, overwrite: bool) -> None:
    """Refuse to replace a table of clips that is another one, or nobody's of ours."""
    if overwrite or not (folder / METADATA).exists():
        return
    if not (folder / PREPARED).exists():
        raise UserError(
            f"{folder / METADATA} was not made by this command; name another folder, or replace it with --overwrite."
        )
    before = read_json_object(folder / PREPARED, "the notes of a prepared set")
    now = preparation.to_dict()
    if other := [name for name in ("task", "root") if before.get(name) != now[name]]:
        raise UserError(
            f"{folder} holds another {'task' if other[0] == 'task' else 'download'} ({before.get(other[0])}); "
            "name another folder, or replace it with --overwrite."
        )


def _write(preparation: Preparation, task_file: Path, place: Download, rule: Rule, found: Collected) -> None:
    """Replace the folder's files, all together; a folder with prepared.json is whole."""
    task_text = task_file.read_bytes()

    def write(folder: Path) -> None:
        write_csv(folder / METADATA, *_table(preparation.task, found, rule))
        write_csv(
            folder / LEFT_OUT,
            ["file_name", "where", "reason", "message"],
            [
                [row.failure.file_name, row.where, row.failure.reason, row.failure.message]
                for row in preparation.left_out
            ],
        )
        write_csv(folder / EXTRA, ["file_name"], [[name] for name in preparation.extra])
        if rule.label_names is not None:
            names = rule.label_names
            table = required(place, rule, names.table[0], preparation.task.title)
            values = read_csv_columns(table, [names.label, names.name], "the names of labels")
            write_csv(folder / LABELS, ["label", "name"], zip(values[names.label], values[names.name], strict=True))
        write_bytes(folder / TASK, task_text)
        write_json(folder / PREPARED, preparation.to_dict())

    make_folder(preparation.folder)
    with exclusive(preparation.folder):
        replace_together(preparation.folder, (METADATA, LEFT_OUT, EXTRA, LABELS, TASK, PREPARED), write)


def _relative(root: Path, folder: Path) -> str:
    return Path(os.path.relpath(root.resolve(), folder.resolve())).as_posix()


def render(preparation: Preparation) -> str:
    """Counts found and expected, and what did not fit, for people."""
    task, found = preparation.task, preparation.found
    rows = [("", "found", "expected")]
    keys = [key for key in ("all", *SPLITS) if key in found or key in preparation.expected]
    for key in keys:
        n = found.get(key, sum(found.values()) if key == "all" else 0)
        expected = preparation.expected.get(key)
        rows.append(({"all": "clips"}.get(key, key), f"{n:,}", "?" if expected is None else f"{expected:,}"))
    if preparation.captions:
        rows.append(("captions", f"{preparation.captions:,}", ""))
    else:
        rows.append(("classes", f"{preparation.classes:,}", "?" if task.classes is None else f"{task.classes:,}"))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [f"{task.title or task.name}: {preparation.folder / METADATA}, clips in {preparation.root}"]
    for name, *numbers in rows:
        cells = [name.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(numbers, widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    lines += _notes(preparation)
    return "\n".join(lines)


def _notes(preparation: Preparation) -> list[str]:
    notes = []
    if preparation.without_split:
        notes.append(f"{preparation.without_split:,} clips are in no split and take no part")
    if preparation.left_out:
        reasons = top_reasons(Counter(row.failure.reason for row in preparation.left_out))
        notes.append(f"{len(preparation.left_out):,} rows left out ({reasons}): {preparation.folder / LEFT_OUT}")
    if preparation.extra:
        notes.append(f"{len(preparation.extra):,} audio files belong to no row: {preparation.folder / EXTRA}")
    notes += [f"{n:,} files found {how}" for how, n in preparation.how_found.items() if how != AS_NAMED]
    notes += [f"without {name}: its clips take no part" for name in preparation.absent]
    return notes
