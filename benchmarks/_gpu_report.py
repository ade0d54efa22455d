"""The results of `gpu.py` as Markdown: the promised and the measured figures, then every part by itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from _machine import table

Figures = Mapping[str, Any]


@dataclass(frozen=True)
class Target:
    """A figure of a part with a lower or upper bound. ``unless`` names another figure that may explain a miss."""

    words: str
    part: str
    figure: str
    bound: float
    at_least: bool = True
    unless: str | None = None
    form: str = "{:.2f}"

    def row(self, parts: Mapping[str, Figures]) -> list[str]:
        """The row in the table of targets; ``not measured`` if the part never came that far."""
        figures = parts.get(self.part, {}).get("figures", {})
        value = at(figures, self.figure)
        sign = "≥" if self.at_least else "≤"
        wanted = f"{sign} {self.form.format(self.bound)}"
        if value is None:
            return [self.words, wanted, "not measured", ""]
        holds = value >= self.bound if self.at_least else value <= self.bound
        verdict = "yes" if holds else "**no**"
        if not holds and self.unless is not None and (share := at(figures, self.unless)) is not None:
            verdict += f" ({self.unless.replace('_', ' ')}: {share:.0%})"
        return [self.words, wanted, self.form.format(value), verdict]


TARGETS = (
    Target("failures among the tests on a GPU", "parity", "failed", 0, at_least=False, form="{:.0f}"),
    Target("training step, times plain eager", "train-step", "step.times_plain", 2.0),
    Target("the same with --compile", "train-step", "compiled.times_plain", 2.0),
    Target("training step, share of the bf16 peak", "train-step", "step.utilisation", 0.45, form="{:.1%}"),
    Target("the same with --compile", "train-step", "compiled.utilisation", 0.45, form="{:.1%}"),
    Target("times that a step makes the host wait", "train-step", "step.host_waits", 0, at_least=False, form="{:.1f}"),
    Target(
        "2,084,320 captions, seconds", "captions", "summary.seconds_for_audioset", 60, at_least=False, form="{:.0f}"
    ),
    Target("captions, times sentence-transformers", "captions", "summary.times_library", 1.0),
    Target("melspec, times all cores", "melspec", "times_cpu", 5.0, unless="share_of_decoding"),
    Target("training, share of waiting for data", "feed", "training.data_wait", 0.02, at_least=False, form="{:.1%}"),
)


def at(figures: Figures, path: str) -> float | None:
    """The number at a ``path`` like ``step.seconds``; None if it is missing."""
    value: Any = figures
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return None if value is None else float(value)


def markdown(results: Mapping[str, Any]) -> str:
    """The whole report."""
    parts = results["parts"]
    lines = [
        f"# m2dprep on {results['device'] or 'an unknown device'}",
        "",
        *(f"- {words}" for words in _about(results)),
        "",
    ]
    if results["quick"]:
        lines += ["A quick rehearsal: it shows that everything runs, and its figures mean nothing.", ""]
    else:
        lines += [table(["target", "wanted", "measured", "holds"], [target.row(parts) for target in TARGETS]), ""]
    for name, part in parts.items():
        lines += [f"## {name}: {part['status']}, {part['seconds']} of {part['limit']} s", ""]
        lines += [f"`{part['command']}`", "", _figures(part["figures"]), ""]
        if part["status"] != "ok":
            lines += ["```", part["output"].strip(), "```", ""]
    return "\n".join(lines)


def _about(results: Mapping[str, Any]) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    return [
        f"{results['started']} UTC, commit {results['commit'] or 'unknown'}, sources {results['sources']}",
        f"driver {results['driver'] or 'none'}; {results['machine']}",
        versions,
        f"brought along: {', '.join(results['brought_along']) or 'nothing'}",
    ]


def _figures(figures: Figures) -> str:
    """A table of names and values; the names of nested figures start with their group's name."""
    rows: list[list[str]] = []

    def add(prefix: str, values: Figures) -> None:
        for name, value in values.items():
            if isinstance(value, Mapping):
                add(f"{prefix}{name}.", value)
            else:
                rows.append([prefix + name, _shown(value)])

    add("", figures)
    return table(["figure", "value"], rows) if rows else "No figures."


def _shown(value: object) -> str:
    if isinstance(value, list):
        return "; ".join(map(_shown, value))
    words = f"{value:,.4g}" if isinstance(value, float) else str(value)
    return words.replace("|", "\\|").replace("\n", " ")
