"""The few figures that say how a stage went, from the JSON that its command prints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from artifacts.json_text import load_json

# Keys at the top of a result, by kind of stage; of other kinds the first numbers.
CHOSEN = {
    "stats": ("mean", "std", "count_files"),
    "embed-captions": ("rows", "dim"),
    "train": ("epochs", "steps", "loss", "clips"),
    "zero-shot": ("accuracy", "clips", "failed"),
}
MOST = 4


def read_figures(kind: str, result: Path) -> dict[str, Any]:
    """Numbers by name, none where the result cannot be read; of ``check`` what was checked and what was found."""
    try:
        value = load_json(result)
    except (OSError, ValueError):
        return {}
    if kind == "check" and isinstance(value, list):
        return {key: sum(_count(part.get(key)) for part in value) for key in ("checked", "problems")}
    if not isinstance(value, dict):
        return {}
    numbers = {key: item for key, item in value.items() if isinstance(item, int | float) and not isinstance(item, bool)}
    if kind in CHOSEN:
        return {key: numbers[key] for key in CHOSEN[kind] if key in numbers}
    return dict(list(numbers.items())[:MOST])


def _count(value: Any) -> int:
    return len(value) if isinstance(value, list) else int(value or 0)
