"""All tasks below a folder with one model: what is finished is skipped, a failure is a row and stops nothing."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from m2dprep.artifacts.console import is_verbose
from m2dprep.artifacts.digests import digest_of, file_digest, fingerprint, texts_digest
from m2dprep.artifacts.errors import FailureLimit, UserError, first_line
from m2dprep.artifacts.files import write_json, write_text
from m2dprep.artifacts.folders import make_folder, walk
from m2dprep.artifacts.pages.document import document
from m2dprep.artifacts.pages.markup import Markup, table, tag
from m2dprep.artifacts.reading import stamp_of
from m2dprep.audioprep.decoding.sound import TRANSIENT
from m2dprep.evaluation.preparation.prepare import prepare
from m2dprep.evaluation.preparation.recognise import recognised
from m2dprep.evaluation.prepared import LABELS, METADATA, PREPARED, TASK, EvaluationSet, read_evaluation_set
from m2dprep.evaluation.protocols.result import Result
from m2dprep.evaluation.reports.figures import aligned, papers_for, score_text
from m2dprep.evaluation.reports.markdown import markdown, markdown_table
from m2dprep.evaluation.reports.outcomes import Reported, outcomes_of
from m2dprep.evaluation.reports.page import Players, page
from m2dprep.evaluation.task import Task, known_tasks, read_task, task_file

RESULTS, PREPARED_SETS = "results", "prepared"
REPORT = "report"
FORMAT = 1
RUN = "run"  # the digest that says which run a result is of
Runner = Callable[[EvaluationSet, str, Path], Result]


@dataclass(frozen=True)
class Campaign:
    """What to run: ``model`` identifies checkpoint and settings, ``runner`` runs a protocol on a set and may use a
    folder for features."""

    root: Path
    report: Path
    model: Mapping[str, Any]
    runner: Runner
    protocols: Sequence[str]
    lists: Path | None = None
    only: Sequence[str] = ()
    limit: FailureLimit = field(default_factory=FailureLimit)
    more: Callable[[Path], Sequence[str]] = lambda folder: ()
    """Protocols beside those of a prepared task, which the model allows."""


@dataclass
class Line:
    """A row of the table: a task and a protocol with a result, or with the reason why there is none."""

    task: str
    protocol: str
    about: Task | None = None
    result: Result | None = None
    problem: str = ""
    stem: str = ""
    skipped: bool = False
    expected: dict[str, int] = field(default_factory=dict)


def run_campaign(campaign: Campaign, said: Callable[[str], object]) -> list[Line]:
    """Run every protocol of every task below the root, and write the report anew after each.

    ``said`` is told how it goes. Raises `UserError` if there is no task below the root.
    """
    make_folder(campaign.report / RESULTS)
    lines: list[Line] = []
    sets = list(_sets(campaign))
    if unknown := [name for name in campaign.only if name not in {name for name, _, _ in sets}]:
        there = sorted({_name_in(folder) for folder in _prepared_below(campaign.root)})
        raise UserError(
            f"{campaign.root} holds no task {', '.join(unknown)}; prepared there are {', '.join(there) or 'none'}."
        )
    for name, folder, problem in sets:
        if folder is None:
            lines.append(Line(name, "", problem=problem))
            said(f"{name}: {problem}")
            continue
        for line in _run_set(_stem(name, folder, campaign, lines), folder, campaign, said):
            lines.append(line)
            write_report(campaign, lines)
    if not lines:
        raise UserError(
            f"{campaign.root} holds no task, neither prepared (metadata.csv, task.yaml, prepared.json) nor as it is "
            "downloaded; `m2dprep evaluate list` says what there is, and `m2dprep evaluate prepare` prepares one."
        )
    write_report(campaign, lines)
    return lines


def _stem(name: str, folder: Path, campaign: Campaign, lines: Sequence[Line]) -> str:
    """What the results of a set are called: its task or, if another set has that already, its folder too."""
    if all(line.task != name for line in lines):
        return name
    return f"{name}-{digest_of(os.path.relpath(folder, campaign.root).encode())[:8]}"


def _run_set(stem: str, folder: Path, campaign: Campaign, said: Callable[[str], object]) -> Iterator[Line]:
    try:
        task = read_task(folder / TASK)
    except UserError as error:
        said(f"{stem}: {error}")
        yield Line(stem, "", problem=str(error))
        return
    protocols = dict.fromkeys((*task.protocols, *campaign.more(folder)))
    for protocol in (one for one in protocols if one in campaign.protocols):
        line = Line(task.name, protocol, task, expected=dict(task.counts), stem=f"{stem}.{protocol}")
        path = campaign.report / RESULTS / f"{line.stem}.json"
        try:
            clips = read_evaluation_set(folder, captions=protocol == "retrieval")
            key = _key(campaign, protocol, folder, clips)
            line.result = _finished(path, key)
            line.skipped = line.result is not None
            if line.result is None:
                said(f"{task.name}, {protocol}: begins")
                line.result = campaign.runner(clips, protocol, campaign.report).about(digests={RUN: key})
                line.result.write(path)
                _write_pages(line.result, task, clips, path)
            failed = len(line.result.failures)
            if campaign.limit.exceeded(failed, failed + tested(line.result)):
                line.problem = f"{failed:,} clips could not be read"
            said(f"{task.name}, {protocol}: {score_text(line.result)}{' (finished before)' if line.skipped else ''}")
        except Exception as error:
            if is_verbose():
                traceback.print_exc()
            line.problem = (
                str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {first_line(error)}"
            )
            said(f"{task.name}, {protocol}: failed: {line.problem}")
        yield line


def _key(campaign: Campaign, protocol: str, folder: Path, clips: EvaluationSet) -> str:
    """What a result depends on, as a digest: the model, the tables, and the sounds by their sizes and times."""
    there = (folder / name for name in (METADATA, TASK, PREPARED, LABELS))
    tables = {path.name: file_digest(path) for path in there if path.exists()}
    sounds = texts_digest(stamp_of(path) for path in clips.paths(range(len(clips.files))))
    return fingerprint({"model": dict(campaign.model), "protocol": protocol, "sounds": sounds, **tables})


def _finished(path: Path, key: str) -> Result | None:
    """The result of an earlier run with the same digest, unless a clip of it can perhaps be read today."""
    if not path.exists():
        return None
    try:
        result = Result.read(path)
    except UserError:
        return None  # damaged, or of another kind: it is made again
    for_now = any(one.get("reason") in TRANSIENT for one in result.failures)
    return result if result.digests.get(RUN) == key and not for_now else None


def _write_pages(result: Result, task: Task, clips: EvaluationSet, path: Path) -> None:
    reported = Reported(result, outcomes_of(result), path, str(result.model.get("name", "")))
    write_text(path.with_suffix(".html"), page(reported, task, Players(clips.root, path.with_suffix(".html"))))
    write_text(path.with_suffix(".md"), markdown(reported, task))


def _sets(campaign: Campaign) -> Iterator[tuple[str, Path | None, str]]:
    """(task, prepared folder or None, what is wrong) of all tasks below the root."""
    found = [(_name_in(folder), folder) for folder in _prepared_below(campaign.root)]
    for name, folder in found:
        if not campaign.only or name in campaign.only:
            yield name, folder, ""
    missing = [name for name in known_tasks() if name not in {name for name, _ in found}]
    wanted = [name for name in missing if not campaign.only or name in campaign.only]
    for name, download, problem in recognised(campaign.root, wanted, campaign.lists):
        if download is None:
            yield name, None, problem
            continue
        target = campaign.report / PREPARED_SETS / name
        try:
            file = task_file(name)
            prepare(read_task(file), file, download, target, lists=campaign.lists, overwrite=True)
            yield name, target, ""
        except UserError as error:
            yield name, None, str(error)


def _name_in(folder: Path) -> str:
    try:
        return read_task(folder / TASK).name
    except UserError:
        return folder.name


def _prepared_below(root: Path) -> list[Path]:
    """Folders with all three files, sorted."""
    wanted = {METADATA, TASK, PREPARED}
    there: dict[str, set[str]] = {}
    for prefix, entry, is_folder in walk(root):
        if not is_folder and entry.name in wanted:
            there.setdefault(prefix, set()).add(entry.name)
    return [root / prefix for prefix in sorted(there) if there[prefix] == wanted]


def write_report(campaign: Campaign, lines: Sequence[Line]) -> None:
    """report.json, report.md and report.html: one table of all lines beside the papers' figures."""
    header, rows = summary(lines)
    place = campaign.report / REPORT
    value = {
        "format": FORMAT,
        "model": dict(campaign.model),
        "rows": [
            {
                "task": line.task,
                "protocol": line.protocol,
                "problem": line.problem,
                "expected": line.expected,
                "result": None if line.result is None else _short(line.result),
            }
            for line in lines
        ],
    }
    write_json(place.with_suffix(".json"), value)
    write_text(place.with_suffix(".md"), f"# Evaluation\n\n{markdown_table(header, rows)}\n")
    linked: list[list[object]] = []
    for line, row in zip(lines, rows, strict=True):
        link: object = row[0]
        if line.result is not None:
            link = tag("a", row[0], href=quote(f"{RESULTS}/{line.stem}.html"))
        linked.append([link, *row[1:]])
    body: list[Markup] = [tag("h1", "Evaluation"), tag("div", table(list(header), linked), class_="scroll")]
    facts: list[list[object]] = [[key, item] for key, item in campaign.model.items()]
    body.append(tag("section", tag("h2", "Model"), table(["what", "value"], facts)))
    write_text(place.with_suffix(".html"), document("Evaluation", body))


