"""Names that a file system takes for one."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest

from m2dprep.artifacts import folders as name_folding
from m2dprep.artifacts.folders import EXACT, NameFolding, probe_folding

NFD = unicodedata.normalize("NFD", "é")


@pytest.mark.parametrize(
    ("folding", "one", "other", "same"),
    [
        (EXACT, "A", "a", False),
        (NameFolding(case=True), "A/b.npy", "a/B.npy", True),
        (NameFolding(case=True), "STRASSE", "straße", True),
        (NameFolding(case=True), "É", "é", True),
        (NameFolding(case=True), "é", NFD, False),
        (NameFolding(form=True), "é", NFD, True),
        (NameFolding(form=True), "É", "é", False),
        (NameFolding(case=True, form=True), "É", NFD, True),
        (NameFolding(case=True, form=True), "a", "b", False),
    ],
)
def test_what_is_one_name(folding: NameFolding, one: str, other: str, same: bool) -> None:
    assert (folding(one) == folding(other)) is same


@pytest.mark.parametrize(
    ("fold", "found"),
    [
        (lambda name: name, EXACT),
        (str.casefold, NameFolding(case=True)),
        (lambda name: unicodedata.normalize("NFD", name), NameFolding(form=True)),
        (lambda name: unicodedata.normalize("NFC", name).casefold(), NameFolding(case=True, form=True)),
        (lambda name: "".join(c.lower() if c.isascii() else c for c in name), NameFolding(case=True)),
    ],
)
def test_the_probe_asks_the_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fold: Callable[[str], str], found: NameFolding
) -> None:
    """File systems are what they answer; that they are asked about a file that is there, is tested below."""

    def lexists(path: Path) -> bool:
        return fold(path.name) in {fold(entry.name) for entry in tmp_path.iterdir()}

    monkeypatch.setattr(name_folding.os.path, "lexists", lexists)
    assert probe_folding(tmp_path) == found
    assert not list(tmp_path.iterdir())


def test_this_file_system(tmp_path: Path) -> None:
    folding = probe_folding(tmp_path)
    (tmp_path / "a").touch()
    assert (tmp_path / "A").exists() is folding.case
