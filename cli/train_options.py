"""The flags of the command train, made from the settings that `training.config` declares, and its settings file."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from itertools import groupby
from pathlib import Path
from typing import Any

import click

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.settings import Declared, Range, typed
from m2dprep.cli.options import (
    MODEL_NAME,
    PATH,
    PLACE,
    REPEATED,
    Function,
    json_option,
    output_option,
    overwrite_option,
    titled,
)
from m2dprep.training.config import SETTINGS, THE_MODELS, default_of
from m2dprep.training.recipes.second_generation import RECIPES

PLACES, RECIPE = "m2dprep.places", "m2dprep.recipe"
# Help does not say what no run comes near: limits above these.
NEAR = {int: 1024, float: 1}
PAIR = "BINSxFRAMES"
TYPE_NAMES = {int: "integer", float: "float", tuple: PAIR}


class SettingType(click.ParamType):
    """What a flag reads for a number, or for two as in 80x608; checked as the same value in a settings file is."""

    def __init__(self, setting: Declared) -> None:
        self._setting, self.name = setting, TYPE_NAMES[setting.base]

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> Any:
        try:
            return typed(self._setting.kind, self._read(value) if isinstance(value, str) else value, self._setting.key)
        except UserError as error:
            self.fail(str(error), param, context)

    def _read(self, text: str) -> Any:
        try:
            if self._setting.base is not tuple:
                return self._setting.base(text)
            first, second = text.lower().split("x")
            return int(first), int(second)
        except ValueError:
            self.fail(f"{text!r} is not {'like 80x608' if self.name == PAIR else f'a valid {self.name}'}.")


class SettingOption(click.Option):
    """A flag whose help also says which numbers it takes."""

    def get_help_extra(self, context: click.Context) -> Any:
        extra = super().get_help_extra(context)
        setting = SETTINGS[str(self.name)]
        if isinstance(limits := setting.allowed, Range):
            low = "<" if limits.above else "<="
            near = limits.high <= NEAR[setting.base]
            extra["range"] = f"{limits.low}{low}x<={limits.high}" if near else f"x{low.replace('<', '>')}{limits.low}"
        return extra


def flag_of(setting: Declared) -> Callable[[Function], Function]:
    """The flag of a setting. It is None where the value depends on the model, and nobody gives one."""
    default, told = default_of(setting), setting.option
    shown: str | bool = told.shown or (THE_MODELS if default is None and setting.default is not None else True)
    if isinstance(default, tuple) and not setting.many:
        shown = "x".join(map(str, default))
    return click.option(
        f"--{setting.key.replace('_', '-')}",
        setting.key,
        cls=SettingOption,
        type=_type_of(setting),
        is_flag=setting.base is bool,
        multiple=setting.many,
        default=None if told.shown and not setting.many else default,
        show_default=shown,
        metavar=told.metavar,
        help=f"{told.help} {REPEATED}" if setting.many else told.help,
    )


def _type_of(setting: Declared) -> Any:
    if setting.base is str and setting.allowed is not None:
        return click.Choice(list(setting.allowed.choices))
    if setting.option.role:
        return {"place": PLACE, "model": MODEL_NAME}[setting.option.role]
    return {str: click.STRING, bool: click.BOOL, Path: PATH}.get(setting.base) or SettingType(setting)


def setting_flags(settings: Iterable[Declared] = SETTINGS.values()) -> Callable[[Function], Function]:
    """A decorator that adds the flags of all settings that have one, in their groups."""
    groups = [
        titled(group, *(flag_of(one) for one in members if one.option.flag))
        for group, members in groupby(settings, lambda one: one.group)
    ]

    def add(function: Function) -> Function:
        for group in reversed(groups):
            function = group(function)
        return function

    return add


def _read_config(context: click.Context, parameter: click.Parameter, path: Path | None) -> None:
    """Make a settings file's values the defaults of the options; flags win over them."""
    if path is None:
        return
    from m2dprep.artifacts.tables import verify_export
    from m2dprep.artifacts.yaml_files import read_settings

    found = read_settings(path, {*SETTINGS, "output"})
    verify_export(path)  # a run's train.yaml
    values = {}
    for key, (value, place) in found.items():
        try:
            values[key] = _of_file(key, value)
        except UserError as error:
            raise UserError(f"{place}: {error}") from error
    context.default_map = {**(context.default_map or {}), **values}
    context.meta[PLACES] = {key: setting.place for key, setting in found.items()}


def _of_file(key: str, value: Any) -> Any:
    """The value of a setting in a file: of the type that it has there, and within what the flag may be."""
    setting = SETTINGS["data" if key == "output" else key]
    if setting.many and not isinstance(value, list):
        value = [value]
    try:
        if setting.base is Path:
            texts = typed(tuple[str, ...] if setting.many else str, value, key)
            return (
                [PATH.convert(text, None, None) for text in texts] if setting.many else PATH.convert(texts, None, None)
            )
        if setting.base is tuple and setting.option.flag and not isinstance(value, list):
            return SettingType(setting).convert(str(value), None, None)
    except click.BadParameter as error:
        raise UserError(error.message if error.message.startswith(key) else f"{key}: {error.message}") from error
    return typed(setting.kind, value, key)


def located(error: UserError, context: click.Context) -> UserError:
    """``error`` with the places in a settings file of the settings that it names."""
    places = context.meta.get(PLACES, {})
    named = [f"{key}: {place}" for key, place in places.items() if re.search(rf"\b{key}\b", str(error))]
    return UserError(f"{error} ({'; '.join(named)})") if named else error


def _read_recipe(context: click.Context, parameter: click.Parameter, name: str | None) -> None:
    """Make a named recipe's values the defaults of the options; files and flags win over them."""
    if name is None:
        return
    context.meta[RECIPE] = RECIPES[name]
    context.default_map = {**RECIPES[name], **(context.default_map or {})}


# The run: its folder, and where its settings come from.
general_options = titled(
    "The run",
    output_option(required=True, help="Write checkpoints, log and TensorBoard events to this folder, the run."),
    click.option(
        "--config",
        type=PATH,
        callback=_read_config,
        is_eager=True,
        expose_value=False,
        help="Read settings from this YAML file, which may have a key for every option here (data for DATA) "
        "and for every one in a run's train.yaml. Options on the command line win over it.",
    ),
    click.option(
        "--recipe",
        type=click.Choice(list(RECIPES)),
        metavar="NAME",
        callback=_read_recipe,
        is_eager=True,
        expose_value=False,
        help=f"Take the settings of this recipe of the authors: {', '.join(RECIPES)}. A settings file and options win "
        "over it, and it wins over the named size.",
    ),
    click.option(
        "--dry-run",
        is_flag=True,
        help="Print parameters, memory, steps and the time of one measured step, but write nothing.",
    ),
    overwrite_option,
    json_option,
)