def _short(result: Result) -> dict[str, Any]:
    value = result.to_dict()
    return {key: item for key, item in value.items() if key != "details"}


def summary(lines: Sequence[Line]) -> tuple[list[str], list[list[str]]]:
    """The header and the rows of the table, with a column per published model."""
    found = [[] if line.result is None else papers_for(line.result, line.about) for line in lines]
    models = list(dict.fromkeys(paper.model for papers in found for paper in papers))
    header = ["task", "protocol", "metric", "score", "clips", *models, "problem"]
    rows = []
    for line, papers in zip(lines, found, strict=True):
        of = {paper.model: str(paper).removeprefix(paper.model).strip() for paper in papers}
        if line.result is None:
            rows.append([line.task, line.protocol, "", "failed", "", *("" for _ in models), line.problem])
            continue
        rows.append(
            [line.task, line.protocol, line.result.metric, score_text(line.result), _clips(line)]
            + [of.get(model, "") for model in models]
            + [line.problem]
        )
    if not any(line.problem for line in lines):
        return header[:-1], [row[:-1] for row in rows]
    return header, rows


def _clips(line: Line) -> str:
    """How many clips the score is of, and how many the task has."""
    assert line.result is not None
    found, expected = tested(line.result), line.expected.get("all", line.expected.get("test"))
    return f"{found:,}" if expected in (None, found) else f"{found:,} of {expected:,}"


def tested(result: Result) -> int:
    """The clips that the score is of."""
    return result.n.get("clips", result.n.get("test", 0))


def render(lines: Sequence[Line]) -> str:
    """The table as text."""
    header, rows = summary(lines)
    return aligned([header, *rows], [0, header.index("problem")] if "problem" in header else [0])
