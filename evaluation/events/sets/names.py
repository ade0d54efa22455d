"""Readable names of events and scenes, which are all that a blind classification knows of a data set."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from m2dprep.artifacts.errors import UserError

# Labels of TUT Rare Sound Events and TUT Acoustic Scenes that are run together or shortened.
KNOWN = {
    "babycry": ("baby cry",),
    "glassbreak": ("glass breaking",),
    "gunshot": ("gunshot",),
    "cafe/restaurant": ("cafe or restaurant",),
    "tram": ("tram",),
}


def readable(label: str) -> str:
    """``city_center`` → ``city center``, ``RunningWater`` → ``running water``, ``bus/tram`` → ``bus or tram``."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", label)
    spaced = re.sub(r"\s*/\s*", " or ", re.sub(r"[_\-\s]+", " ", spaced))
    return spaced.strip().lower()


def names_of(
    classes: Sequence[str], of_table: Mapping[str, Sequence[str]], given: Sequence[str] = ()
) -> dict[str, tuple[str, ...]]:
    """The names of every class: those ``given`` as ``LABEL=NAME``, else the table's, else `KNOWN` ones, else the label
    made readable. Raises `UserError` for a name of no class, or one that two classes share."""
    own: dict[str, list[str]] = {}
    for text in given:
        label, sign, name = text.partition("=")
        if not sign or not name.strip():
            raise UserError(f"--name {text!r} must be LABEL=NAME.")
        if label.strip() not in classes:
            raise UserError(f"--name {text!r}: {label.strip()!r} is none of the classes ({', '.join(classes)}).")
        own.setdefault(label.strip(), []).append(name.strip())
    found = {
        label: tuple(own.get(label) or of_table.get(label) or KNOWN.get(label) or (readable(label),))
        for label in classes
    }
    seen: dict[str, str] = {}
    for label, names in found.items():
        for name in names:
            if not name.strip():
                raise UserError(f"the class {label!r} has no readable name; --name {label}=NAME gives one.")
            if seen.setdefault(name.casefold(), label) != label:
                raise UserError(
                    f"{seen[name.casefold()]!r} and {label!r} have one name, {name!r}, so that they cannot be told "
                    "apart; --name LABEL=NAME gives another."
                )
    return found
