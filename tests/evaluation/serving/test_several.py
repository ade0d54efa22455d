"""Several stores are served as one: each row has its own store's sound, and nothing of one is taken for another's."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from m2dprep.artifacts.errors import UserError
from m2dprep.evaluation.search.projection import (
    FILE,
    FILE_OF_SEVERAL,
    MapSettings,
    make_map,
    map_file,
    map_fingerprint,
    read_map,
)
from m2dprep.evaluation.search.shelf import Shelf, names_of
from m2dprep.evaluation.serving.opening import Shown, for_each, open_site
from tests.evaluation.serving.made_server import Client, served
from tests.evaluation.serving.made_store import captions_of, embeddings_of, tone, write_map, write_store

NAMES = ["dog/0.wav", "rain/1.wav", "shared.wav"]
SETTINGS = MapSettings()


@dataclass(frozen=True)
class Two:
    """Two stores of the same names, whose sounds differ: those of ``roots``; row 3 is the second store's first."""

    stores: list[Path]
    roots: list[Path]
    captions: Path

    @property
    def shown(self) -> Shown:
        return Shown(self.stores, self.roots, captions=[self.captions, Path("-")])


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Two:
    folder = tmp_path_factory.mktemp("two")
    days = ["day1", "day2"]
    for number, day in enumerate(days):
        for at, name in enumerate(NAMES):
            tone(folder / day / "sounds" / name, 200 + 100 * at + 1000 * number)
        write_store(folder / day / "emb", NAMES, embeddings_of([0, 1, 2 + number], seed=number))
    tone(folder / "day2/sounds/of_day2.wav", 900)
    stores = [folder / day / "emb" for day in days]
    shelf = Shelf.open(stores)
    with map_file(shelf).open("wb") as file:
        fingerprint, points = map_fingerprint(shelf, SETTINGS), np.zeros((6, 2), np.float32)
        np.savez(file, fingerprint=fingerprint, rows=np.arange(6), points=points)
    clips = [(name.removesuffix(".wav"), [f"the {name}"], ["Day one"]) for name in NAMES]
    captions = captions_of(folder / "captions.parquet", clips)
    return Two(stores, [folder / day / "sounds" for day in days], captions)


@pytest.fixture(scope="module")
def client(two: Two) -> Iterator[Client]:
    with served(two.shown) as (_, _, client):
        yield client


pytestmark = pytest.mark.slow


def rows(client: Client, question: str) -> list[int]:
    return [clip["row"] for clip in client.ask(f"/api/clips?{question}").said["clips"]]


