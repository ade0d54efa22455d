"""What a run left behind, for a person to read: the tree of files and the curve of a training log."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

MOST_ENTRIES = 4
BARS = "▁▂▃▄▅▆▇█"


def artifact_tree(root: Path) -> str:
    """The files below ``root`` as an indented tree with sizes; long folders are shortened to their first entries."""
    lines = [f"{root.name}/"]
    _append_folder(lines, root, "  ")
    return "\n".join(lines)


def _append_folder(lines: list[str], folder: Path, indent: str) -> None:
    entries = sorted(
        (path for path in folder.iterdir() if path.name != "lock"), key=lambda path: (path.is_dir(), path.name)
    )
    files = [path for path in entries if path.is_file()]
    folders = [path for path in entries if path.is_dir() and any(path.iterdir())]
    shown = files[:MOST_ENTRIES] if len(files) > MOST_ENTRIES + 1 else files
    name_width = max(1, 52 - len(indent))
    lines += [f"{indent}{path.name:<{name_width}} {human_size(path.stat().st_size):>9}" for path in shown]
    if len(files) > MOST_ENTRIES + 1:
        rest = files[MOST_ENTRIES:]
        lines.append(f"{indent}… and {len(rest):,} more files, {human_size(sum(p.stat().st_size for p in rest))}")
    for path in folders:
        lines.append(f"{indent}{path.name}/")
        _append_folder(lines, path, indent + "  ")


def human_size(size: float) -> str:
    """``128512`` → ``125.5 KiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def curve(values: Sequence[float], width: int = 60) -> str:
    """A one-line bar chart of ``values``, averaged down to ``width`` columns."""
    if not values:
        return ""
    columns = [
        sum(part) / len(part)
        for part in (values[len(values) * i // width : len(values) * (i + 1) // width] for i in range(width))
        if part
    ]
    low, high = min(columns), max(columns)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[round((value - low) * scale)] for value in columns)


def loss_curves(log: Path, keys: Sequence[str] = ("loss", "loss_m2d", "loss_clap")) -> str:
    """The losses in a training log (JSON lines), one bar chart a key, with first and last value."""
    rows = [json.loads(line) for line in log.read_text().splitlines() if line]
    lines = []
    for key in keys:
        values = [float(row[key]) for row in rows if isinstance(row.get(key), int | float)]
        if values:
            lines.append(f"{key:>10} {values[0]:8.4f} {curve(values)} {values[-1]:.4f}")
    return "\n".join(lines)
