"""The report of one result, written to a file: a page or Markdown, by the file's name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.files import write_text
from m2dprep.artifacts.folders import make_folder
from m2dprep.artifacts.layout import require_folder
from m2dprep.evaluation.prepared import TASK, read_evaluation_set
from m2dprep.evaluation.reports.figures import score_text
from m2dprep.evaluation.reports.markdown import markdown
from m2dprep.evaluation.reports.outcomes import read_reported
from m2dprep.evaluation.reports.page import Players, page
from m2dprep.evaluation.task import Task, known_tasks, read_task


def write_report(
    result: Path,
    output: Path,
    *,
    clips: Path | None = None,
    root: Path | None = None,
    predictions: Path | None = None,
    embed: bool = False,
) -> dict[str, Any]:
    """Write the result as a page (``.html``) or as Markdown, and return what it is of as plain values.

    ``clips`` is the prepared folder or table of the result.

    Raises `UserError` if the result is none, or ``clips`` is another task.
    """
    reported = read_reported(result, predictions)
    task = _task(reported.result.task, clips)
    if clips is not None and root is None:
        root = read_evaluation_set(clips, captions=reported.result.protocol == "retrieval").root
    if root is not None:
        require_folder(root, "the folder of the clips")
    make_folder(output.absolute().parent)
    is_page = output.suffix.lower() == ".html"
    write_text(output, page(reported, task, Players(root, output, embed)) if is_page else markdown(reported, task))
    of = reported.result
    score = f"{of.protocol} {of.task}: {of.metric} {score_text(of)}"
    return {"output": str(output), "protocol": of.protocol, "task": of.task, "score": score}


def _task(name: str, clips: Path | None) -> Task | None:
    """The task of a result, from the prepared folder or among those that come with the package."""
    if clips is not None and (clips / TASK).is_file():
        task = read_task(clips / TASK)
        if name and task.name != name:
            raise UserError(f"the result is of the task {name}, and {clips} holds {task.name}.")
        return task
    known = known_tasks()
    return read_task(known[name]) if name in known else None
