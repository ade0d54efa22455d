"""Results of events and scenes in a few lines for a terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from m2dprep.evaluation.protocols.result import Result
from m2dprep.evaluation.reports.figures import aligned


def _share(value: float | None, interval: Any = None) -> str:
    text = "–" if value is None else f"{value:.1%}"
    return text + (f" [{interval[0]:.1%}, {interval[1]:.1%}]" if interval else "")


def _rate(value: float | None, interval: Any = None) -> str:
    text = "–" if value is None else f"{value:.3f}"
    return text + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")


def event_lines(result: Result, folder: Path) -> str:
    """The means of every route above the baselines, the classes of the first, thresholds and notes."""
    details = result.details
    lines = [
        f"events {result.task}: {result.n['recordings']:,} recordings with {result.n['events']:,} events of "
        f"{result.n['classes']} classes, the part {result.settings['part']}",
        "",
    ]
    rows = [["mean over classes", "event F1", "error rate", "segment F1", "clip AUC", "clip AP"]]
    for name, own in details["routes"].items():
        mean, within = own["mean"], own["intervals"]
        rows.append(
            [name, _share(mean["event_f1"], within.get("event_f1")),
             _rate(mean["event_error_rate"], within.get("event_error_rate")), _share(mean["segment_f1"]),
             _share(mean["clip_auc"]), _share(mean["clip_ap"])]
        )  # fmt: skip
    for key, name in (("random", "at random"), ("always_on", "always on")):
        own = details["baselines"][key]
        rows.append(
            [name, _share(own["event_f1"]), _rate(own["event_error_rate"]), _share(own["segment_f1"]),
             _share(own["clip_auc"]), _share(own["clip_ap"])]
        )  # fmt: skip
    lines += [aligned(rows), ""]
    best = details["routes"][details["route"]]
    rows = [[f"by {details['route']}", "event F1", "error rate", "hits", "missed", "false", "threshold"]]
    for one in best["per_class"]:
        event = one["event"]
        rows.append(
            [one["label"], _share(event["f1"]), _rate(event["error_rate"]), f"{event['hits']:,}",
             f"{event['deletions']:,}", f"{event['insertions']:,}",
             f"{best['thresholds']['values'][one['label']]:.4g}"]
        )  # fmt: skip
    lines += [aligned(rows), "", f"thresholds: {best['thresholds']['source']}"]
    return "\n".join([*lines, *_ending(result, folder)])


def _ending(result: Result, folder: Path) -> list[str]:
    lines = [f"note: {one}" for one in result.details["notes"]]
    return [*lines, f"{folder}/report.html, {folder}/result.json"]


def scene_lines(result: Result, folder: Path) -> str:
    """All ways to rank above chance, and notes."""
    details = result.details
    lines = [f"scenes {result.task}: {result.n['recordings']:,} recordings of {result.n['classes']} scenes", ""]
    rows = [["ranked by", "first is right", "among the best five"]]
    for way, own in details["rankings"].items():
        within = own["intervals"]
        rows.append([way, _share(own["accuracy"], within["accuracy"]), _share(own["top5"], within["top5"])])
    rows.append(["chance", _share(details["chance"]["accuracy"]), _share(details["chance"]["top5"])])
    return "\n".join([*lines, aligned(rows), "", *_ending(result, folder)])


def list_lines(figures: dict[str, Any]) -> str:
    """The figures of two lists: all together, and every class."""
    rows = [["", "event F1", "error rate", "hits", "substituted", "missed", "false", "segment F1", "error rate"]]
    everything = {"label": "all together", **figures["overall"]}
    for one in (everything, *figures["per_class"]):
        event, segment = one["event"], one["segment"]
        rows.append(
            [one["label"], _share(event["f1"]), _rate(event["error_rate"]), f"{event['hits']:,}",
             f"{event['substitutions']:,}", f"{event['deletions']:,}", f"{event['insertions']:,}",
             _share(segment["f1"]), _rate(segment["error_rate"])]
        )  # fmt: skip
    mean = figures["mean"]
    rows.insert(
        2, ["mean over classes", _share(mean["event_f1"]), _rate(mean["event_error_rate"]), "", "", "", "",
            _share(mean["segment_f1"]), _rate(mean["segment_error_rate"])]
    )  # fmt: skip
    empty = figures["files_without_a_line"]
    note = [f"{empty:,} of them have no line in the found list: nothing was found there"] if empty else []
    if figures["events_not_judged"]:
        note.append(f"{figures['events_not_judged']:,} found events are of classes that their files are not judged on")
    return "\n".join([f"{figures['files']:,} files", *note, "", aligned(rows)])
