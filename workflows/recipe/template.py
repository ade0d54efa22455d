"""Recipes to start from: one for AudioSet, with every option of every stage in comments, and one for the demo."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

import yaml

from m2dprep.workflows.recipe.commands import Option, StageKind

COMMENT_COLUMN = 44
SENTENCE_END = re.compile(r"(?<=\.) (?=[A-Z0-9])")


@dataclass(frozen=True)
class Draft:
    """A stage of a template; an ``optional`` one is written as a comment."""

    name: str
    kind: str
    settings: Mapping[str, str | list[str]]
    after: str | None = None
    optional: bool = False


HEAD = """\
# From AudioSet, Auto-ACD and ACalt4 to a trained model: fill in the paths, then
#   m2dprep run {name} --dry-run     what would be done, and why
#   m2dprep run {name}               do it; the same command goes on after an interruption
#   m2dprep status {name}            how far it has come
# Paths are relative to this file. ${{NAME}} is ${{data}} or a variable of the environment; ${{NAME:-otherwise}} may be
# missing. A line in comments shows an option with its default. Stages run in the order that their files ask for; a
# stage's name is free where stage: says what it is.

data: data                                  # the data directory
seed: 0                                     # of every stage that has one
# workers: 16                               # of the stages that convert and check; by default all cores
# cluster:                                  # where the workers of these stages are, if not on this machine
#   cluster: slurm
#   cluster_config: slurm.yaml              # queue, walltime, memory, cores, …
#   jobs: 8

stages:
"""

AUDIOSET = (
    Draft("melspec", "melspec", {"src": "/path/to/audioset/wavs", "dst": "${data}/audioset_lms"}),
    Draft("stats", "stats", {"lms": "${data}/audioset_lms"}),
    Draft("pack", "pack", {"lms": "${data}/audioset_lms"}, optional=True),
    Draft(
        "fill",
        "captions fill",
        {
            "segments": [
                "/path/to/audioset/balanced_train_segments.csv",
                "/path/to/audioset/unbalanced_train_segments.csv",
            ],
            "ontology": "/path/to/audioset/ontology.json",
            "auto_acd": "/path/to/auto_acd/train.csv",
            "acalt4": ["/path/to/ACalt4.csv"],
            "output": "${data}/captions.parquet",
        },
    ),
    Draft(
        "lint",
        "captions check",
        {"captions": "${data}/captions.parquet", "findings": "${data}/caption_findings.csv"},
        optional=True,
    ),
    Draft(
        "training-list",
        "captions training-list",
        {"files_csv": "${data}/files_audioset.csv", "captions": "${data}/captions.parquet"},
        optional=True,
    ),
    Draft(
        "embed-captions",
        "embed-captions",
        {"captions": "${data}/captions.parquet", "out": "${data}/capemb_gte-base"},
    ),
    Draft("check", "check", {}),
    Draft("train", "train", {"output": "runs/base"}, after="check"),
    Draft(
        "zero-shot",
        "zero-shot",
        {"checkpoint": "runs/base", "clips_csv": "/path/to/clips.csv"},
        optional=True,
    ),
)

DEMO = """\
# The demo as a recipe: a small synthetic AudioSet-like set, every stage, a model, and its zero-shot accuracy. The
# commands are those of `m2dprep demo`, so with the same seed the accuracy is the same.
#   m2dprep run demo.yaml

data: demo/data
seed: 0

stages:
  sound-set:
    out: demo/source
    clips: 40
    held_out: 10
  melspec:
    src: demo/source/audio
    dst: ${data}/audioset_lms
  stats:
    lms: ${data}/audioset_lms
  fill:
    stage: captions fill
    segments:
      - demo/source/balanced_train_segments.csv
      - demo/source/eval_segments.csv
    ontology: demo/source/ontology.json
    auto_acd: demo/source/auto_acd_train.csv
    acalt4: demo/source/acalt4.csv
    output: ${data}/captions.parquet
  embed-captions:
    captions: ${data}/captions.parquet
    out: ${data}/capemb_minilm
    text_model: ${bundled_text_model}       # the small encoder of the extra demo
    device: cpu
  check:
  train:
    after: check
    model: tiny
    output: demo/run
  zero-shot:
    checkpoint: demo/run
    clips_csv: demo/source/held_out.csv
    text_model: ${bundled_text_model}
"""


def demo_recipe() -> str:
    """The text of the demo's recipe."""
    return DEMO


def audioset_recipe(kinds: Mapping[str, StageKind], name: str = "recipe.yaml") -> str:
    """The text of a recipe for AudioSet, with every option of its stages in comments."""
    return HEAD.format(name=name) + "\n".join(_stage(draft, kinds[draft.kind]) for draft in AUDIOSET)


def _stage(draft: Draft, kind: StageKind) -> str:
    lines = [_line(f"  {draft.name}:", kind.command.get_short_help_str(200))]
    if draft.name != kind.name:
        lines.append(f"    stage: {kind.name}")
    if draft.after:
        lines.append(f"    after: {draft.after}")
    lines += [line for key, value in draft.settings.items() for line in _setting(kind, key, value)]
    if not draft.optional:
        common = {"seed", "data"}
        rest = [o for o in kind.options if o.key not in {*draft.settings, *common} and not o.of_cluster]
        return "\n".join([*lines, *(_line(f"    # {_default(option)}", _help(option)) for option in rest), ""])
    return "\n".join([*(f"# {line}" for line in lines), ""])


def _setting(kind: StageKind, key: str, value: str | list[str]) -> list[str]:
    option = kind.option(key)
    assert option is not None, f"{kind.name} has no {key}"
    if isinstance(value, str):
        return [f"    {key}: {scalar(value)}"]
    return [f"    {key}:", *(f"      - {scalar(item)}" for item in value)]


def _default(option: Option) -> str:
    if option.default is None:
        return f"{option.key}:{' []' if option.multiple else ''}"
    return f"{option.key}: {scalar(option.default)}"


def _help(option: Option) -> str:
    worked_out = getattr(option.parameter, "show_default", None)
    more = [", ".join(option.choices), f"by default {worked_out}" if isinstance(worked_out, str) else ""]
    first = SENTENCE_END.split(getattr(option.parameter, "help", None) or "", maxsplit=1)[0]  # `-h` has the rest
    return " ".join([first, *(f"({words})" for words in more if words)])


def _line(text: str, comment: str) -> str:
    return f"{text.ljust(COMMENT_COLUMN - 1)} # {comment}" if comment else text


def scalar(text: str) -> str:
    """``text`` as YAML, quoted if it would be read as something else."""
    try:
        plain = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):  # such as an impossible date
        return json.dumps(text, ensure_ascii=False)
    return text if str(plain) == text or isinstance(plain, int | float) else json.dumps(text, ensure_ascii=False)
