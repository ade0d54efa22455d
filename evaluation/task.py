"""Evaluation tasks as data: a small YAML file says what a data set is, how it is scored, and what others have reached.

```yaml
name: cremad
title: CREMA-D, six emotions in speech
protocols: [zero-shot, linear]
metric: accuracy
layout: splits                 # folds (column fold), splits (column split) or captions (retrieval)
unit_seconds: 2.5              # clips are cut or padded to this length; null keeps them whole
caption:
  template: "{label} can be heard"
  names: {ANG: angry person talking, …}
counts: {train: 5155, valid: 732, test: 1551}
classes: 6
address: https://…
licence: ODbL
papers:
  - {protocol: zero-shot, model: M2D-CLAP 2024, score: 17.73}
metadata: {…}                  # how `evaluate prepare` makes metadata.csv
```
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.layout import require_file
from m2dprep.artifacts.settings import Range, typed
from m2dprep.artifacts.yaml_files import Setting, read_settings
from m2dprep.evaluation.clip_set import DEFAULT_TEMPLATE, LABEL_FIELD, check_template

METRICS = ("accuracy", "mAP", "t2a_R@1")
PROTOCOLS = ("zero-shot", "linear", "retrieval", "tagging")
LAYOUTS = ("splits", "folds", "captions")
SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class CaptionRule:
    """How a label becomes a caption: the template around its name in ``names``, or around the label itself.

    Underscores count as spaces, as in EVAR. Several templates are an ensemble, whose embeddings are averaged; that is
    not EVAR's.
    """

    templates: tuple[str, ...] = (DEFAULT_TEMPLATE,)
    names: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.templates:
            raise UserError("a caption needs at least one template.")
        for template in self.templates:
            check_template(template)

    def captions(self, label: str) -> list[str]:
        """One caption per template."""
        name = self.names.get(label, label).replace("_", " ")
        return [template.replace(LABEL_FIELD, name) for template in self.templates]


@dataclass(frozen=True)
class PaperScore:
    """A score that somebody published, in per cent as papers give it; ``note`` says where from or what differs."""

    protocol: str
    model: str
    score: float
    interval: float | None = None
    metric: str | None = None
    note: str = ""

    def __str__(self) -> str:
        """``M2D-CLAP 2024 73.4 ± 0.2``."""
        return f"{self.model} {self.score:g}" + ("" if self.interval is None else f" ± {self.interval:g}")


@dataclass(frozen=True)
class Task:
    """A data set, its rules and what others have reached; see the module for the file that it comes from.

    ``counts`` are the clips expected in each split (or under ``all``, for folds); ``classes`` is their number.
    ``metadata`` is the rule by which ``evaluate prepare`` makes the table of clips.
    """

    name: str
    metric: str = "accuracy"
    layout: str = "splits"
    multi_label: bool = False
    unit_seconds: float | None = None
    caption: CaptionRule = field(default_factory=CaptionRule)
    protocols: tuple[str, ...] = ("zero-shot", "linear")
    title: str = ""
    classes: int | None = None
    counts: Mapping[str, int] = field(default_factory=dict)
    address: str = ""
    licence: str = ""
    papers: tuple[PaperScore, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for what, value, known in (("metric", self.metric, METRICS), ("layout", self.layout, LAYOUTS)):
            if value not in known:
                raise UserError(f"{what} is {value!r}; it must be one of {', '.join(known)}.")
        if unknown := sorted(set(self.protocols) - set(PROTOCOLS)):
            raise UserError(f"protocols has {', '.join(unknown)}; known are {', '.join(PROTOCOLS)}.")
        if self.multi_label != (self.metric == "mAP"):
            raise UserError("a task with several labels per clip (multi_label) is scored by mAP, others by accuracy.")

    def published(self, protocol: str, metric: str) -> list[PaperScore]:
        """What others have reached by this protocol and metric."""
        return [one for one in self.papers if one.protocol == protocol and (one.metric or self.metric) == metric]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as in the YAML file."""
        value = asdict(self)
        rule = value.pop("caption")
        value["caption"] = {"template": list(rule["templates"]), "names": dict(rule["names"])}
        return value


SECONDS = Range(0.01, 3600)
TASKS = Path(__file__).parent / "tasks"


def known_tasks() -> dict[str, Path]:
    """The YAML files of the tasks that come with the package, by name."""
    return {path.stem: path for path in sorted(TASKS.glob("*.yaml"))}


