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

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.settings import Range, typed
from m2dprep.artifacts.yaml_files import Setting, read_settings
from m2dprep.evaluation.clip_set import DEFAULT_TEMPLATE, LABEL_FIELD, check_template

METRICS = ("accuracy", "mAP")
PROTOCOLS = ("zero-shot", "linear", "retrieval")
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

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as in the YAML file."""
        value = asdict(self)
        rule = value.pop("caption")
        value["caption"] = {"template": list(rule["templates"]), "names": dict(rule["names"])}
        return value


# The tasks that come with m2dprep, one file each.
TASK_FILES = Path(__file__).parent / "task_files"


def task_names() -> list[str]:
    """The names of the tasks that come with m2dprep."""
    return sorted(path.stem for path in TASK_FILES.glob("*.yaml"))


def find_task(name_or_path: str) -> Task:
    """A task by the path of its file, or by its name if it comes with m2dprep. Raises `UserError` if there is none."""
    if name_or_path in (names := task_names()):
        return read_task(TASK_FILES / f"{name_or_path}.yaml")
    if not name_or_path.endswith((".yaml", ".yml")) and not Path(name_or_path).exists():
        known = f"known are {', '.join(names)}" if names else "none comes with this version"
        raise UserError(f"{name_or_path!r} is no task ({known}); a task of your own is a YAML file.")
    return read_task(Path(name_or_path))


SECONDS = Range(0, 3600, above=True)


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