def test_every_row_is_of_its_own_store_and_has_the_sound_of_that(client: Client, two: Two) -> None:
    stores = client.ask("/api/store").said["stores"]
    assert [(one["name"], one["first"], one["rows"]) for one in stores] == [("day1/emb", 0, 3), ("day2/emb", 3, 3)]
    for row in range(6):
        clip = client.ask(f"/api/clips/{row}").said
        assert (clip["store"], clip["file"]) == (row // 3, NAMES[row % 3])
        assert client.ask(f"/clips/{row}/sound").body == (two.roots[row // 3] / NAMES[row % 3]).read_bytes()
    pictures = {client.ask(f"/clips/{row}/log-mel.png").body for row in range(6)}
    wavs = {client.ask(f"/clips/{row}/sound?as=wav").body for row in range(6)}
    assert len(pictures) == len(wavs) == 6


def test_files_of_equal_name_size_and_time_are_not_taken_for_one_another(two: Two) -> None:
    """Neither in what is kept here nor by a browser, which asks by tags."""
    one, other = (root / "shared.wav" for root in two.roots)
    assert one.stat().st_size == other.stat().st_size
    os.utime(other, ns=(one.stat().st_atime_ns, one.stat().st_mtime_ns))
    with served(two.shown) as (_, _, client):
        for path in ("sound", "sound?as=wav", "log-mel.png"):
            first, second = client.ask(f"/clips/2/{path}"), client.ask(f"/clips/5/{path}")
            assert first.body != second.body
            assert first.headers["etag"] != second.headers["etag"]
            again = client.ask(f"/clips/5/{path}", headers={"If-None-Match": first.headers["etag"]})
            assert (again.status, again.body) == (200, second.body)


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("", [0, 1, 2, 3, 4, 5]),
        ("store=0", [0, 1, 2]),
        ("store=1", [3, 4, 5]),
        ("store=0&store=1", [0, 1, 2, 3, 4, 5]),
        ("store=7", []),
        ("store=1&words=dog", [3]),
        ("words=dog", [0, 3]),
        ("label=Day%20one", [0, 1, 2]),
        ("label=Day%20one&store=1", []),
        ("rows=5,0", [5, 0]),
        ("text=a%20dog&limit=2&store=1", [3]),
    ],
)
def test_lists_of_all_or_of_one_store(client: Client, question: str, expected: list[int]) -> None:
    found = rows(client, question)
    assert found[: len(expected)] == expected
    assert len(found) == len(expected) or question.startswith("text")


def test_words_and_neighbours_are_found_in_all_stores(client: Client) -> None:
    assert set(rows(client, "text=a%20dog%20barks&limit=2")) == {0, 3}
    assert rows(client, "like=0&limit=1") == [3]
    assert set(rows(client, "like=4")) == {0, 1, 2, 3, 5}
    assert client.ask("/api/clips?store=-1").status == 400
    assert client.ask("/api/clips/6").status == 404


def test_captions_of_one_store_say_nothing_of_another(client: Client) -> None:
    assert [client.ask(f"/api/clips/{row}").said["captions"] for row in (0, 3)] == [["the dog/0.wav"], []]


def test_the_map_is_of_all_and_does_not_replace_that_of_one(client: Client, two: Two) -> None:
    assert client.ask("/api/store").said["map"]["state"] == "ready"
    assert not (two.stores[0] / FILE).exists()
    for other in ([two.stores[0]], [two.stores[1], two.stores[0]]):
        assert read_map(Shelf.open(other), SETTINGS) is None
    write_map(two.stores[0], [0, 1, 2])
    assert read_map(Shelf.open(two.stores), SETTINGS) is not None
    assert read_map(Shelf.open(two.stores[:1]), SETTINGS) is not None


def test_a_file_of_another_store_s_folder_is_not_served(tmp_path: Path, two: Two) -> None:
    """Not even if the list of one names what is there in the folder of the other."""
    names = ["of_day2.wav", f"{two.roots[1]}/of_day2.wav", "../../day2/sounds/of_day2.wav"]
    write_map(write_store(tmp_path / "odd", names, embeddings_of([0, 0, 0])), [0, 0, 0])
    with served(Shown([tmp_path / "odd", two.stores[1]], two.roots), words=False) as (_, _, client):
        assert [client.ask(f"/clips/{row}/sound").status for row in range(4)] == [404, 404, 404, 200]


def test_a_store_without_sounds_among_others(two: Two) -> None:
    told: list[str] = []
    site = open_site(Shown(two.stores, [Path("-"), two.roots[1]]), told.append)
    try:
        assert [one["sound"] for one in site.state()["stores"]] == [False, True]
    finally:
        site.close()
    assert told == []


def test_a_folder_that_is_not_the_store_s_is_said(two: Two, tmp_path: Path) -> None:
    told: list[str] = []
    open_site(Shown(two.stores[:1], [tmp_path]), told.append).close()
    assert told == [f"{tmp_path} does not have dog/0.wav, the first sound of {two.stores[0]}."]


def test_a_store_that_is_made_anew_while_it_is_served(tmp_path: Path, two: Two) -> None:
    """What is listed stays that of before; a search says what has happened."""
    store = write_store(tmp_path / "emb", NAMES, embeddings_of([0, 1, 2]))
    write_map(store, [0, 1, 2])
    with served(Shown([store], two.roots[:1])) as (_, _, client):
        assert client.ask("/api/clips?like=0").status == 200
        write_store(tmp_path / "new", ["other.wav"], embeddings_of([3]))
        for file in (tmp_path / "new").iterdir():
            file.replace(store / file.name)
        refused = client.ask("/api/clips?like=0")
        assert refused.status == 400
        assert "has been replaced" in refused.said["error"]
        assert [clip["file"] for clip in client.ask("/api/clips").said["clips"]] == NAMES
        assert client.ask("/clips/0/sound").status == 200


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"checkpoint": "another"}, "another checkpoint"),
        ({"contents": "features"}, "conventional embeddings alone"),
        (None, "given twice"),
    ],
)
def test_stores_that_do_not_belong_together_are_refused(
    tmp_path: Path, values: dict[str, str] | None, said: str
) -> None:
    one = write_store(tmp_path / "one", NAMES, embeddings_of([0, 1, 2]))
    other = tmp_path / "sub/../one"
    (tmp_path / "sub").mkdir()
    if values is not None:
        other = write_store(tmp_path / "other", NAMES, embeddings_of([0, 1, 2]), **values)
    for pair in ([one, other], [other, one]):
        with pytest.raises(UserError, match=said):
            open_site(Shown(pair))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], [None, None, None]),
        (["a"], ["a", "a", "a"]),
        (["-"], [None, None, None]),
        (["a", "-", "c"], ["a", None, "c"]),
    ],
)
def test_options_are_given_once_or_for_each(given: Sequence[str], expected: Sequence[str | None]) -> None:
    found = for_each(3, list(map(Path, given)), "--audio")
    assert [None if one is None else str(one) for one in found] == expected


def test_options_for_some_stores_are_refused() -> None:
    with pytest.raises(UserError, match="--audio is given 2 times, and there are 3 stores"):
        for_each(3, [Path("a"), Path("b")], "--audio")


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        (["/a/one"], ["one"]),
        (["/a/one", "/b/two"], ["one", "two"]),
        (["/a/emb", "/b/emb"], ["a/emb", "b/emb"]),
        (["/x/a/emb", "/y/a/emb", "/c"], ["x/a/emb", "y/a/emb", "/c"]),
    ],
)
def test_stores_are_called_by_what_tells_them_apart(folders: Sequence[str], names: Sequence[str]) -> None:
    assert names_of(list(map(Path, folders))) == names


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_a_map_that_cannot_be_kept_is_shown_all_the_same(
    two: Two, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(path: Path, *parts: object) -> None:
        raise OSError(number, "no", str(path))

    monkeypatch.setattr("m2dprep.evaluation.search.projection.write_bytes", fail)
    made = make_map(Shelf.open(two.stores), SETTINGS)
    assert made.data
    assert made.trouble.startswith(f"{two.stores[0] / FILE_OF_SEVERAL} cannot be written (no")
