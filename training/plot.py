"""Draws a picture of a run: its losses, schedule, speed, and the measurements between epochs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.files import atomic_file
from m2dprep.training.log import read_log

# Titles and metrics of the panels below those of the losses; a panel without any metric in the log is left out.
PANELS = (
    ("zero-shot accuracy", ("zero_shot_accuracy",)),
    ("RankMe", ("rank_me",)),
    ("explained variance, area", ("explained_variance_area",)),
    ("learning rate", ("lr",)),
    ("gradient norm", ("grad_norm",)),
    ("logit scale", ("logit_scale",)),
    ("samples per second", ("samples_per_second",)),
)
LOSS, VALID = "loss", "valid_"
COLUMNS = 3
# Epochs and values by the names of metrics.
Curves = dict[str, tuple[list[float], list[float]]]


def plot_run(run: Path, output: Path | None = None) -> Path:
    """Draw ``run``'s log into ``output``, by default its ``run.png``, and return that path.

    Raises `UserError` if there is no log or matplotlib is not installed.
    """
    lines = read_log(run / "log.jsonl")
    if not lines:
        raise UserError(f"{run} has no log.jsonl with a line in it; `m2dprep plot` takes the folder of a training run.")
    try:
        import matplotlib  # optional, so it is imported only here
    except ImportError as error:
        raise UserError("plots need matplotlib: pip install 'm2dprep[viz]'.") from error
    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    drawn = panels(lines)
    rows = -(-len(drawn) // COLUMNS)
    figure = Figure(figsize=(5 * COLUMNS, 3 * rows), layout="constrained")
    for number, (title, curves) in enumerate(drawn, start=1):
        axes = figure.add_subplot(rows, COLUMNS, number, title=title, xlabel="epoch")
        for name, (epochs, values) in curves.items():
            axes.plot(epochs, values, label=name, marker="." if len(values) < 50 else None)
        axes.grid(alpha=0.3)
        if len(curves) > 1:
            axes.legend()
    path = output or run / "run.png"
    with atomic_file(path) as file:
        figure.savefig(file, format="png", dpi=100)
    return path


def panels(lines: list[dict[str, Any]]) -> list[tuple[str, Curves]]:
    """The title and the curves of each panel, with the epochs and values that a log has; empty panels are left out."""
    return [(title, curves) for title, names in (*_losses(lines), *PANELS) if (curves := _curves(lines, names))]


def _losses(lines: list[dict[str, Any]]) -> list[tuple[str, tuple[str, str]]]:
    """A panel for each loss in the log of any objective: ``loss`` and its parts."""
    names = dict.fromkeys(name for line in lines for name in line if name == LOSS or name.startswith(f"{LOSS}_"))
    return [(name.replace("_", " "), (name, VALID + name)) for name in names]


def _curves(lines: list[dict[str, Any]], names: tuple[str, ...]) -> Curves:
    """Epochs and values for each name that the log has."""
    curves = {}
    for name in names:
        points = [(line["epoch"], line[name]) for line in lines if line.get(name) is not None]
        if points:
            curves[name] = ([epoch for epoch, _ in points], [value for _, value in points])
    return curves
