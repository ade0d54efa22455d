"""Sections of a page about data: durations, formats, failures, faults, the spectrum, captions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from m2dprep.artifacts.console import duration
from m2dprep.artifacts.errors import Failure
from m2dprep.artifacts.pages.charts import counted, histogram, spectrum
from m2dprep.artifacts.pages.document import bar, section, side_by_side, with_title
from m2dprep.artifacts.pages.markup import Markup, table, tag
from m2dprep.audioprep.config import LogMelConfig
from m2dprep.audioprep.logmel import mel_edges
from m2dprep.evaluation.overview.conversion import Conversion, Tally
from m2dprep.evaluation.overview.described import Described

BINS, TOP, LONGEST_TEXT = 40, 12, 240
FLAG_NAMES = {
    "silent": "silent: no sample is louder than one step of 16-bit audio",
    "clipped": "clipped: at full scale for three samples in a row",
    "padded": "padded with zeros, because they are short",
}


def sounds_section(found: Conversion) -> Markup:
    """Durations and levels, and what kinds of files the sounds are."""
    seconds = found.seconds[np.isfinite(found.seconds)]
    levels = 20 * np.log10(np.maximum(found.peaks[np.isfinite(found.peaks)], 1e-5))
    kinds = [
        with_title("Sample rates", _tally(found.rates, "Hz")),
        with_title("Channels", _tally(found.channels, "channels")),
        with_title("Kinds of files", _tally(found.suffixes, "suffix")),
        with_title("Decoders", _tally(found.decoders, "decoder")),
    ]
    return section(
        "Sounds",
        side_by_side(
            with_title("Durations", _histogram(seconds, "seconds", "s")),
            with_title("Peaks", _histogram(levels, "decibels, 0 is full scale", "dB")),
        ),
        side_by_side(*kinds),
        with_title("Folders", _tally(found.folders, "folder")) if found.folders.counts.keys() - {"unknown"} else "",
    )


def _tally(tally: Tally, name: str) -> Markup:
    if not tally.counts:
        return Markup("")
    left = len(tally.counts) - TOP
    more = "" if left <= 0 else f"and {left:,}{' or more' if tally.more else ''} others"
    return counted([name, "sounds"], tally.top(TOP), more)


def _histogram(values: np.ndarray, name: str, unit: str) -> Markup:
    """The range of values, and bars; a tail of the largest, of one value in a thousand, is left out of the bars."""
    if not len(values):
        return Markup("")
    low, middle, most, high = np.quantile(values, [0, 0.5, 0.999, 1]).tolist()
    if high - low < 1e-3 * max(1.0, abs(high)):
        return tag("p", f"All are {middle:,.4g} {unit}.", class_="quiet")
    counts, edges = np.histogram(values, bins=BINS, range=(low, max(most, low + 1e-3 * (high - low))))
    spread = f"{low:,.3g} to {high:,.3g} {unit}; half of them are below {middle:,.3g} {unit}."
    return Markup(tag("p", spread, class_="quiet") + histogram(edges.tolist(), counts.tolist(), name))


def failures_section(
    reasons: Mapping[str, int], examples: Mapping[str, Sequence[Failure]], path: object, title: str = "Failures"
) -> Markup:
    """Reasons with their counts and some examples of each."""
    if not reasons:
        return Markup("")
    top = max(reasons.values())
    rows: list[list[object]] = []
    for reason, count in sorted(reasons.items(), key=lambda item: (-item[1], item[0])):
        shown = [
            tag("div", tag("b", one.file_name), " ", tag("span", _short(one.message), class_="quiet"))
            for one in examples.get(reason, ())
        ]
        rows.append([reason, bar(count / top, f"{count:,}", 8), Markup("".join(shown))])
    told = tag("p", "All of them: ", tag("code", f"m2dprep failures {path}"), class_="quiet")
    return section(title, table(["reason", "sources", "for example"], rows), told)


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}…"


def oddities_section(found: Conversion) -> Markup:
    """Silent, clipped and padded clips, and files that are there twice."""
    rows: list[list[object]] = []
    for name, words in FLAG_NAMES.items():
        if found.flags[name]:
            shown = "" if name == "padded" else ", ".join(found.flagged[name])
            rows.append([words, f"{found.flags[name]:,}", shown])
    if found.equal.groups:
        rows.append(
            [
                "equal: the same bytes as another file, by length and digest",
                f"{found.equal.sources:,} in {found.equal.groups:,} group{'s' if found.equal.groups > 1 else ''}",
                Markup("".join(tag("div", " = ".join(names)) for names in found.equal.examples)),
            ]
        )
    return (
        section("Silent, clipped, short, twice", table(["what", "sounds", "for example"], rows)) if rows else Markup("")
    )


def spectrum_section(stats: Mapping[str, Any], front_end: LogMelConfig) -> Markup:
    """The mean and spread of every mel bin, which training normalises by the global ones."""
    mean, spread = stats.get("bin_mean"), stats.get("bin_std")
    if not mean or not spread or len(mean) != front_end.n_mels or len(spread) != len(mean):
        return Markup("")
    hertz = mel_edges(front_end)[1:-1].tolist()
    facts = f"mean {stats['mean']:.4f}, standard deviation {stats['std']:.4f}, of {stats.get('count_files', 0):,} clips"
    drawn = spectrum(hertz, mean, spread, "Hz (mel scale); natural log of power, mean ± one standard deviation")
    return section("Mean spectrum", tag("p", facts, class_="quiet"), drawn)


def captions_section(found: Described, coverage: tuple[int, int] | None) -> Markup:
    """Lengths, sources, labels and repetitions; ``coverage`` says how many of how many listed files have any."""
    if not found.captions:
        return Markup("")
    words = np.flatnonzero(found.words)
    per_clip: list[tuple[object, int]] = [
        (f"{n} caption{'' if n == 1 else 's'}", int(count)) for n, count in enumerate(found.per_clip) if count and n
    ]
    lengths = Markup("")
    if len(words):
        shown = found.words[: min(int(words[-1]) + 1, 81)].tolist()
        lengths = histogram([at - 0.5 for at in range(len(shown) + 1)], shown, "words in a caption")
    split = [one for one in found.splits if one[0] != "none"]
    covered = ""
    if coverage is not None and coverage[1]:
        share = coverage[0] / coverage[1]
        covered = tag("p", bar(share, f"{coverage[0]:,} of {coverage[1]:,} listed files have captions ({share:.1%})"))
    return section(
        "Captions",
        covered,
        side_by_side(
            with_title("Length", lengths),
            with_title("Captions per clip", counted(["clips with", "clips"], per_clip[:TOP])),
        ),
        side_by_side(
            with_title("Sources", counted(["source", "captions"], found.sources)),
            with_title("Splits", counted(["split", "captions"], found.splits) if split else Markup("")),
        ),
        side_by_side(
            with_title(f"Labels, {found.label_names:,} in all", counted(["label", "captions"], found.labels)),
            with_title("The same text for several captions", counted(["caption", "captions"], found.commonest)),
        ),
        _findings(found),
    )


def _findings(found: Described) -> Markup:
    of = f"of {found.linted:,} captions" + (", those of clips that were drawn" if found.linted < found.captions else "")
    if not found.findings:
        return with_title("What a model should not learn from", tag("p", f"Nothing was found {of}.", class_="quiet"))
    rows: list[list[object]] = [
        [
            rule,
            f"{found.findings[rule]:,}",
            Markup("".join(tag("div", tag("b", clip), " ", _short(text)) for clip, text in shown)),
        ]
        for rule, shown in found.examples.items()
    ]
    return with_title(f"What a model should not learn from, {of}", table(["rule", "captions", "for example"], rows))


def hours(seconds: float) -> str:
    """``5421 h``, ``3.2 h`` or ``12:30``."""
    return (
        duration(seconds)
        if seconds < 3600
        else f"{seconds / 3600:,.1f} h"
        if seconds < 3.6e6
        else (f"{seconds / 3600:,.0f} h")
    )
