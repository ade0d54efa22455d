"""Renders a zero-shot result as text: the accuracy, results per class, the confusion table, and the failed clips."""

from __future__ import annotations

from m2dprep.artifacts.failures.shown import first_lines
from m2dprep.evaluation.zeroshot import ZeroShotResult

# A wider table wraps in a terminal; for more classes the most common confusions are listed instead.
MAX_COLUMNS = 20
CONFUSIONS_SHOWN = 20


def render(result: ZeroShotResult) -> str:
    """The report in several paragraphs, the accuracy first."""
    parts = [_headline(result), _per_class(result), _confusion(result)]
    if result.failures:
        parts.append("\n".join(first_lines(result.failures, len(result.failures), "--json lists all")))
    return "\n\n".join(parts)


def _headline(result: ZeroShotResult) -> str:
    accuracy = "none could be read" if result.accuracy is None else f"{result.accuracy:.2%}"
    return (
        f"accuracy {accuracy} ({result.correct:,} of {result.classified:,} clips, {len(result.classes)} classes, "
        f"chance {1 / len(result.classes):.2%})\n"
        f"{result.classified + len(result.failures):,} clips = {result.classified:,} classified "
        f"+ {len(result.failures):,} failed\n"
        f"checkpoint {result.checkpoint}\n"
        f"captions {result.template!r} by {result.text_model}"
    )


def _per_class(result: ZeroShotResult) -> str:
    rows = [["class", "clips", "right", "accuracy"]]
    for index, (label, counts) in enumerate(zip(result.classes, result.confusion, strict=True)):
        total, right = sum(counts), counts[index]
        rows.append([label, str(total), str(right), f"{right / total:.1%}" if total else "–"])
    return _table(rows)


def _confusion(result: ZeroShotResult) -> str:
    """The whole table if it fits, with columns numbered as the rows are; else the most common confusions."""
    if len(result.classes) > MAX_COLUMNS:
        return _commonest_confusions(result)
    rows = [["true \\ predicted", *(str(number) for number in range(len(result.classes)))]]
    for number, (label, counts) in enumerate(zip(result.classes, result.confusion, strict=True)):
        rows.append([f"{number} {label}", *(str(count) if count else "·" for count in counts)])
    return _table(rows)


def _commonest_confusions(result: ZeroShotResult) -> str:
    wrong = [
        (count, result.classes[true], result.classes[predicted])
        for true, counts in enumerate(result.confusion)
        for predicted, count in enumerate(counts)
        if count and predicted != true
    ]
    wrong.sort(key=lambda item: (-item[0], item[1], item[2]))
    rows = [["clips", "true", "predicted"], *([str(count), a, b] for count, a, b in wrong[:CONFUSIONS_SHOWN])]
    return "commonest confusions\n" + _table(rows) if wrong else "no confusions"


def _table(rows: list[list[str]]) -> str:
    """Columns two spaces apart; numbers aligned right and text left, judged by the first data row."""
    sample = rows[1] if len(rows) > 1 else rows[0]
    right = [cell.rstrip("%").replace(".", "").isdigit() or cell in ("·", "–") for cell in sample]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in rows
    )