def task_file(text: str) -> Path:
    """The YAML file of a task: one that comes with the package, by its name, or the path of one's own.

    Raises `UserError`, suggesting a name, if there is none.
    """
    known = known_tasks()
    if text in known:
        return known[text]
    if text.lower().endswith((".yaml", ".yml")) or "/" in text:
        return require_file(Path(text), "a task")
    near = difflib.get_close_matches(text.lower(), known, 1)
    hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}."
    raise UserError(f"there is no task {text!r}; {hint} A task of your own is a YAML file.")


def find_task(text: str) -> Task:
    """The task by its name or by the path of its file. Raises `UserError` if there is none."""
    return read_task(task_file(text))


def read_task(path: Path) -> Task:
    """The task in a YAML file. Raises `UserError`, naming the file and the line, for anything that is none."""
    settings = read_settings(path, [one.name for one in fields(Task)])
    if "name" not in settings:
        raise UserError(f"{path} names no task (name: …).")
    values: dict[str, Any] = {}
    for key, setting in settings.items():
        try:
            values[key] = READERS[key](setting.value) if key in READERS else typed(str, setting.value, key)
        except UserError as error:
            raise UserError(f"{setting.place}: {error}") from error
    if "metric" in settings and "multi_label" not in settings:
        values["multi_label"] = values["metric"] == "mAP"
    elif values.get("multi_label") and "metric" not in settings:
        values["metric"] = "mAP"
    try:
        return Task(**values)
    except UserError as error:
        raise UserError(f"{path}: {_place(settings, error)}") from error


def _place(settings: Mapping[str, Setting], error: UserError) -> str:
    """The message with the line of the setting that it begins with, if there is one."""
    setting = settings.get(str(error).partition(" ")[0])
    return f"line {setting.place.rpartition(' ')[2]}: {error}" if setting else str(error)


def _caption(value: Any) -> CaptionRule:
    table = _table(value, "caption", ("template", "names"))
    templates = table.get("template", DEFAULT_TEMPLATE)
    templates = (templates,) if isinstance(templates, str) else typed(tuple[str, ...], templates, "template")
    names = table.get("names") or {}
    if not isinstance(names, Mapping):
        raise UserError(f"names is {names!r}; it must be a table of labels and the words for them.")
    return CaptionRule(templates, {str(key): typed(str, item, f"names.{key}") for key, item in names.items()})


def _counts(value: Any) -> dict[str, int]:
    known = ("all", *SPLITS)
    return {key: typed(int, item, f"counts.{key}") for key, item in _table(value, "counts", known).items()}


def _papers(value: Any) -> tuple[PaperScore, ...]:
    if not isinstance(value, list):
        raise UserError("papers must be a list of published scores.")
    known = {one.name: one for one in fields(PaperScore)}
    found = []
    for number, entry in enumerate(value, 1):
        table = _table(entry, f"papers, entry {number}", tuple(known))
        missing = [name for name, one in known.items() if one.default is MISSING and name not in table]
        if missing:
            raise UserError(f"papers, entry {number} lacks {', '.join(missing)}.")
        numbers = {"score": float, "interval": float | None}
        found.append(PaperScore(**{k: typed(numbers.get(k, str | None), v, f"papers.{k}") for k, v in table.items()}))
    return tuple(found)


def _table(value: Any, name: str, known: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise UserError(f"{name} is {value!r}, not a table of settings.")
    if unknown := sorted(str(key) for key in value if key not in known):
        raise UserError(f"{name} has unknown {', '.join(unknown)}; known are {', '.join(known)}.")
    return dict(value)


def _seconds(value: Any) -> float | None:
    number: float | None = typed(float | None, value, "unit_seconds")
    if number is not None and number not in SECONDS:
        raise UserError(f"unit_seconds is {value!r}; it must be a number of seconds {SECONDS}.")
    return number


READERS: dict[str, Any] = {
    "caption": _caption,
    "counts": _counts,
    "papers": _papers,
    "metadata": lambda value: dict(value) if isinstance(value, Mapping) else _table(value, "metadata", ()),
    "protocols": lambda value: typed(tuple[str, ...], value, "protocols"),
    "multi_label": lambda value: typed(bool, value, "multi_label"),
    "unit_seconds": _seconds,
    "classes": lambda value: typed(int, value, "classes"),
}
