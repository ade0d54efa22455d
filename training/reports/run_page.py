"""The page of a training run: its curves, what was left out, its results, and what its newest checkpoint hears."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from m2dprep.artifacts.errors import Failure, UserError
from m2dprep.artifacts.failures.reading import failures_in
from m2dprep.artifacts.json_files import read_object
from m2dprep.artifacts.pages.charts import curves
from m2dprep.artifacts.pages.document import document, figures, section, with_title
from m2dprep.artifacts.pages.markup import Markup, rows_of, table, tag
from m2dprep.evaluation.overview.conversion import EXAMPLES
from m2dprep.evaluation.overview.data_page import Drawing, place_name
from m2dprep.evaluation.overview.heard import heard_sections
from m2dprep.evaluation.overview.parts import failures_section
from m2dprep.evaluation.protocols.result import Result
from m2dprep.evaluation.reports.figures import score_text
from m2dprep.evaluation.reports.page import class_bars, confusion
from m2dprep.training.log import read_log
from m2dprep.training.plot import panels
from m2dprep.training.run_folder import CONFIG, SKIPPED

LOG, RESULT = "log.jsonl", "result.json"


def is_run(path: Path) -> bool:
    """Whether ``path`` is the folder of a training run."""
    return (path / CONFIG).is_file() and (path / LOG).is_file()


def run_page(run: Path, drawing: Drawing, data: Path | None, encoded: int, device: str) -> str:
    """The page of the run ``run``, with ``encoded`` clips of the data directory ``data`` (by default the run's own).

    Raises `UserError` if the run cannot be read, or ``data`` was named and cannot be used.
    """
    config = read_object(run / CONFIG) or {}
    damaged: list[str] = []
    lines = read_log(run / LOG, damaged.append)
    result = Result.read(run / RESULT) if (run / RESULT).is_file() else None
    title = f"Run: {place_name(run)}"
    body = [tag("h1", title), figures(_figures(config, lines, result))]
    body += [tag("p", words, class_="quiet") for words in damaged]
    body += [] if result is None else [class_bars(result), confusion(result)]
    body.append(_curves(lines))
    body += _heard(run, config, drawing, data, encoded, device)
    body.append(_skipped(run))
    body.append(section("Settings", table(["setting", "value"], rows_of(config, without=("proof", "digest")))))
    return document(title, body)


def _figures(config: Mapping[str, Any], lines: list[dict[str, Any]], result: Result | None) -> list[tuple[object, str]]:
    settings, last = config.get("settings", {}), lines[-1] if lines else {}
    shown: list[tuple[object, str]] = []
    if result is not None and result.score is not None:
        shown.append((score_text(result), f"{result.metric}, {result.n.get('test', 0):,} clips"))
    accuracy = [line["zero_shot_accuracy"] for line in lines if line.get("zero_shot_accuracy") is not None]
    if accuracy:
        shown.append((f"{accuracy[-1]:.1%}", "zero-shot accuracy"))
    if last:
        epochs = settings.get("train", {}).get("epochs")
        shown.append((f"{last['epoch']:g}", f"of {epochs:g} epochs" if epochs else "epochs"))
        shown.append((f"{last['step']:,}", "steps"))
    loss = [line["loss"] for line in lines if line.get("loss") is not None]
    if loss:
        shown.append((f"{loss[-1]:.4f}", f"loss, {loss[0]:.4f} at first"))
    clips = settings.get("data", {}).get("clips")  # of a fine-tuning, a digest of its clips
    if isinstance(clips, int):
        shown.append((f"{clips:,}", "clips"))
    if size := settings.get("size"):
        shown.append((size, "size"))
    return shown


def _curves(lines: list[dict[str, Any]]) -> Markup:
    drawn = [
        with_title(title, curves({name: list(zip(*points, strict=True)) for name, points in named.items()}, "epoch"))
        for title, named in panels(lines)
    ]
    return section("Curves", drawn and tag("div", *(tag("div", one) for one in drawn if one), class_="side"))


def _heard(
    run: Path, config: Mapping[str, Any], drawing: Drawing, data: Path | None, encoded: int, device: str
) -> list[Markup]:
    """What the newest checkpoint makes of clips; a sentence if that cannot be shown and nobody asked for this data."""
    root = data or (Path(config["data"]) if isinstance(config.get("data"), str) else None)
    if root is None or not encoded:
        return []
    try:
        return heard_sections(run, root, drawing, encoded, device)
    except UserError as error:
        if data is not None:
            raise
        return [section("What the model hears", tag("p", f"This cannot be shown: {error}", class_="quiet"))]


def _skipped(run: Path) -> Markup:
    """Files that were left out, by their reasons."""
    if not (run / SKIPPED).is_file():
        return Markup("")
    reasons: Counter[str] = Counter()
    examples: dict[str, list[Failure]] = {}
    for one in failures_in(run / SKIPPED):
        reasons[one.reason] += 1
        shown = examples.setdefault(one.reason, [])
        if len(shown) < EXAMPLES:
            shown.append(one)
    return failures_section(reasons, examples, run, "Listed files that are left out")
