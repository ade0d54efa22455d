"""The report of trials: a table by stage, a table by call, and every problem with the way to reproduce it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from _fault_injection import KINDS
from _fault_stages import Stage
from _fault_trials import FAULT, KILL, Outcome
from _machine import machine, table

COUNTED = ("trials", KILL, FAULT)
ENDS = ("done", "stopped, file named", "stopped, no file named", "resumed equal", "temporaries left")
BAD = ("lost", "earlier one gone", "traceback", "died", "hung", "exit 0, incomplete", "outlived")


def by_stage(outcomes: Sequence[Outcome], stages: Sequence[Stage]) -> dict[str, Counter[str]]:
    """Counts of every stage, and of all together."""
    counts: dict[str, Counter[str]] = {stage.name: Counter() for stage in stages}
    for outcome in outcomes:
        counts[outcome.stage].update(outcome.counts, trials=1)
        counts[outcome.stage].update(outcome.problems.keys())
    counts["all"] = sum(counts.values(), Counter())
    return counts


def by_call(outcomes: Sequence[Outcome]) -> list[list[str]]:
    """One row per kind of call: how often a process was killed at it, and how often it failed with which errors."""
    counts: dict[str, Counter[str]] = {}
    for what, call in (label.split(" ", 1) for outcome in outcomes for label in outcome.calls):
        counts.setdefault(call, Counter())[what] += 1
    rows = []
    for call in [*(kind for kind in KINDS if kind in counts), *sorted(set(counts) - set(KINDS))]:
        errors = ", ".join(f"{name} {count}" for name, count in counts[call].most_common() if name != "kill")
        rows.append([call, str(counts[call]["kill"]), errors])
    return rows


def as_dict(outcomes: Sequence[Outcome], stages: Sequence[Stage], notes: dict[str, Any]) -> dict[str, Any]:
    """The report for machines; only outcomes with a remark are listed."""
    told = [vars(outcome) for outcome in outcomes if outcome.problems or outcome.notes]
    return {"machine": machine(), **notes, "stages": by_stage(outcomes, stages), "outcomes": told}


def as_text(outcomes: Sequence[Outcome], stages: Sequence[Stage], notes: dict[str, Any]) -> str:
    """The tables in Markdown."""
    counts = by_stage(outcomes, stages)
    total = counts["all"]
    lines = [
        f"{machine()}; {'through a preloaded library' if notes['preloaded'] else 'in Python alone'}",
        f"{total['trials']:,} trials, {total[KILL]:,} kills, {total[FAULT]:,} faults in {notes['seconds'] / 60:.1f} "
        f"minutes, seed {notes['seed']}",
        "",
        table(
            ["stage", "trials", "kills", "faults", *ENDS, *BAD],
            [[name, *(str(count[column]) for column in (*COUNTED, *ENDS, *BAD))] for name, count in counts.items()],
        ),
        "",
        table(["call", "kills", "faults"], by_call(outcomes)),
    ]
    for outcome in outcomes:
        for name, words in {**outcome.problems, **outcome.notes}.items():
            lines += ["", f"{name}: {outcome.stage}, {', then '.join(outcome.plan)} (--trial {outcome.number})", words]
    return "\n".join(lines)
