"""Finds events without training for them: hear, score by routes, choose thresholds, and judge what was found."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from m2dprep.artifacts.digests import file_digest
from m2dprep.artifacts.errors import Failure, UserError
from m2dprep.evaluation.encoders import CLAP
from m2dprep.evaluation.events.baselines import baselines
from m2dprep.evaluation.events.judgement import Judged, Rules, judge, recorded
from m2dprep.evaluation.events.listening.ear import TAGS, Ear
from m2dprep.evaluation.events.listening.hearing import Hearing, hear
from m2dprep.evaluation.events.listening.kept import Heard
from m2dprep.evaluation.events.presets import TMRL_THRESHOLD, LastMatch
from m2dprep.evaluation.events.routes import MEAN, Both, ByCaptions, ByTags, Route
from m2dprep.evaluation.events.scoring.lists import Event
from m2dprep.evaluation.events.sets.table import EventTable, Recording, missing_files
from m2dprep.evaluation.events.thresholds import Aim, Thresholds, choose_thresholds, given_thresholds
from m2dprep.evaluation.events.timeline import EventSettings, Placing, Timeline, events_of, timeline
from m2dprep.evaluation.events.words import Likeness, Words
from m2dprep.evaluation.protocols.result import Result, software_versions
from m2dprep.evaluation.tagging.inputs import Reading
from m2dprep.evaluation.tagging.sounds import Windows

PROTOCOL, METRIC = "events", "event_f1"
DAY = 24 * 3600.0
# Seconds by which a listed event may end after its sound, since lists are rounded and sounds are cut.
TOO_LATE = 0.5


@dataclass(frozen=True)
class HearSettings:
    """How recordings are cut, and how scores of windows become scores over time."""

    window: float = 2.0
    hop: float = 0.5
    placing: Placing = "mean"
    max_seconds: float = DAY
    ffmpeg: bool | None = None
    read_timeout: float = 120.0

    @property
    def windows(self) -> Windows:
        return Windows(self.window, self.hop)


@dataclass(frozen=True)
class EventPlan:
    """What to do: the recordings to judge, those on which thresholds are chosen, and all settings."""

    table: EventTable
    development: EventTable | None = None
    thresholds: Sequence[str] = ()
    aim: Aim = "f1"
    hearing: HearSettings = field(default_factory=HearSettings)
    events: EventSettings = field(default_factory=EventSettings)
    rules: Rules = field(default_factory=Rules)
    preset: str | None = None
    seed: int = 0


@dataclass(frozen=True)
class Parts:
    """The recordings that are judged, and those of the development part, with what they are called."""

    judged: list[Recording]
    judged_name: str
    development: list[Recording]
    development_name: str
    root: Path


def parts_of(plan: EventPlan) -> Parts:
    """The last part of the table is judged; what comes before it, or a table of its own, is for development.

    Raises `UserError` if there is nothing to choose thresholds on, and none are given.
    """
    table, splits = plan.table, plan.table.splits
    judged = table.of_splits(splits[-1:])
    if plan.development is not None:
        own = {(plan.development.root / one.file).resolve() for one in plan.development.recordings}
        if both := [one.file for one in judged if (table.root / one.file).resolve() in own]:
            raise UserError(
                f"{both[0]} and {len(both) - 1:,} other recordings are in both {table.place} and "
                f"{plan.development.place}; thresholds must not be chosen on what is judged."
            )
        return Parts(judged, splits[-1], plan.development.recordings, str(plan.development.place),
                     plan.development.root)  # fmt: skip
    earlier = splits[:-1]
    development = table.of_splits(earlier)
    if not development and not plan.thresholds and plan.preset is None:
        raise UserError(
            f"{table.place} has one part alone ({splits[-1]}), and thresholds must not be chosen on what is judged: "
            "--development names a table of other recordings with their events, or --threshold gives them."
        )
    return Parts(judged, splits[-1], development, f"the parts {' and '.join(earlier)}", table.root)


def hear_all(
    ears: Sequence[Ear],
    recordings: Sequence[Recording],
    root: Path,
    settings: HearSettings,
    folder: Path,
    say: Callable[[str], object],
    quiet: bool,
) -> list[Hearing]:
    """What each model hears in the recordings. Raises `UserError` if none of them exists."""
    found, names = [], [one.file for one in recordings]
    for ear in ears:
        reading = Reading(ear.front_end, settings.max_seconds, settings.ffmpeg, settings.read_timeout)
        found.append(hear(ear, names, root, settings.windows, reading, folder, quiet=quiet))
        say(found[-1].summary())
    return found


def heard_by_all(hearings: Sequence[Hearing]) -> Iterator[Heard]:
    """Every recording that all models could hear, with the parts of all.

    Models of different sample rates may disagree by a sample on its length, and so on whether it has a last window.
    """
    failed = {one.file_name for hearing in hearings for one in hearing.failures}
    sources = [(one for one in hearing if one.name not in failed) for hearing in hearings]
    for together in zip(*sources, strict=True):
        first = together[0]
        windows = min(len(one.starts) for one in together)
        parts = {name: part[:windows] for one in together for name, part in one.parts.items()}
        yield Heard(first.name, first.seconds, first.starts[:windows], first.ends[:windows], parts, first.digest)


def failures_of(hearings: Sequence[Hearing]) -> list[Failure]:
    """One per recording."""
    return list({one.file_name: one for hearing in hearings for one in hearing.failures}.values())


def routes_of(
    ears: Sequence[Ear],
    words: Words | None,
    names: Mapping[str, Sequence[str]],
    wanted: Sequence[str],
    *,
    similarity: float,
    top: int,
    template: str,
    background: Sequence[str],
    preset: str | None,
) -> dict[str, Route]:
    """The routes that are ``wanted``, by name, in this order."""
    found: dict[str, Route] = {}
    for ear in ears:
        if ear.names is not None:
            assert words is not None
            likeness = Likeness.of(words, ear.names.labels, names)
            found[TAGS] = LastMatch(likeness) if preset is not None else ByTags(likeness, similarity, top)
        if CLAP in ear.parts:
            found[CLAP] = ByCaptions.of(ear.encoder, names, template, background)
    if TAGS in found and CLAP in found:
        found[MEAN] = Both(found[TAGS], found[CLAP])
    return {name: found[name] for name in wanted if name in found}


@dataclass
class Lines:
    """The timelines of every recording by every route, and the digests of their sounds."""

    recordings: list[Recording]
    of_routes: dict[str, list[Timeline]]
    digests: list[str]

    def by(self, route: str) -> list[tuple[Recording, Timeline]]:
        return list(zip(self.recordings, self.of_routes[route], strict=True))

    def only(self, numbers: Sequence[int]) -> Lines:
        lines = {route: [own[number] for number in numbers] for route, own in self.of_routes.items()}
        return Lines([self.recordings[one] for one in numbers], lines, [self.digests[one] for one in numbers])


def timelines(
    hearings: Sequence[Hearing], recordings: Sequence[Recording], routes: Mapping[str, Route], settings: HearSettings
) -> Lines:
    """Scores over time of all that was heard."""
    of_name = {one.file: one for one in recordings}
    found = Lines([], {name: [] for name in routes}, [])
    for heard in heard_by_all(hearings):
        found.recordings.append(of_name[heard.name])
        found.digests.append(heard.digest)
        for name, route in routes.items():
            line = timeline(heard.seconds, heard.starts, heard.ends, route(heard), settings.hop, settings.placing)
            found.of_routes[name].append(line)
    return found


@dataclass
class Found:
    """The events of every recording by a route, and how good they are."""

    route: str
    thresholds: Thresholds
    events: dict[str, list[Event]]
    judged: list[Judged]
    figures: dict[str, Any]
    lines: list[Timeline]


def find(
    plan: EventPlan, parts: Parts, route: str, lines: Lines, development: Lines | None, places: Sequence[str]
) -> Found:
    """The events of a route with the thresholds that hold for it. ``places`` are all recordings, in order."""
    classes = plan.table.classes
    if plan.preset is not None:
        limits = Thresholds(dict.fromkeys(classes, TMRL_THRESHOLD), f"of the preset {plan.preset}", {})
    else:
        limits = choose_thresholds(
            given_thresholds(plan.thresholds, classes), None if development is None else development.by(route),
            classes, plan.events, plan.rules, plan.aim, parts.development_name,
        )  # fmt: skip
    events, judged = {}, []
    for recording, line in lines.by(route):
        own = events_of(line, classes, limits.array(classes), plan.events, recording.classes)
        events[recording.file] = own
        judged.append(Judged(recording, own, line.seconds, line.scores.max(axis=0)))
    ordered = {name: events[name] for name in places if name in events}
    return Found(route, limits, ordered, judged, judge(judged, classes, plan.rules), lines.of_routes[route])


def detect(
    plan: EventPlan,
    ears: Sequence[Ear],
    routes: Mapping[str, Route],
    folder: Path,
    *,
    say: Callable[[str], object] = bool,
    quiet: bool = False,
) -> tuple[Result, list[Found]]:
    """The result, whose score is that of the first route, and what each route found.

    ``folder`` is where what was heard is kept. Raises `UserError` if no recording could be heard.
    """
    parts = parts_of(plan)
    development: Lines | None = None
    counts = {}
    notes = notes_of(routes, plan)
    is_open = len(given_thresholds(plan.thresholds, plan.table.classes)) < len(plan.table.classes)
    if parts.development and is_open and plan.preset is None:
        heard = hear_all(
            ears, parts.development, parts.root, plan.hearing, folder, lambda line: say(f"development: {line}"), quiet
        )
        counts["development"] = [one.counts() for one in heard]
        if lost := failures_of(heard):
            notes.append(
                f"{len(lost):,} development recordings could not be heard ({lost[0].file_name}: {lost[0].message}, "
                "first)"
            )
        development = timelines(heard, parts.development, routes, plan.hearing)
    hearings = hear_all(ears, parts.judged, plan.table.root, plan.hearing, folder, say, quiet)
    counts["judged"] = [one.counts() for one in hearings]
    lines = timelines(hearings, parts.judged, routes, plan.hearing)
    failures = failures_of(hearings)
    if not lines.recordings:
        first = failures[0]
        raise UserError(
            f"none of the {len(parts.judged):,} recordings of {plan.table.place} could be heard ({first.file_name}: "
            f"{first.message}, first; missing: {missing_files(plan.table, parts.judged) or 'none'})."
        )
    if development is not None:
        development, said = without_judged(development, lines, parts)
        notes += said
    notes += beyond_the_end(lines)
    places = [one.file for one in parts.judged]
    found = [find(plan, parts, name, lines, development, places) for name in routes]
    return _result(plan, parts, ears, routes, found, failures, counts, notes), found


def without_judged(development: Lines, judged: Lines, parts: Parts) -> tuple[Lines, list[str]]:
    """The development recordings whose sound is not that of a recording that is judged, and notes on the others.

    Raises `UserError` if none is left.
    """
    name_of = {digest: one.file for digest, one in zip(judged.digests, judged.recordings, strict=True)}
    copies = [number for number, digest in enumerate(development.digests) if digest in name_of]
    notes = []
    if copies:
        first = copies[0]
        also = f"{development.recordings[first].file} sounds as {name_of[development.digests[first]]} does"
        if len(copies) == len(development.recordings):
            raise UserError(
                f"all {len(copies):,} recordings of {parts.development_name} are copies of judged ones ({also}, "
                "first); thresholds must not be chosen on what is judged."
            )
        notes.append(
            f"{len(copies):,} development recordings are copies of judged ones ({also}, first); thresholds are chosen "
            "without them"
        )
    names = {one.file for one in judged.recordings}
    left = [number for number in range(len(development.digests)) if development.digests[number] not in name_of]
    if alike := [development.recordings[one].file for one in left if development.recordings[one].file in names]:
        notes.append(
            f"{len(alike):,} development recordings are called as judged ones are ({alike[0]} first), and sound "
            "otherwise; if they are the same in another format, give other recordings for the thresholds"
        )
    return development.only(left), notes


def _result(
    plan: EventPlan,
    parts: Parts,
    ears: Sequence[Ear],
    routes: Mapping[str, Route],
    found: Sequence[Found],
    failures: Sequence[Failure],
    counts: Mapping[str, Any],
    notes: Sequence[str],
) -> Result:
    best, classes = found[0], plan.table.classes
    events = sum(len(one.recording.events) for one in best.judged)
    n = {"recordings": len(best.judged), "events": events, "classes": len(classes), "failed": len(failures)}
    table = plan.table.place
    digests = {ear.encoder.name: ear.encoder.digest for ear in ears}
    settings = {
        "part": parts.judged_name,
        "window": plan.hearing.window,
        "hop": plan.hearing.hop,
        "placing": plan.hearing.placing,
        **plan.events.to_dict(),
        **plan.rules.to_dict(),
        "preset": plan.preset,
    }
    return Result(
        PROTOCOL, table.parent.name if table.name == "metadata.csv" else table.stem, METRIC,
        best.figures["mean"]["event_f1"],
        n=n,
        settings=settings,
        digests={**digests, "table": file_digest(table)},
        versions=software_versions(),
        model={key: value for ear in ears for key, value in ear.encoder.describe().items()},
        details={
            "classes": classes,
            "route": best.route,
            "routes": {
                one.route: {
                    "thresholds": one.thresholds.to_dict(),
                    **one.figures,
                    "recordings": recorded(one.judged, classes, plan.rules),
                }
                for one in found
            },
            "how": {name: route.describe() for name, route in routes.items()},
            "baselines": baselines(best.judged, classes, plan.rules, plan.seed),
            "heard": dict(counts),
            "notes": list(notes),
        },
        failures=tuple(one._asdict() for one in failures),
    )  # fmt: skip


def beyond_the_end(lines: Lines) -> list[str]:
    """A note if listed events end after the sounds that they are to be in: these times are of something else."""
    ends = [max((event.offset for event in one.events), default=0.0) for one in lines.recordings]
    seconds = [line.seconds for line in next(iter(lines.of_routes.values()))]
    late = [number for number, (end, length) in enumerate(zip(ends, seconds, strict=True)) if end > length + TOO_LATE]
    if not late:
        return []
    first = late[0]
    return [
        f"{len(late):,} of {len(ends):,} recordings are shorter than their events say ({lines.recordings[first].file}: "
        f"an event until {ends[first]:g} s in a sound of {seconds[first]:g} s, first): are these times in seconds, and "
        "of these sounds?"
    ]


def notes_of(routes: Mapping[str, Route], plan: EventPlan) -> list[str]:
    """What a reader of the figures must know, in sentences."""
    found = [line for route in routes.values() if isinstance(route, ByTags) for line in route.lonely]
    if plan.thresholds:
        found.append("the thresholds were given; they must not come from the recordings that are judged")
    empty = sum(not one.events for one in plan.table.recordings)
    if empty == 0:
        found.append("every recording has an event, so that false alarms in quiet ones are not tried")
    return found
