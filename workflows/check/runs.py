"""The check of training runs: their settings, logs and checkpoints match their digests, and no log lacks its end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from m2dprep.artifacts.layout import DataLayout
from m2dprep.workflows.check.result import CheckResult, Collecting

RUN_MARKS = ("log.jsonl", "train.yaml", "m2d_clap_vit_*")
CONFIG = "config.json"
# A file of a run, and the function that compares it with its digests and returns False if it has none.
Proof = tuple[Path, Callable[[], bool]]
# The proofs of a run, whose checkpoints are left out if the second argument is set. Training knows them.
ProofsOfRun = Callable[[Path, bool], Iterator[Proof]]


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a training run, by the names of its files, which may be damaged."""
    return sum(any(folder.glob(mark)) for mark in (CONFIG, *RUN_MARKS)) > 1


def find_runs(root: Path) -> list[Path]:
    """The run that ``root`` is, or those in it and in folders in it (of arrays and embeddings none are looked for)."""
    if is_run(root):
        return [root]
    layout = DataLayout(root)
    others = {*layout.lms_folders(), *layout.embedding_stores()}
    folders = [path for path in sorted(root.iterdir()) if path.is_dir() and path not in others]
    found = [folder for folder in folders if is_run(folder)]
    for folder in folders:
        if folder not in found:
            found += sorted(path.parent for path in folder.glob(f"*/{CONFIG}") if is_run(path.parent))
    return found


def check_runs(root: Path, proofs: ProofsOfRun, quick: bool) -> list[CheckResult]:
    """Check the settings and logs of the runs in ``root`` and, unless ``quick``, all bytes of their checkpoints.

    Returns no result if there are no runs.
    """
    runs = find_runs(root)
    if not runs:
        return []
    result = CheckResult("runs")
    above = root.parent if runs == [root] else root
    without: list[str] = []
    for run in runs:
        for path, proof in proofs(run, quick):
            name = path.relative_to(above).as_posix()
            result.checked += 1
            with Collecting(result, name):
                if not proof():
                    without.append(name)
    if without:
        result.notes.append(
            f"{len(without):,} of them have no digest of all their bytes (an earlier version wrote them): "
            + ", ".join(without[:5])
            + (", …" if len(without) > 5 else "")
        )
    if quick:
        result.notes.append("--quick: settings and logs only; checkpoints were not read")
    return [result]
