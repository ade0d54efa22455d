"""Rows with their captions and labels, by the house's rule for names; and which rows have a label or a word."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from m2dprep.artifacts.errors import UserError
from m2dprep.evaluation.described import Described
from m2dprep.evaluation.serving.catalogue import Catalogue, Label, Part
from m2dprep.evaluation.serving.excerpts import Stretch
from tests.evaluation.serving.made_store import captions_of

NAMES = ["dog/1.wav", "dog/2.wav", "rain/1.wav", "s.tar::bell/x.flac", "Yabcdefghijk_30.000.wav"]


def index(names: list[str] = NAMES, starts: list[float] | None = None) -> pa.Table:
    ids = [name.split("/")[-1].split(".")[0] for name in names]
    columns = {"file": names, "clip_id": ids, "start": starts or [0.0] * len(names), "seconds": [1.0] * len(names)}
    return pa.table(columns)


def catalogue_of(
    index: pa.Table, *, windows: bool = False, captions: Path | None = None, labels: Path | None = None
) -> Catalogue:
    return Catalogue([Part(index, Described(captions, labels).of_store(index), windows)])


@pytest.fixture(scope="module")
def captions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    clips = [
        ("dog/1", ["A dog barks", "barking"], ["Dog", "Animal"]),
        ("dog/2", ["a puppy"], ["Dog"]),
        ("rain/1", ["it rains"], []),
        ("bell/x", ["<b>a bell</b>"], ["Bell"]),
        ("abcdefghijk", ["an engine idles"], ["Engine", "Dog"]),
        ("elsewhere", ["not in the store"], ["Nothing"]),
    ]
    return captions_of(tmp_path_factory.mktemp("captions") / "captions.parquet", clips)


def test_rows_have_the_captions_and_labels_of_their_clips(captions: Path) -> None:
    catalogue = catalogue_of(index(), captions=captions)
    details = [catalogue.details(row) for row in range(5)]
    assert [one["captions"] for one in details] == [
        ["A dog barks", "barking"], ["a puppy"], ["it rains"], ["<b>a bell</b>"], ["an engine idles"],
    ]  # fmt: skip
    assert [set(one["labels"]) for one in details] == [{"Dog", "Animal"}, {"Dog"}, set(), {"Bell"}, {"Engine", "Dog"}]
    assert catalogue.labels == [Label("Dog", 3), Label("Animal", 1), Label("Bell", 1), Label("Engine", 1)]
    assert catalogue.coloured_label().tolist() == [1, 0, -1, 2, 3], "the rarest that has a colour"
    assert catalogue.entry(0)["caption"] == "A dog barks"
    assert catalogue.row(0).is_whole
    assert catalogue_of(index(), captions=captions.parent).labels == catalogue.labels
    assert not catalogue.parts[0].said.gaps


@pytest.mark.parametrize(
    ("labels", "words", "expected"),
    [
        ((), "", None),
        (("Dog",), "", [0, 1, 4]),
        (("Animal", "Bell"), "", [0, 3]),
        (("Nothing",), "", []),
        (("dog",), "", []),
        ((), "dog", [0, 1]),
        ((), "DOG barks", [0]),
        ((), "engine", [4]),
        ((), "bell", [3]),
        ((), "tar", [3]),
        ((), ".wav", [0, 1, 2, 4]),
        ((), ".*", []),
        ((), "<b>", [3]),
        (("Dog",), "puppy", [1]),
        (("Bell",), "puppy", []),
    ],
)
def test_rows_by_labels_and_words(
    captions: Path, labels: tuple[str, ...], words: str, expected: list[int] | None
) -> None:
    found = catalogue_of(index(), captions=captions).rows_of(labels, words)
    assert (None if found is None else found.tolist()) == expected


def test_windows_share_what_their_sound_has(captions: Path) -> None:
    named = index(["dog/1.wav"] * 3 + ["rain/1.wav"], [0.0, 1.0, 2.0, 0.0])
    catalogue = catalogue_of(named, windows=True, captions=captions)
    assert len(catalogue.parts[0].said.files) == 2
    assert catalogue.labels[0].rows == 3
    assert catalogue.rows_of(["Dog"]).tolist() == [0, 1, 2]  # type: ignore[union-attr]
    assert catalogue.row(1).stretch == Stretch(1.0, 1.0)
    assert catalogue.details(2)["captions"] == ["A dog barks", "barking"]


def test_labels_from_a_table_as_data_sets_have_it(tmp_path: Path, captions: Path) -> None:
    table = tmp_path / "esc50.csv"
    table.write_text("filename,fold,category\ndog/1.wav,1,hound\ndog/2.wav,2,hound\nelse.wav,1,cat\n")
    catalogue = catalogue_of(index(), labels=table)
    assert catalogue.labels == [Label("hound", 2)]
    assert catalogue.details(0)["captions"] == []
    assert catalogue.parts[0].said.gaps == [f"{table} has 2 of 5 sounds"]
    both = catalogue_of(index(), labels=table, captions=captions)
    assert set(both.details(0)["labels"]) == {"Dog", "Animal", "hound"}


def test_names_that_several_clips_could_mean_have_no_captions(tmp_path: Path) -> None:
    ambiguous = captions_of(tmp_path / "captions.parquet", [("1", ["one of the two"], ["A"])])
    catalogue = catalogue_of(index(), captions=ambiguous)
    assert [catalogue.details(row)["captions"] for row in range(3)] == [[], [], []]


def test_a_table_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.parquet"):
        catalogue_of(index(), captions=tmp_path / "none.parquet")
    (tmp_path / "odd.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="no column"):
        catalogue_of(index(), labels=tmp_path / "odd.csv")
