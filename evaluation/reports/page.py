"""A result as one self-contained HTML page: bars per class, the confusion matrix, and the worst clips with players.

There is no script and nothing is loaded from elsewhere; players link to the clips, or hold them if they are small.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from m2dprep.artifacts.clips.clip_id import has_audio_suffix, suffix_of
from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.layout import inside
from m2dprep.artifacts.pages.charts import matrix
from m2dprep.artifacts.pages.document import bar, document, section
from m2dprep.artifacts.pages.markup import Markup, table, tag
from m2dprep.artifacts.pages.sounds import PLAYED, linked_player, player_of
from m2dprep.evaluation.protocols.result import Result
from m2dprep.evaluation.reports.event_sections import event_sections
from m2dprep.evaluation.reports.figures import (
    all_figures,
    commonest_confusions,
    facts_of,
    papers_for,
    per_class,
    score_text,
    shown,
)
from m2dprep.evaluation.reports.outcomes import Outcome, Reported
from m2dprep.evaluation.task import Task

WORST_CLIPS = 20
# The confusion matrix of more classes would not fit a screen.
MAX_MATRIX = 60
# Clips up to this size can be held by the page, all of them together up to the second.
EMBEDDED_BYTES, ALL_EMBEDDED_BYTES = 400_000, 8_000_000


@dataclass(frozen=True)
class Players:
    """Where clips lie (``root``) and where the page will (``page``); ``embed`` puts small ones into the page."""

    root: Path | None = None
    page: Path | None = None
    embed: bool = False


def page(reported: Reported, task: Task | None = None, players: Players | None = None) -> str:
    """The page of a result."""
    result = reported.result
    title = f"{(task and task.title) or result.task or 'Clips'}: {result.protocol}"
    body = [
        tag("h1", title),
        tag("p", score_text(result), class_="score"),
        tag("p", f"{result.metric}, {', '.join(f'{n:,} {name}' for name, n in result.n.items())}", class_="quiet"),
        _papers(result, task),
        _figures(result),
        *event_sections(result, reported.path),
        _deviations(result),
        class_bars(result),
        confusion(result),
        _worst(reported, players or Players()),
        _failures(result),
        section("Conditions", table(["what", "value"], [list(row) for row in facts_of(result)])),
    ]
    return document(title, body)


def _papers(result: Result, task: Task | None) -> Markup:
    papers = papers_for(result, task)
    if not papers:
        return Markup("")
    rows: list[list[object]] = [[str(paper), paper.note] for paper in papers]
    return section("Published", table([f"{result.metric}, %", "of what"], rows))


def _figures(result: Result) -> Markup:
    rows: list[list[object]] = [[name, shown(value, name)] for name, value in all_figures(result)]
    return section("Figures", table(["metric", "value"], rows)) if len(rows) > 1 else Markup("")


def _deviations(result: Result) -> Markup:
    if not result.deviations:
        return Markup("")
    return section("Otherwise than EVAR", tag("ul", *(tag("li", sentence) for sentence in result.deviations)))


def class_bars(result: Result) -> Markup:
    """A bar per class, the worst first."""
    rows: list[list[object]] = []
    for label, n, value in per_class(result):
        rows.append([label, f"{n:,}", bar(value, "–" if value is None else f"{100 * value:.1f}")])
    return section("Classes, the worst first", table(["class", "clips", "%"], rows)) if rows else Markup("")


def confusion(result: Result) -> Markup:
    """The matrix of classes and what they were taken for, if it fits, and the commonest confusions."""
    classes, counts = result.details.get("classes", []), result.details.get("confusion")
    if counts is None and "commonest_confusions" not in result.details:
        return Markup("")
    listed: list[list[object]] = [[f"{n:,}", label, other] for n, label, other in commonest_confusions(result)]
    common = table(["clips", "class", "taken for"], listed) if listed else tag("p", "There are none.")
    if counts is None or len(classes) > MAX_MATRIX:
        return section("Commonest confusions", common)
    shown_matrix = matrix("class \\ taken for", classes, counts)
    return section("Confusions", shown_matrix, tag("h3", "The commonest"), common)


def _worst(reported: Reported, players: Players) -> Markup:
    """The clips that came out worst; those that are right are none of them."""
    ranked = reported.result.protocol == "retrieval"
    wrong = [one for one in reported.outcomes if (max((*one.t2a, one.a2t), default=0) > 1 if ranked else one.right < 1)]
    worst = sorted(wrong, key=lambda one: one.badness, reverse=True)[:WORST_CLIPS]
    if not worst:
        return Markup("")
    left = ALL_EMBEDDED_BYTES
    rows: list[list[object]] = []
    for one in worst:
        player, used = _player(one, players, left)
        left -= used
        what: list[object] = (
            [", ".join(map(str, one.t2a)), one.a2t]
            if ranked
            else [one.label, one.predicted, "" if one.margin is None else f"{one.margin:.3f}"]
        )
        rows.append([one.file_name, *what, player])
    header: list[object] = [
        "clip",
        *(["ranks of its captions", "best rank"] if ranked else ["class", "taken for", "margin"]),
        "",
    ]
    return section(f"The {len(worst)} worst clips", table(header, rows))


def _player(outcome: Outcome, players: Players, left: int) -> tuple[Markup, int]:
    """A player of a clip that a browser can play, and how many bytes of it the page holds."""
    kind = PLAYED.get(suffix_of(outcome.file_name))
    if players.root is None or kind is None or not has_audio_suffix(outcome.file_name):
        return Markup(""), 0
    try:
        path = inside(players.root, outcome.file_name)
        size = path.stat().st_size
    except (UserError, OSError):
        return Markup(""), 0
    if players.embed and size <= min(EMBEDDED_BYTES, left):
        return player_of(path.read_bytes(), kind), size
    return linked_player(path, players.page), 0


def _failures(result: Result) -> Markup:
    if not result.failures:
        return Markup("")
    rows: list[list[object]] = [
        [failure.get("file_name", ""), failure.get("reason", ""), failure.get("message", "")]
        for failure in result.failures
    ]
    return section(f"{len(rows):,} clips that could not be read", table(["clip", "reason", "message"], rows))
