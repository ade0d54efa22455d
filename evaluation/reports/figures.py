"""The figures of a result as texts: the score with its interval, what it is of, and the papers' figures beside it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from m2dprep.evaluation.protocols.result import Result
from m2dprep.evaluation.task import PaperScore, Task

# Scores that are shares and shown in per cent; others, such as RankMe, are shown as they are.
SHARES = (
    "accuracy",
    "mAP",
    "AUC",
    "event_f1",
    "event_precision",
    "event_recall",
    "segment_f1",
    "clip_",
    "t2a_",
    "a2t_",
    "precision@",
)
TAGGING = (("auc", "AUC"), ("d_prime", "d'"))
FACTS = ("protocol", "task", "metric", "score", "clips")


def is_share(metric: str) -> bool:
    """Whether the metric is a share of 1."""
    return metric.startswith(SHARES) and not metric.endswith(("medR", "meanR"))


def shown(value: float | None, metric: str) -> str:
    """A score as papers print it."""
    if value is None:
        return "–"
    return f"{100 * value:.2f}" if is_share(metric) else f"{value:.2f}"


def signed(value: float, metric: str) -> str:
    """A difference with its sign."""
    return f"{'−' if value < 0 else '+'}{shown(abs(value), metric)}"


def score_text(result: Result) -> str:
    """The score with its interval over seeds."""
    text = shown(result.score, result.metric)
    return text if result.interval is None else f"{text} ± {shown(result.interval, result.metric)}"


def papers_for(result: Result, task: Task | None) -> list[PaperScore]:
    """The published figures of the same protocol and metric."""
    return [] if task is None else task.published(result.protocol, result.metric)


def all_figures(result: Result) -> list[tuple[str, float | None]]:
    """(metric, value) of the score and of all others that the protocol measures."""
    found: list[tuple[str, float | None]] = [(result.metric, result.score)]
    if (top5 := result.details.get("top5")) is not None:
        found.append(("accuracy of the best five", top5))
    if (precision := result.details.get("precision@10")) is not None:
        found.append(("precision@10 of words", precision))
    if (some := result.details.get("mAP_of_classes_with_positives")) is not None:
        found.append(("mAP of classes with positives", some))
    found += [(name, result.details[key]) for key, name in TAGGING if result.details.get(key) is not None]
    for side in ("t2a", "a2t"):
        values = result.details.get(side)
        if isinstance(values, Mapping):
            found += [(f"{side}_{name}", value) for name, value in values.items() if f"{side}_{name}" != result.metric]
    route = result.details.get("routes", {}).get(result.details.get("route"), {})
    found += [(name, value) for name, value in route.get("mean", {}).items() if name != result.metric]
    for name in ("rank_me", "cev_auc", "collapsed_share"):
        if name in result.details and name != result.metric:
            found.append((name, result.details[name]))
    return found


def counts_text(result: Result) -> str:
    """``2,000 clips, 50 classes``."""
    return ", ".join(f"{value:,} {name.replace('_', ' ')}" for name, value in result.n.items())


def per_class(result: Result) -> list[tuple[str, int, float | None]]:
    """(class, clips, accuracy or average precision), the worst first."""
    rows = result.details.get("per_class")
    if not isinstance(rows, list):
        return []
    found = [(str(row["label"]), int(row["n"]), row.get("accuracy", row.get("ap"))) for row in rows]
    return sorted(found, key=lambda row: (row[2] is None, row[2] if row[2] is not None else 0.0, row[0]))


def commonest_confusions(result: Result, most: int = 20) -> list[tuple[int, str, str]]:
    """(clips, class, predicted class), the commonest first."""
    classes = result.details.get("classes", [])
    listed = result.details.get("commonest_confusions")
    if listed is None:
        counts = result.details.get("confusion") or []
        listed = [(true, guess, n) for true, row in enumerate(counts) for guess, n in enumerate(row)]
    wrong = [(int(n), str(classes[true]), str(classes[guess])) for true, guess, n in listed if n and true != guess]
    return sorted(wrong, key=lambda row: (-row[0], row[1], row[2]))[:most]


def facts_of(result: Result) -> list[tuple[str, str]]:
    """(name, value) of everything that another person needs to doubt or repeat the score."""
    found: list[tuple[str, str]] = [("measured on", counts_text(result))]
    if result.seeds:
        scores = ", ".join(
            f"{seed}: {shown(score, result.metric)}" for seed, score in zip(result.seeds, result.scores, strict=False)
        )
        found.append(("seeds", scores or ", ".join(map(str, result.seeds))))
    found.append(("EVAR's defects", "reproduced (--strict-evar)" if result.strict_evar else "not reproduced"))
    for title, values in (
        ("model", result.model),
        ("settings", result.settings),
        ("digests", result.digests),
        ("versions", result.versions),
    ):
        found += [(f"{title}: {key}", _text(value)) for key, value in values.items()]
    return found


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value))
    return str(value)


def aligned(rows: Iterable[Iterable[str]], left: Collection[int] = (0,)) -> str:
    """Rows as columns two spaces apart, those with a number in ``left`` to the left and all others to the right."""
    table = [list(row) for row in rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    )
