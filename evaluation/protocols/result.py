"""The result of a protocol: a score, how it came about, and everything that another person needs to doubt or repeat it.

It is written as one JSON object. Scores are shares (0 … 1), never per cent.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.json_files import read_object, write_object

FORMAT = 1
PACKAGES = ("m2dprep", "torch", "numpy", "scipy", "soundfile", "soxr", "transformers", "sentence-transformers")
# Two-sided 95 % quantiles of Student's t for 1, 2, … degrees of freedom; beyond the table the normal one is close.
T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
        2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045)  # fmt: skip
NORMAL_95 = 1.960


@dataclass(frozen=True)
class Result:
    """What a protocol measured.

    ``protocol`` is zero-shot, linear, retrieval or label-free. ``score`` is the number that tables compare, of the kind
    ``metric`` (accuracy, mAP, t2a_R@1, rank_me); None if nothing could be measured. ``interval`` is half the width of
    its 95 % confidence interval over ``seeds``, whose scores are ``scores``; ``folds`` has a row per seed and a column
    per fold. ``n`` counts what the score was measured on. ``strict_evar`` says that the defects of EVAR were
    reproduced; ``deviations`` lists, in sentences, where the number was made otherwise than EVAR makes it.

    ``digests`` identify the checkpoint, the table of clips and the text model; ``model`` describes them in words.
    ``details`` are those of the protocol (per class, confusion, ranks, …), ``failures`` the clips that could not be
    read: file_name, reason, message.
    """

    protocol: str
    task: str
    metric: str
    score: float | None
    interval: float | None = None
    scores: tuple[float, ...] = ()
    seeds: tuple[int, ...] = ()
    folds: tuple[tuple[float, ...], ...] = ()
    n: dict[str, int] = field(default_factory=dict)
    strict_evar: bool = False
    deviations: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    failures: tuple[dict[str, str], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; numbers that are not finite become null."""
        value: dict[str, Any] = plain({"format": FORMAT, **asdict(self)})
        return value

    @classmethod
    def from_dict(cls, value: Mapping[str, Any], place: object = "the result") -> Result:
        """The result that `to_dict` wrote. Raises `UserError`, naming ``place``, if it is none."""
        known = {one.name for one in fields(cls)}
        if value.get("format") != FORMAT or not {"protocol", "task", "metric", "score"} <= set(value):
            raise UserError(f"{place} is no result of `m2dprep evaluate` (of format {FORMAT}).")
        found = {key: item for key, item in value.items() if key in known}
        try:
            found |= {key: tuple(found[key]) for key in ("scores", "seeds", "deviations", "failures") if key in found}
            if "folds" in found:
                found["folds"] = tuple(map(tuple, found["folds"]))
            return cls(**found)
        except TypeError as error:
            raise UserError(f"{place} is no result of `m2dprep evaluate`: {error}.") from error

    def write(self, path: Path) -> None:
        """Write the result with its digest, atomically."""
        write_object(path, self.to_dict())

    @classmethod
    def read(cls, path: Path) -> Result:
        """Read what `write` wrote. Raises `UserError` if it is missing, damaged or something else."""
        value = read_object(path)
        if value is None:
            raise UserError(f"{path}: no such file (a result of `m2dprep evaluate`).")
        return cls.from_dict(value, path)

    def about(self, **facts: Any) -> Result:
        """The same result with these facts added to ``n``, ``digests``, ``model``, … (mappings are merged)."""
        merged: dict[str, Any] = {}
        for key, item in facts.items():
            mine = getattr(self, key)
            merged[key] = (
                {**mine, **item} if isinstance(mine, dict) else mine + item if isinstance(mine, tuple) else item
            )
        return replace(self, **merged)


def mean_and_interval(scores: Sequence[float]) -> tuple[float, float | None]:
    """The mean, and half the width of its 95 % confidence interval by Student's t: t · s / √n, s with n − 1.

    None if there is one score alone.
    """
    values = np.asarray(scores, np.float64)
    if len(values) < 2:
        return float(values.mean()), None
    t = T_95[len(values) - 2] if len(values) - 2 < len(T_95) else NORMAL_95
    return float(values.mean()), float(t * values.std(ddof=1) / math.sqrt(len(values)))


def software_versions() -> dict[str, str]:
    """The versions of what decides the numbers, without importing any of it."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def plain(value: Any) -> Any:
    """``value`` with numpy's numbers and arrays, tuples and paths as JSON has them; NaN and infinity become null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, list | tuple | set):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
