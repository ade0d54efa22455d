"""`m2dprep events` as a function: models, names, recordings → a folder of event lists, figures and a page.

```
DIR/
  events_tags.tsv, …    the events of every recording by each route: file, onset, offset, label, score
  scores_tags.csv, …    the highest score of each class in every recording
  pictures/             recordings with reference and found events
  report.html           all of it as a page
  result.json           figures, thresholds and where they come from, settings, digests
  heard/                what was heard, so that other thresholds or names need no hearing
```
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.files import replace_together, write_text
from m2dprep.artifacts.folders import make_folder
from m2dprep.artifacts.locks import exclusive
from m2dprep.artifacts.tables import write_csv
from m2dprep.evaluation.clip_set import read_classes
from m2dprep.evaluation.events.detect import EventPlan, Found, HearSettings, detect, parts_of, routes_of
from m2dprep.evaluation.events.judgement import Rules
from m2dprep.evaluation.events.listening.prune import prune
from m2dprep.evaluation.events.models import Models, listeners
from m2dprep.evaluation.events.pictures import DRAWN, Pictures, draw_recordings
from m2dprep.evaluation.events.presets import TMRL_HOP, TMRL_WINDOW
from m2dprep.evaluation.events.routes import BACKGROUND, ROUTES
from m2dprep.evaluation.events.scoring.event_based import EventRule
from m2dprep.evaluation.events.scoring.lists import write_event_list
from m2dprep.evaluation.events.sets.names import names_of
from m2dprep.evaluation.events.sets.table import EventTable, read_event_table
from m2dprep.evaluation.events.thresholds import Aim, given_thresholds
from m2dprep.evaluation.events.timeline import EventSettings
from m2dprep.evaluation.protocols.result import Result
from m2dprep.evaluation.reports.outcomes import Reported
from m2dprep.evaluation.reports.page import page

HEARD, RESULT, REPORT, PICTURES = "heard", "result.json", "report.html", "pictures"


@dataclass(frozen=True)
class EventRequest:
    """The options of the command; see there."""

    table: Path
    output: Path
    models: Models
    root: Path | None = None
    development: Path | None = None
    classes: Path | None = None
    names: Sequence[str] = ()
    routes: Sequence[str] = ()
    similarity: float = 0.5
    top: int = 0
    template: str = "{label} can be heard"
    background: Sequence[str] = BACKGROUND
    thresholds: Sequence[str] = ()
    aim: Aim = "f1"
    hearing: HearSettings = field(default_factory=HearSettings)
    events: EventSettings = field(default_factory=EventSettings)
    rule: EventRule = field(default_factory=EventRule)
    preset: str | None = None
    pictures: int = 6
    seed: int = 0
    quiet: bool = False
    say: Callable[[str], object] = bool
    """Is told, in a line, what became of the recordings of every part."""


def run_events(request: EventRequest) -> Result:
    """Find the events, judge them, and write the folder. Raises `UserError` for anything that cannot be done."""
    request = with_preset(request)
    plan = plan_of(request)
    parts_of(plan)  # what cannot be done is said before a model is loaded
    given_thresholds(plan.thresholds, plan.table.classes)
    require_own_pictures(request.output / PICTURES)
    names = names_of(plan.table.classes, plan.table.names, request.names)
    heard_by = listeners(request.models, request.routes)
    routes = routes_of(
        heard_by.ears, heard_by.words, names, heard_by.routes,
        similarity=request.similarity, top=request.top, template=request.template, background=request.background,
        preset=request.preset,
    )  # fmt: skip
    make_folder(request.output)
    result, found = detect(plan, heard_by.ears, routes, request.output / HEARD, say=request.say, quiet=request.quiet)
    result = result.about(
        details={"names": {label: list(own) for label, own in names.items()}}, settings={"seed": request.seed}
    )

    def draw(place: Path) -> Pictures:
        return draw_recordings(found[0], plan.table, heard_by.ears[0].front_end, place, request.pictures, plan.rules)

    with exclusive(request.output):
        result = write_folder(request.output, result, found, plan.table, draw)
    prune(request.output / HEARD)
    return result


def with_preset(request: EventRequest) -> EventRequest:
    """The request with the settings of its preset, for routes of tags alone."""
    if request.preset is None:
        return request
    if request.thresholds:
        raise UserError(f"--preset {request.preset} names a window after any match; it has no --threshold.")
    if set(request.routes) - {"tags"}:
        raise UserError(f"--preset {request.preset} reads tags; it has no other --route.")
    hearing = replace(request.hearing, window=TMRL_WINDOW, hop=TMRL_HOP)
    return replace(request, routes=("tags",), hearing=hearing, events=replace(request.events, exclusive=True))


def plan_of(request: EventRequest) -> EventPlan:
    """The tables that the request names, with all settings. Raises `UserError` if two tables do not fit."""
    classes = () if request.classes is None else read_classes(request.classes)
    table = read_event_table(request.table, request.root, classes)
    development = None
    if request.development is not None:
        development = read_event_table(request.development, None, table.classes)
    return EventPlan(
        table, development, request.thresholds, request.aim, request.hearing, request.events,
        Rules(request.rule), request.preset, request.seed,
    )  # fmt: skip


def write_folder(
    folder: Path, result: Result, found: Sequence[Found], table: EventTable, draw: Callable[[Path], Pictures]
) -> Result:
    """Replace the pictures, the lists, the page and the result, all together. Returns the result with its pictures.

    ``draw`` draws into a folder that it is given.
    """
    lists = [name for route in ROUTES for name in (f"events_{route}.tsv", f"scores_{route}.csv")]

    def write(place: Path) -> None:
        nonlocal result
        pictures = draw(place / PICTURES)
        notes = [*result.details["notes"], *([pictures.note] if pictures.note else [])]
        result = result.about(details={"pictures": pictures.files, "notes": notes})
        for one in found:
            write_event_list(place / f"events_{one.route}.tsv", one.events)
            rows = [[own.recording.file, *(f"{value:.6g}" for value in own.highest.tolist())] for own in one.judged]
            write_csv(place / f"scores_{one.route}.csv", ["file", *table.classes], rows)
        write_text(place / REPORT, page(Reported(result, path=place / RESULT)))
        result.write(place / RESULT)

    replace_together(folder, (*lists, REPORT, RESULT), write, folders=(PICTURES,))
    return result


def require_own_pictures(folder: Path) -> None:
    """Raise `UserError` if the folder of pictures, which is replaced, holds what was not drawn by an earlier run."""
    others = sorted(path.name for path in folder.glob("*") if not DRAWN.fullmatch(path.name))
    if others:
        raise UserError(f"{folder} would be replaced, and holds {others[0]}, which is none of ours; choose another -o.")
