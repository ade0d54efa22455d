"""Commands as a recipe sees them: their parameters are settings, which are checked before anything runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import click

from m2dprep.workflows.recipe.declare import Declared, Given, Role, Values, is_task_file
from m2dprep.workflows.recipe.entries import Entry, did_you_mean

# Options of commands that recipes do not take, with the reason.
NOT_HERE = {
    "help": "it prints help",
    "json": "the result of every stage is kept as JSON",
    "overwrite": "`m2dprep run --overwrite` replaces what was made with other settings",
    "dry_run": "`m2dprep run --dry-run` shows what would be run",
    "print_job": "it prints and runs nothing",
}


@dataclass(frozen=True)
class Option:
    """A parameter of a command as a setting of a stage."""

    parameter: click.Parameter

    @cached_property
    def names(self) -> list[str]:
        """Its key, and other keys that mean the same."""
        if isinstance(self.parameter, click.Option):
            return [normal(flag.removeprefix("--")) for flag in self.parameter.opts if flag.startswith("--")]
        shown, name = self.parameter.metavar, str(self.parameter.name)
        return [normal((name if shown is None or "|" in shown else shown).strip("[]…").lower())]

    @property
    def key(self) -> str:
        return self.names[0]

    @property
    def role(self) -> Role | None:
        return getattr(self.parameter.type, "role", None)

    @property
    def is_flag(self) -> bool:
        return isinstance(self.parameter, click.Option) and self.parameter.is_flag

    @property
    def multiple(self) -> bool:
        return self.parameter.nargs == -1 or bool(getattr(self.parameter, "multiple", False))

    @property
    def of_cluster(self) -> bool:
        """Whether it says where workers come from, if not from this machine."""
        return bool(getattr(self.parameter, "of_cluster", False))

    @property
    def choices(self) -> list[str]:
        return list(self.parameter.type.choices) if isinstance(self.parameter.type, click.Choice) else []

    @property
    def default(self) -> str | None:
        """The default as a recipe would have it; None without one, or if it is worked out."""
        value = self.parameter.default
        if self.is_flag:
            return "true" if value is True else "false"
        return str(value) if isinstance(value, int | float) or (isinstance(value, str) and value) else None

    def texts(self, entry: Entry) -> list[str]:
        """The values of ``entry`` as texts. Raises `UserError`, naming file and line, if one has the wrong type."""
        if isinstance(entry.value, list) and not self.multiple:
            raise entry.error(f"{self.key} takes one value, not a list.")
        return [self._text(item) for item in (entry.value if isinstance(entry.value, list) else [entry])]

    def _text(self, entry: Entry) -> str:
        value = entry.value
        if isinstance(value, bool) and self.is_flag:
            return "true" if value else "false"
        if self.is_flag or value is None or isinstance(value, bool | list | dict):
            quotes = "; a word goes in quotes" if isinstance(value, bool) else ""
            raise entry.error(f"{self.key} must be {self._wanted}, not {entry.kind}{quotes}.")
        text = entry.written or str(value)
        try:
            self.parameter.type.convert(text, self.parameter, None)
        except click.BadParameter as error:
            raise entry.error(f"{self.key}: {error.message}") from error
        return text

    @property
    def _wanted(self) -> str:
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        return "true or false" if self.is_flag else "a path" if self.role else "a value"

    def words(self, texts: Iterable[str]) -> list[str]:
        """The option on the command line."""
        on, off = (getattr(self.parameter, name) for name in ("opts", "secondary_opts"))
        flag = next(name for name in on if name.startswith("--"))
        if self.is_flag:
            return [form for text in texts for form in ([flag] if text == "true" else off[:1])]
        return [f"{flag}={text}" for text in texts]


@dataclass(frozen=True)
class StageKind:
    """A command that a recipe may run; ``words`` follow ``m2dprep`` on the command line."""

    words: tuple[str, ...]
    command: click.Command

    @property
    def name(self) -> str:
        return " ".join(self.words)

    @property
    def declared(self) -> Declared:
        found: Declared = self.command.stage  # type: ignore[attr-defined]
        return found

    @cached_property
    def options(self) -> list[Option]:
        return [option for option in map(Option, self.command.params) if option.key not in NOT_HERE]

    @property
    def replaces(self) -> bool:
        """Whether the command can start over with ``--overwrite``."""
        return any("--overwrite" in parameter.opts for parameter in self.command.params)

    @property
    def how(self) -> set[str]:
        """The settings that do not decide what the stage makes."""
        return {*self.declared.how, *(option.key for option in self.options if option.of_cluster)}

    def option(self, key: str) -> Option | None:
        """The option with that name; dashes count as underscores."""
        return next((option for option in self.options if normal(key) in option.names), None)

    def values(self, entries: Mapping[str, Entry], where: Entry) -> Values:
        """The settings of a stage. Null means the command's own default.

        Raises `UserError` for an unknown key (with the nearest known one), a value of the wrong type, and missing keys.
        """
        values: Values = {}
        for key, entry in entries.items():
            option = self.option(key)
            if option is None and normal(key) in NOT_HERE:
                raise entry.error(f"{key} is not for recipes: {NOT_HERE[normal(key)]}.")
            if option is None:
                known = [option.key for option in self.options]
                raise entry.error(f"{self.name} has no {key!r}{did_you_mean(normal(key), known)}")
            if option.key in values:
                raise entry.error(f"{option.key} is set twice: {key} means the same.")
            if entry.value is not None:
                values[option.key] = option.texts(entry)
        missing = [option.key for option in self.options if option.parameter.required and not values.get(option.key)]
        if missing:
            raise where.error(f"{self.name} needs {', '.join(missing)}.")
        return values

    def arguments(self, values: Values, *first: str) -> list[str]:
        """The command line for ``values`` without the program's name: ``first``, options, then arguments."""
        options = [option for option in self.options if isinstance(option.parameter, click.Option)]
        line = [word for option in options for word in option.words(values.get(option.key, ()))]
        places = [text for option in self.options if option not in options for text in values.get(option.key, ())]
        dashes = ["--"] if any(text.startswith("-") for text in places) else []
        return [*self.words, *first, *line, *dashes, *places]

    def paths(self, given: Given, *roles: Role) -> list[Path]:
        """The paths of settings with one of these roles."""
        found = [path for option in self.options if option.role in roles for path in given.paths(option.key)]
        if Role.INPUT in roles:
            named = [option for option in self.options if option.role in (Role.MODEL, Role.TASK)]
            found += [path for option in named for path in self._named(option, given)]
        return found

    def _named(self, option: Option, given: Given) -> list[Path]:
        """The values of a model or a task that are paths and no names."""
        if option.role == Role.MODEL:
            return [path for path in given.paths(option.key) if path.is_dir()]
        texts = given.values.get(option.key, ())
        return [path for text, path in zip(texts, given.paths(option.key), strict=True) if is_task_file(text)]

    def reads(self, given: Given) -> list[Path]:
        """The absolute paths that a stage with these settings reads."""
        return list(dict.fromkeys([*self.paths(given, Role.INPUT), *self.declared.reads(given)]))

    def servers(self, given: Given) -> list[str]:
        """The addresses that a stage with these settings reads, in full."""
        inputs = [option for option in self.options if option.role is Role.INPUT]
        return list(dict.fromkeys(url for option in inputs for url in given.addresses(option.key)))

    def writes(self, given: Given) -> list[Path]:
        """The absolute paths that a stage with these settings writes."""
        return list(dict.fromkeys([*self.paths(given, Role.OUTPUT), *self.declared.writes(given)]))


def stage_kinds(commands: Mapping[str, click.Command]) -> dict[str, StageKind]:
    """Every kind of stage among the ``commands`` by its name, such as ``melspec`` and ``captions fill``.

    A command with two names has one kind, called by its first name.
    """
    kinds: dict[int, StageKind] = {}
    return {
        " ".join(words): kinds.setdefault(id(command), StageKind(words, command))
        for words, command in _within((), commands)
        if hasattr(command, "stage")
    }


def _within(
    words: tuple[str, ...], commands: Mapping[str, click.Command]
) -> Iterable[tuple[tuple[str, ...], click.Command]]:
    for word, command in commands.items():
        if isinstance(command, click.Group):
            yield from _within((*words, word), command.commands)
        else:
            yield (*words, word), command


def normal(key: str) -> str:
    return key.replace("-", "_")
