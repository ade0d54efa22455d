"""File systems that take two names for one: they ignore case (NTFS, exFAT, SMB) or Unicode's normal forms (APFS)."""

from __future__ import annotations

import os
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from artifacts.atomic import temporary_path

# A letter with an accent in one code point, in lower case; its other forms are tried against it.
PROBE = "é"


@dataclass(frozen=True)
class NameFolding:
    """What a file system does not tell apart."""

    case: bool = False
    form: bool = False

    def __bool__(self) -> bool:
        return self.case or self.form

    def __call__(self, name: str) -> str:
        """The same text for all names that mean one file."""
        if name.isascii():
            return name.lower() if self.case else name
        if self.form:
            name = unicodedata.normalize("NFC", name)
        if self.case:
            name = name.casefold()
            return unicodedata.normalize("NFC", name) if self.form else name
        return name

    def __str__(self) -> str:
        return " and ".join([*["case"] * self.case, *["Unicode's normal forms"] * self.form])


EXACT = NameFolding()


def probe_folding(folder: Path) -> NameFolding:
    """How the file system of ``folder`` treats names, by a file that is made there and removed. Raises `OSError`."""
    probe = temporary_path(folder)
    probe = probe.with_name(f"{probe.stem.lower()}{PROBE}{probe.suffix}")
    probe.touch(exist_ok=False)
    # Some know the case of ASCII letters only.
    upper = ["".join(letter.upper() if letter.isascii() else letter for letter in probe.name), probe.name.upper()]
    try:
        return NameFolding(
            case=any(os.path.lexists(probe.with_name(name)) for name in upper),
            form=os.path.lexists(probe.with_name(unicodedata.normalize("NFD", probe.name))),
        )
    finally:
        probe.unlink()
