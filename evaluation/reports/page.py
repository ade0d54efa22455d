"""A result as one self-contained HTML page: bars per class, the confusion matrix, and the worst clips with players.

There is no script and nothing is loaded from elsewhere; players link to the clips, or hold them if they are small.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from m2dprep.artifacts.clips.clip_id import has_audio_suffix, suffix_of
from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.layout import inside
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
from m2dprep.evaluation.reports.markup import Markup, escaped, table, tag
from m2dprep.evaluation.reports.outcomes import Outcome, Reported
from m2dprep.evaluation.task import Task

WORST_CLIPS = 20
# The confusion matrix of more classes would not fit a screen.
MAX_MATRIX = 60
# Clips up to this size can be held by the page, all of them together up to the second.
EMBEDDED_BYTES, ALL_EMBEDDED_BYTES = 400_000, 8_000_000
# What browsers play, by suffix.
PLAYED = {"wav": "audio/wav", "mp3": "audio/mpeg", "ogg": "audio/ogg", "oga": "audio/ogg", "opus": "audio/ogg",
          "flac": "audio/flac", "m4a": "audio/mp4", "webm": "audio/webm"}  # fmt: skip
STYLE = """
:root { color-scheme: light dark; --line: #8884; --bar: #4a7fb5; --hit: 74, 127, 181; --miss: 200, 80, 60 }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70em; margin: 2em auto; padding: 0 1em }
h1 { font-size: 1.5em } h2 { font-size: 1.15em; margin-top: 2em; border-bottom: 1px solid var(--line) }
table { border-collapse: collapse } th, td { padding: .15em .6em; text-align: left; vertical-align: top }
th { font-weight: 600 } .score { font-size: 2.4em; font-weight: 600; margin: 0 }
.bar { display: inline-block; height: .8em; background: var(--bar); vertical-align: middle; margin-right: .5em }
.matrix { font-size: 11px } .matrix td { text-align: right; padding: .1em .3em; border: 1px solid var(--line) }
.matrix th { padding: .1em .3em; font-weight: 400; white-space: nowrap }
.scroll { overflow-x: auto } .quiet { opacity: .7 } audio { height: 2em; vertical-align: middle }
"""


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
        _classes(result),
        _confusion(result),
        _worst(reported, players or Players()),
        _failures(result),
        _section("Conditions", table(["what", "value"], [list(row) for row in facts_of(result)])),
    ]
    return document(title, body)


def document(title: str, body: Sequence[Markup]) -> str:
    """A whole page."""
    head = tag(
        "head", tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title), tag("style", Markup(STYLE)),
    )  # fmt: skip
    return f"<!DOCTYPE html>\n{tag('html', head, tag('body', *body), lang='en')}\n"


def _section(title: str, *content: object) -> Markup:
    return tag("section", tag("h2", title), *content)


def _papers(result: Result, task: Task | None) -> Markup:
    papers = papers_for(result, task)
    if not papers:
        return Markup("")
    rows: list[list[object]] = [[str(paper), paper.note] for paper in papers]
    return _section("Published", table([f"{result.metric}, %", "of what"], rows))


def _figures(result: Result) -> Markup:
    rows: list[list[object]] = [[name, shown(value, name)] for name, value in all_figures(result)]
    return _section("Figures", table(["metric", "value"], rows)) if len(rows) > 1 else Markup("")


def _deviations(result: Result) -> Markup:
    if not result.deviations:
        return Markup("")
    return _section("Otherwise than EVAR", tag("ul", *(tag("li", sentence) for sentence in result.deviations)))


def _classes(result: Result) -> Markup:
    rows: list[list[object]] = []
    for label, n, value in per_class(result):
        width = 0 if value is None else round(20 * max(0.0, min(1.0, value)), 2)
        bar = tag("span", class_="bar", style=f"width:{width}em")
        text = "–" if value is None else f"{100 * value:.1f}"
        rows.append([label, f"{n:,}", Markup(bar + escaped(text))])
    return _section("Classes, the worst first", table(["class", "clips", "%"], rows)) if rows else Markup("")


def _confusion(result: Result) -> Markup:
    classes, counts = result.details.get("classes", []), result.details.get("confusion")
    if counts is None and "commonest_confusions" not in result.details:
        return Markup("")
    listed: list[list[object]] = [[f"{n:,}", label, other] for n, label, other in commonest_confusions(result)]
    common = table(["clips", "class", "taken for"], listed) if listed else tag("p", "There are none.")
    if counts is None or len(classes) > MAX_MATRIX:
        return _section("Commonest confusions", common)
    head = tag("tr", tag("th", "class \\ taken for"), *(tag("th", n, title=label) for n, label in enumerate(classes)))
    rows = []
    for number, (label, row) in enumerate(zip(classes, counts, strict=True)):
        total = max(1, sum(row))
        cells = [
            tag("td", n or "", style=_shade(n / total, column == number), title=f"{label} → {classes[column]}: {n}")
            for column, n in enumerate(row)
        ]
        rows.append(tag("tr", tag("th", f"{number} {label}"), *cells))
    matrix = tag("div", tag("table", head, *rows, class_="matrix"), class_="scroll")
    return _section("Confusions", matrix, tag("h3", "The commonest"), common)


def _shade(share: float, hit: bool) -> str | None:
    return f"background:rgba(var(--{'hit' if hit else 'miss'}),{share:.2f})" if share > 0 else None


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
    return _section(f"The {len(worst)} worst clips", table(header, rows))


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
        source = f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
        return tag("audio", controls="", preload="none", src=source), size
    start = players.page.parent if players.page is not None else Path()
    return tag("audio", controls="", preload="none", src=quote(os.path.relpath(path.resolve(), start.resolve()))), 0


def _failures(result: Result) -> Markup:
    if not result.failures:
        return Markup("")
    rows: list[list[object]] = [
        [failure.get("file_name", ""), failure.get("reason", ""), failure.get("message", "")]
        for failure in result.failures
    ]
    return _section(f"{len(rows):,} clips that could not be read", table(["clip", "reason", "message"], rows))
