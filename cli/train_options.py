"""The flags of commands that train, made from the settings that are declared for them, and their settings files."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
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

DefaultOf = Callable[[Declared], Any]

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

    def __init__(self, *names: Any, setting: Declared, **facts: Any) -> None:
        super().__init__(*names, **facts)
        self._setting = setting

    def get_help_extra(self, context: click.Context) -> Any:
        extra = super().get_help_extra(context)
        setting = self._setting
        if isinstance(limits := setting.allowed, Range):
            low = "<" if limits.above else "<="
            near = limits.high <= NEAR[setting.base]
            extra["range"] = f"{limits.low}{low}x<={limits.high}" if near else f"x{low.replace('<', '>')}{limits.low}"
        return extra


def flag_of(
    setting: Declared, default_of: DefaultOf = default_of, whose: str = THE_MODELS
) -> Callable[[Function], Function]:
    """The flag of a setting. It is None where the value depends on the model, and nobody gives one."""
    default, told = default_of(setting), setting.option
    differs = default is None and setting.default is not None
    shown: str | bool = told.shown.replace(THE_MODELS, whose) or (whose if differs else True)
    name = setting.key.replace("_", "-")
    if isinstance(default, tuple) and not setting.many:
        shown = "x".join(map(str, default))
    return click.option(
        f"--{name}/--no-{name}" if differs and setting.base is bool else f"--{name}",
        setting.key,
        cls=SettingOption,
        setting=setting,
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


def setting_flags(
    settings: Mapping[str, Declared] = SETTINGS, default_of: DefaultOf = default_of, whose: str = THE_MODELS
) -> Callable[[Function], Function]:
    """A decorator that adds the flags of all settings that have one, in their groups."""
    groups = [
        titled(group, *(flag_of(one, default_of, whose) for one in members if one.option.flag))
        for group, members in groupby(settings.values(), lambda one: one.group)
    ]

    def add(function: Function) -> Function:
        for group in reversed(groups):
            function = group(function)
        return function

    return add


def _reads_config(settings: Mapping[str, Declared]) -> Callable[[click.Context, click.Parameter, Path | None], None]:
    """A callback that makes a settings file's values the defaults of the options; flags win over them."""

    def read(context: click.Context, parameter: click.Parameter, path: Path | None) -> None:
        if path is None:
            return
        from m2dprep.artifacts.tables import verify_export
        from m2dprep.artifacts.yaml_files import read_settings as read_yaml

        found = read_yaml(path, {*settings, "output"})
        verify_export(path)  # a run's train.yaml
        values = {}
        for key, (value, place) in found.items():
            try:
                values[key] = _of_file(key, value, settings["data" if key == "output" else key])
            except UserError as error:
                raise UserError(f"{place}: {error}") from error
        context.default_map = {**(context.default_map or {}), **values}
        context.meta[PLACES] = {key: setting.place for key, setting in found.items()}

    return read


def _of_file(key: str, value: Any, setting: Declared) -> Any:
    """The value of a setting in a file: of the type that it has there, and within what the flag may be."""
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


def general_options(
    *more: Callable[[Any], Any],
    settings: Mapping[str, Declared] = SETTINGS,
    arguments: Iterable[str] = ("data",),
) -> Callable[[Function], Function]:
    """A decorator that adds the options of a run: its folder, and where its settings come from, and ``more``."""
    keys = ", ".join(f"{key} for {key.upper()}" for key in arguments)
    return titled(
        "The run",
        output_option(required=True, help="Write checkpoints, log and TensorBoard events to this folder, the run."),
        click.option(
            "--config",
            type=PATH,
            callback=_reads_config(settings),
            is_eager=True,
            expose_value=False,
            help=f"Read settings from this YAML file, which may have a key for every option here ({keys}) "
            "and for every one in a run's train.yaml. Options on the command line win over it.",
        ),
        *more,
        click.option(
            "--dry-run",
            is_flag=True,
            help="Print parameters, memory, steps and the time of one measured step, but write nothing.",
        ),
        overwrite_option,
        json_option,
    )


def _read_recipe(context: click.Context, parameter: click.Parameter, name: str | None) -> None:
    """Make a named recipe's values the defaults of the options; files and flags win over them."""
    if name is None:
        return
    context.meta[RECIPE] = RECIPES[name]
    context.default_map = {**RECIPES[name], **(context.default_map or {})}


recipe_option = click.option(
    "--recipe",
    type=click.Choice(list(RECIPES)),
    metavar="NAME",
    callback=_read_recipe,
    is_eager=True,
    expose_value=False,
    help=f"Take the settings of this recipe of the authors: {', '.join(RECIPES)}. A settings file and options win "
    "over it, and it wins over the named size.",
)
