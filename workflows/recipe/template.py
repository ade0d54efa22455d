"""Recipes to start from: AudioSet's (``start.yaml``), whose stages get every option in comments, and the demo's."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from importlib.resources import files

import yaml

from m2dprep.workflows.recipe.commands import Option, StageKind

COMMENT_COLUMN = 44
SENTENCE_END = re.compile(r"(?<=\.) (?=[A-Z0-9])")
# A stage: the line with its name, and the lines with its settings.
STAGE = re.compile(r"^  ([\w-]+):\n((?:    .*\n)*)", re.MULTILINE)
SETTING = re.compile(r"^    (\w+):", re.MULTILINE)
# Options that a recipe sets for all its stages.
OF_ALL_STAGES = {"seed", "data"}


def demo_recipe() -> str:
    """The text of the demo's recipe."""
    return _text("demo.yaml")


def second_generation_recipe() -> str:
    """The text of the recipe of the demo's second act."""
    return _text("second_generation.yaml")


def audioset_recipe(kinds: Mapping[str, StageKind], name: str = "recipe.yaml") -> str:
    """The text of a recipe for AudioSet, with every option of its stages in comments."""

    def with_all_options(match: re.Match[str]) -> str:
        stage, settings = match.groups()
        kind = kinds[next(iter(re.findall(r"^    stage: (.*)", settings, re.MULTILINE)), stage)]
        known = {*SETTING.findall(settings), *OF_ALL_STAGES}
        rest = [option for option in kind.options if option.key not in known and not option.of_cluster]
        first = _line(f"  {stage}:", kind.command.get_short_help_str(200))
        return "\n".join(
            [first + "\n" + settings.rstrip(), *(_line(f"    # {_default(o)}", _help(o)) for o in rest), ""]
        )

    return STAGE.sub(with_all_options, _text("start.yaml").replace("recipe.yaml", name))


def _text(name: str) -> str:
    return files("m2dprep.workflows.recipe").joinpath(name).read_text(encoding="utf-8")


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
