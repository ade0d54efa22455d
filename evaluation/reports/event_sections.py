"""What a page says of events and scenes: rates of each class, thresholds, baselines, loudness, pictures, tags."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.layout import inside
from m2dprep.artifacts.pages.markup import Markup, escaped, table, tag
from m2dprep.evaluation.protocols.result import Result

EVENTS, SCENES = "events", "scenes"
MOST_PICTURES, PICTURE_BYTES = 24, 2_000_000
TAGS_SHOWN = 10
ONE_LINE = "white-space:nowrap"


def event_sections(result: Result, path: Path | None) -> list[Markup]:
    """The sections of a result of events or scenes; none of any other. ``path`` is the result's file."""
    if result.protocol == SCENES:
        return [one for one in (_rankings(result), _tag_clouds(result), _notes(result)) if one]
    if result.protocol != EVENTS:
        return []
    parts = [_routes(result), _classes(result), _loudness(result), _thresholds(result), _pictures(result, path)]
    return [one for one in (*parts, _words(result), _notes(result)) if one]


def _section(title: str, *content: object) -> Markup:
    return tag("section", tag("h2", title), *content)


def _rate(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def _with_interval(value: float | None, interval: Sequence[float] | None, shown: Any) -> Markup:
    """A figure with its interval below it."""
    if not interval:
        return escaped(shown(value))
    within = tag("span", f"{shown(interval[0])} … {shown(interval[1])}", class_="quiet", style=ONE_LINE)
    return Markup(escaped(shown(value)) + "<br>" + within)


def _bar(share: float, width: float) -> Markup:
    """A bar of at most so many em for a share of 1, with the per cent beside it."""
    bar = tag("span", class_="bar", style=f"width:{round(width * share, 2)}em")
    return tag("span", Markup(bar + escaped(_share(share))), style=ONE_LINE)


MEASURES = (
    ("event_f1", "event F1, %", _share),
    ("event_error_rate", "event error rate", _rate),
    ("segment_f1", "segment F1, %", _share),
    ("segment_error_rate", "segment error rate", _rate),
    ("clip_auc", "clip AUC, %", _share),
    ("clip_ap", "clip AP, %", _share),
)


def _routes(result: Result) -> Markup:
    """The means over classes of each route, with 95 % intervals, above what can be had without hearing."""
    rows: list[list[object]] = []
    for name, own in result.details["routes"].items():
        cells = [_with_interval(own["mean"].get(key), own["intervals"].get(key), shown) for key, _, shown in MEASURES]
        rows.append([tag("b", name), *cells, f"{own['false_alarms']:,}"])
    for key, name in (("random", "at random"), ("always_on", "always on")):
        own = result.details["baselines"].get(key, {})
        rows.append([tag("i", name, style=ONE_LINE), *(shown(own.get(measure)) for measure, _, shown in MEASURES), ""])
    header: list[object] = ["route", *(title for _, title, _ in MEASURES), "recordings with a false alarm"]
    return _section("Means over classes", tag("div", table(header, rows), class_="scroll"))


def _classes(result: Result) -> Markup:
    own = result.details["routes"][result.details["route"]]
    rows: list[list[object]] = []
    for one in own["per_class"]:
        event, segment, clip = one["event"], one["segment"], one["clip"]
        bar = _bar(event["f1"], 8) if event["f1"] is not None else "–"
        rows.append(
            [tag("span", one["label"], style=ONE_LINE), f"{one['positive']:,} of {one['n']:,}", bar,
             _rate(event["error_rate"]), f"{event['hits']:,}", f"{event['deletions']:,}", f"{event['insertions']:,}",
             _share(segment["f1"]), _share(clip["auc"]), _share(clip["ap"])]
        )  # fmt: skip
    header: list[object] = ["class", "recordings with it", "event F1, %", "error rate", "hits", "missed", "false",
                            "segment F1, %", "clip AUC, %", "clip AP, %"]  # fmt: skip
    return _section(f"Classes, by {result.details['route']}", tag("div", table(header, rows), class_="scroll"))


def _loudness(result: Result) -> Markup:
    rows: list[list[object]] = [
        [f"{one['ebr']:g}", f"{one['n']:,}", _share(one["event_f1"]), _rate(one["event_error_rate"]),
         _share(one["event_recall"]), _share(one["clip_auc"])]
        for one in result.details["routes"][result.details["route"]]["by_ebr"]
    ]  # fmt: skip
    header: list[object] = ["event to background, dB", "recordings", "event F1, %", "error rate", "recall, %", "AUC, %"]
    return _section("By loudness", table(header, rows)) if rows else Markup("")


def _thresholds(result: Result) -> Markup:
    rows: list[list[object]] = []
    for name, own in result.details["routes"].items():
        limits = own["thresholds"]
        values = ", ".join(f"{label} {value:.4g}" for label, value in limits["values"].items())
        rows.append([name, values, limits["source"]])
    return _section("Thresholds", table(["route", "thresholds", "where from"], rows))


def _pictures(result: Result, path: Path | None) -> Markup:
    found = []
    for one in result.details.get("pictures", [])[:MOST_PICTURES]:
        data = None if path is None else _picture(path.parent, str(one.get("picture", "")))
        if data is not None:
            source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
            found.append(tag("p", tag("img", src=source, alt=one["file"], style="max-width:100%"), class_="scroll"))
            found.append(tag("p", f"{one['file']}: {one['kind']}", class_="quiet"))
    return _section("Recordings", *found) if found else Markup("")


def _picture(folder: Path, name: str) -> bytes | None:
    try:
        path = inside(folder, name)
        return path.read_bytes() if 0 < path.stat().st_size <= PICTURE_BYTES else None
    except (UserError, OSError):
        return None


def _words(result: Result) -> Markup:
    """Which tags speak for which class."""
    own: Mapping[str, Any] = result.details.get("how", {}).get("tags", {}).get("tags", {})
    rows: list[list[object]] = []
    for label, tags in own.items():
        said = ", ".join(f"{one['tag']} {one['cosine']:.2f}" for one in tags)
        rows.append([label, ", ".join(result.details.get("names", {}).get(label, [])), said])
    if not rows:
        return Markup("")
    return _section("Tags that are like the names", table(["class", "name", "tags, cosine"], rows))


def _rankings(result: Result) -> Markup:
    rows: list[list[object]] = []
    for name, own in result.details["rankings"].items():
        top = [_with_interval(own[key], own["intervals"].get(key), _share) for key in ("accuracy", "top5")]
        rows.append([name, *top])
    rows.append([tag("i", "at random"), *(_share(result.details["chance"][key]) for key in ("accuracy", "top5"))])
    return _section("Ways to rank", table(["way", "first is right, %", "among the best five, %"], rows))


def _tag_clouds(result: Result) -> Markup:
    """Bars of the tags that were heard in each scene."""
    clouds: Mapping[str, Sequence[Sequence[Any]]] = result.details.get("tags", {})
    rows: list[list[object]] = []
    for label, tags in clouds.items():
        most = max((float(share) for _, share in tags), default=1.0) or 1.0
        for number, (name, share) in enumerate(tags[:TAGS_SHOWN]):
            rows.append([tag("b", label) if number == 0 else "", name, _bar(float(share), 20 / most)])
    header: list[object] = ["scene", "tag", "% of its tags"]
    return _section("What was heard in each scene", table(header, rows)) if rows else Markup("")


def _notes(result: Result) -> Markup:
    notes = result.details.get("notes", [])
    return _section("To know", tag("ul", *(tag("li", one) for one in notes))) if notes else Markup("")
