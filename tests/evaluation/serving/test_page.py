"""The page in a real browser: search, play, neighbours, filter, map, keys, a phone, ten thousand clips."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from m2dprep.evaluation.search.projection import MapSettings, map_file, map_fingerprint
from m2dprep.evaluation.search.shelf import Shelf
from m2dprep.evaluation.serving.guard import guard_for
from m2dprep.evaluation.serving.opening import Shown
from tests.evaluation.serving.browser import Page, chromium
from tests.evaluation.serving.made_server import served
from tests.evaluation.serving.made_store import KINDS, captions_of, embeddings_of, tone, write_map, write_store

pytestmark = pytest.mark.slow

ENTER, ESCAPE, DOWN, UP, RIGHT, LEFT = "\ue007", "\ue00c", "\ue015", "\ue013", "\ue014", "\ue012"
COUNT = 80
MARKUP = "<img src=x onerror=\"document.title='hit'\"><script>document.title='hit'</script>"
# Rows of odd kinds.
XSS, GONE, AIFF, OGG, MEMBER, WIDE, CHANGED = 4, 8, 12, 16, 20, 24, 28
MISSING = f"/clips/{GONE}/log-mel.png"
NAMES = {
    XSS: f"dog/{MARKUP.replace('/', '')}.wav",
    GONE: "dog/gone.wav",
    AIFF: "dog/12.aiff",
    OGG: "dog/16.ogg",
    MEMBER: "all.tar::dog/20.wav",
    WIDE: "dog/24.flac",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eighty clips of four kinds: row i is of kind i mod 4. Some are of odd formats, and one is gone."""
    folder = tmp_path_factory.mktemp("page")
    kinds = [number % 4 for number in range(COUNT)]
    names = [NAMES.get(number, f"{KINDS[kind]}/{number}.wav") for number, kind in enumerate(kinds)]
    for number, name in enumerate(names):
        if number not in (GONE, MEMBER):
            tone(folder / "root" / name, 200 + 20 * number, seconds=3.0, channels=4 if number == WIDE else 1)
    with tarfile.open(folder / "root/all.tar", "w") as archive:
        data = (folder / "root" / names[0]).read_bytes()
        member = tarfile.TarInfo("dog/20.wav")
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))
    stamps = {names[CHANGED]: "1000 1"}
    write_map(write_store(folder / "store", names, embeddings_of(kinds), seconds=3.0, stamps=stamps), kinds)
    clips = [
        (name.split("::")[-1].rsplit(".", 1)[0], [f"a {KINDS[kind]}, number {number}", MARKUP], [KINDS[kind]])
        for number, (name, kind) in enumerate(zip(names, kinds, strict=True))
    ]
    captions_of(folder / "captions.parquet", clips)
    return folder


@pytest.fixture(scope="module")
def shown(folder: Path) -> Shown:
    return Shown([folder / "store"], audio=[folder / "root"], captions=[folder / "captions.parquet"])


@pytest.fixture(scope="module")
def address(shown: Shown) -> Iterator[str]:
    with served(shown) as (_, address, _):
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    with chromium() as page:
        yield page


@pytest.fixture
def page(browser: Page, address: str) -> Iterator[Page]:
    """The page, opened anew; at the end, nothing has gone wrong in it unseen."""
    browser.open(address)
    yield browser
    assert browser.complaints(MISSING) == []


def plays(page: Page, row: int) -> None:
    """The sound of a row is heard from its beginning, and its position is shown."""
    page.until("S.chosen && S.chosen.row === arguments[0]", row)
    page.until("!audio.paused && audio.currentTime > 0.05")
    page.until("parseFloat($('head-line').style.left) > 0 && $('play').getAttribute('aria-pressed') === 'true'")
    assert page.run("$('log-mel').complete && $('log-mel').naturalHeight") == 80


def test_words_find_clips_as_they_are_typed(page: Page) -> None:
    assert page.text("size") == f"{COUNT} clips"
    page.click("#words")
    page.keys("a dog barks")
    page.until("S.ask.kind === 'text' && S.ask.text === 'a dog barks' && !S.loading")
    rows = page.run("S.clips.slice(0, 20).map(clip => clip.row)")
    assert {row % 4 for row in rows} == {0}
    assert page.text("status") == f"{COUNT} clips by how much they sound like “a dog barks”"
    assert page.run("document.querySelector('#clips li .score').textContent") > "0.9"
    page.keys(ESCAPE)
    page.until("S.ask.kind === 'all' && !S.loading")
    assert page.text("status") == f"{COUNT} clips"


def test_names_are_found_too(page: Page) -> None:
    page.click(".how input[value=words]")
    page.click("#words")
    page.keys("rain 1")
    page.until("S.ask.kind === 'words' && S.ask.text === 'rain 1' && !S.loading")
    assert page.files() == [f"rain/{number}.wav" for number in range(1, COUNT, 4) if "1" in str(number)]


@pytest.mark.parametrize("row", [0, AIFF, OGG, MEMBER, WIDE])
def test_a_click_plays_whatever_the_format(page: Page, row: int) -> None:
    page.click(f"#clip-{row}")
    plays(page, row)
    page.keys(" ")
    page.until("audio.paused && $('play').getAttribute('aria-label') === 'Play'")


def test_a_sound_that_is_not_what_was_embedded_is_played_with_a_word_about_it(page: Page) -> None:
    page.click(f"#clip-{CHANGED}")
    page.until("!$('changed').hidden")
    assert page.text("changed").startswith("The sound has changed since it was embedded: it had 1,000 bytes, and now")
    plays(page, CHANGED)
    page.click("#clip-0")
    plays(page, 0)
    page.until("$('changed').hidden && S.chosen.captions.length > 1")


def test_a_codec_that_the_browser_lacks_is_asked_for_as_wav(page: Page) -> None:
    page.run(
        """(audio.addEventListener('loadstart', () => {
            if (!audio.src.includes('as=wav')) audio.dispatchEvent(new Event('error'));
        }), 1)"""
    )
    page.click("#clip-0")
    page.until("audio.getAttribute('src') === 'clips/0/sound?as=wav'")
    plays(page, 0)


def test_the_picture_is_a_slider_of_the_position(page: Page) -> None:
    page.click("#clip-0")
    plays(page, 0)
    page.keys(" ")
    box = page.run("(b => [b.left, b.top, b.width, b.height])($('picture').getBoundingClientRect())")
    page.drag([(box[0] + box[2] * 2 / 3, box[1] + 20)])
    page.until("Math.abs(audio.currentTime - 2) < 0.05")
    page.until("Math.abs(parseFloat($('head-line').style.left) - 66.7) < 2")
    assert page.run("$('picture').getAttribute('aria-valuetext')") == "2.0 of 3.0 seconds"


def test_a_clip_that_is_gone_says_so(browser: Page, address: str) -> None:
    browser.open(address)
    browser.click(f"#clip-{GONE}")
    browser.until("!$('trouble').hidden")
    browser.until("document.querySelector(arguments[0] + ' .none') && !document.querySelector(arguments[0] + ' img')",
                  f"#clip-{GONE}")  # fmt: skip
    assert "no such file" in browser.text("trouble")
    browser.click("#clip-0")
    plays(browser, 0)
    assert browser.run("$('trouble').hidden")


def test_more_like_this(page: Page) -> None:
    page.click("#clip-1")
    page.click("#similar")
    page.until("S.ask.kind === 'like' && !S.loading")
    rows = page.run("S.clips.slice(0, 19).map(clip => clip.row)")
    assert {row % 4 for row in rows} == {1}
    assert 1 not in rows
    assert page.text("status") == "Clips that sound like 1"
    page.click("#all")
    page.until("S.ask.kind === 'all'")


def test_labels_filter_what_is_listed(page: Page) -> None:
    page.click("#labels .chip:nth-child(4)")  # rain
    page.until("S.total === 20 && !S.loading")
    assert all(name.startswith("rain/") for name in page.files())
    assert page.run("document.querySelector('#labels [aria-pressed=true] span').textContent") == "rain"
    page.click("#labels .chip:nth-child(1)")  # or bell
    page.until("S.total === 40 && !S.loading")
    page.click("#words")
    page.keys("the rain", ENTER)
    page.until("S.ask.kind === 'text' && !S.loading")
    assert {row % 4 for row in page.run("S.clips.map(clip => clip.row)")} == {1, 2}
    assert "label=rain" in page.run("location.hash")
    page.run("(location.reload(), 1)")
    page.until(
        "document.readyState === 'complete' && window.S === undefined && typeof S === 'object' && S.total === 40"
    )
    assert page.run("$('words').value") == "the rain"


def test_a_click_on_the_map_plays_the_clip(page: Page) -> None:
    page.drag([page.place_of(2)])
    plays(page, 2)
    assert page.text("title") == "2"
    assert page.text("captions").startswith("a bell, number 2")


def test_a_lasso_lists_what_it_is_drawn_around(page: Page) -> None:
    places = [page.place_of(row) for row in range(1, COUNT, 4)]
    left, right = min(x for x, _ in places) - 6, max(x for x, _ in places) + 6
    top, bottom = min(y for _, y in places) - 6, max(y for _, y in places) + 6
    page.drag([(left, top), (right, top), (right, bottom), (left, bottom), (left, top + 2)])
    page.until("S.ask.kind === 'rows' && !S.loading")
    assert page.run("S.clips.map(clip => clip.row)") == list(range(1, COUNT, 4))
    assert page.text("status") == "20 clips selected on the map"
    page.keys(ESCAPE)
    page.until("S.ask.kind === 'all' && S.total === arguments[0]", COUNT)


def test_the_wheel_looks_closer(page: Page) -> None:
    x, y = page.place_of(0)
    event = {"type": "mouseWheel", "x": x, "y": y, "deltaX": 0, "deltaY": -600}
    page.browser.execute_cdp_cmd("Input.dispatchMouseEvent", event)
    page.until("map.zoom > 1.5 && !$('whole').hidden")
    after = page.place_of(0)
    assert abs(after[0] - x) < 2
    assert abs(after[1] - y) < 2
    page.click("#whole")
    page.until("map.zoom === 1 && $('whole').hidden")


def test_everything_by_keys(page: Page) -> None:
    page.keys("/")
    assert page.run("document.activeElement.id") == "words"
    page.keys("the engine", ENTER)
    page.until("S.ask.text === 'the engine' && !S.loading && document.activeElement.id === 'clips' && S.at === 0")
    assert page.run("$('clips').getAttribute('aria-activedescendant')") == "clip-0"
    assert page.run("getComputedStyle($('clip-0')).boxShadow") != "none"  # the focus is seen
    page.keys(DOWN, DOWN, UP)
    page.until("S.at === 1")
    row = page.run("S.clips[1].row")
    page.keys(" ")
    plays(page, row)
    page.keys(" ")
    page.until("audio.paused")
    page.keys(RIGHT)
    page.until("audio.currentTime > 0.9")
    page.keys(LEFT, LEFT)
    page.until("audio.currentTime < 0.2")
    page.keys(ENTER)
    plays(page, row)
    page.keys("s")
    page.until("S.ask.kind === 'like' && S.ask.row === arguments[0] && !S.loading", row)
    page.keys("m")
    assert page.run("document.activeElement.id") == "points"
    page.keys(LEFT, UP)
    page.until("S.chosen.row !== arguments[0]", row)
    page.keys("?")
    page.until("$('keys').open")
    page.keys(ESCAPE)
    page.until("!$('keys').open && S.ask.kind === 'like'")
    page.keys(ESCAPE)
    page.until("S.ask.kind === 'all' && !S.loading")


def test_what_readers_of_screens_are_told(page: Page) -> None:
    page.click("#clip-0")
    roles = page.run("[...document.querySelectorAll('#clips > *')].slice(0, 5).map(item => item.getAttribute('role'))")
    assert roles == ["option"] * 5
    kinds = "button, input, [role=slider], [role=listbox], [role=application], dialog"
    nameless = page.run(
        """[...document.querySelectorAll(arguments[0])].filter(one => !one.closest('label') &&
        !one.textContent.trim() &&
        !one.getAttribute("aria-label") && !one.getAttribute('aria-labelledby')).map(one => one.outerHTML)""",
        kinds,
    )
    assert nameless == []
    assert page.run("document.querySelectorAll('#clips [aria-selected=true]').length") == 1
    assert page.run("$('log-mel').alt").startswith("Log-mel spectrogram")


def test_names_and_captions_are_text_and_never_markup(page: Page) -> None:
    page.click(f"#clip-{XSS}")
    page.until("$('captions').children.length === 2")
    assert page.text("captions").endswith(MARKUP)
    assert MARKUP.split("<script>")[0] in page.run("$('title').textContent + '/'")
    page.hover(*page.place_of(XSS))
    page.until("!$('tip').hidden")
    page.keys("/")
    page.keys(MARKUP, ENTER)
    page.until("S.ask.kind === 'text' && !S.loading")
    page.click("#clip-3")
    page.click("#similar")
    page.until("S.ask.kind === 'like' && !S.loading")
    assert page.run("document.querySelectorAll('main script, img[src=x], [onerror]').length") == 0
    assert page.run("document.title") == "store"


@pytest.mark.parametrize(("width", "height"), [(360, 640), (390, 844), (844, 390)])
def test_a_phone(browser: Page, address: str, width: int, height: int) -> None:
    browser.open(address, width, height, phone=True)
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.run("innerWidth") == width
    browser.click("#clip-1")
    plays(browser, 1)
    assert browser.run("document.documentElement.scrollWidth") <= width
    bottom = browser.run("$('clip').getBoundingClientRect().bottom")
    assert bottom <= height + 1
    browser.click("#tab-map")
    seen = "getComputedStyle($(arguments[0])).visibility"
    assert [browser.run(seen, name) for name in ("list", "map")] == ["hidden", "visible"]
    browser.stroke([browser.place_of(3)])
    plays(browser, 3)
    x, y = browser.place_of(0)
    browser.stroke([(x - 9, y - 9), (x + 9, y - 9), (x + 9, y + 9), (x - 9, y + 9)])
    browser.until("S.ask.kind === 'rows' && !S.loading && document.body.dataset.tab === 'clips'")
    assert 0 in browser.run("S.clips.map(clip => clip.row)")
    assert browser.complaints(MISSING) == []


def test_light_and_dark(page: Page) -> None:
    seen = []
    for scheme in ("light", "dark"):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        seen.append(page.run("getComputedStyle(document.body).backgroundColor"))
        page.until("map.colours.ink === getComputedStyle(document.documentElement).getPropertyValue('--ink').trim()")
    page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert seen == ["rgb(250, 249, 247)", "rgb(20, 23, 26)"]


def test_behind_a_token_everything_works(browser: Page, shown: Shown) -> None:
    with served(shown, guard=guard_for("127.0.0.1", token=True)) as (_, address, _):
        browser.open(address)
        browser.click("#clip-0")
        plays(browser, 0)
        browser.place_of(0)
        assert browser.complaints(MISSING) == []


def test_two_stores_are_told_apart(browser: Page, folder: Path, tmp_path: Path) -> None:
    """Each row says whose it is, one can be chosen, and without labels they have the colours of the map."""
    names, kinds = [f"{KINDS[kind]}/{kind}.wav" for kind in range(4)], list(range(4))
    stores = [write_store(tmp_path / name, names, embeddings_of(kinds)) for name in ("monday", "tuesday")]
    shelf, settings = Shelf.open(stores), MapSettings()
    with map_file(shelf).open("wb") as file:
        points = np.linspace(-1, 1, 16).reshape(8, 2)
        np.savez(file, fingerprint=map_fingerprint(shelf, settings), rows=np.arange(8), points=points)
    with served(Shown(stores, [folder / "root", Path("-")])) as (_, address, _):
        browser.open(address)
        browser.until("map.rows.length === 8")
        assert browser.text("size") == "2 stores, 8 clips"
        assert browser.run("[...document.querySelectorAll('#clips .of')].map(one => one.textContent)") == [
            *["monday"] * 4,
            *["tuesday"] * 4,
        ]
        assert browser.run("[...$('legend').children].map(one => one.textContent)") == ["monday", "tuesday"]
        browser.click("#stores .chip:nth-child(2)")
        browser.until("S.total === 4 && !S.loading")
        assert browser.text("status") == "4 clips in tuesday"
        browser.click("#clip-0")
        browser.until("S.chosen && S.chosen.row === 4 && $('play').hidden")  # no sounds of this store are served
        browser.run("(location.reload(), 1)")
        browser.until("document.readyState === 'complete' && typeof S === 'object' && S.total === 4")
        browser.click("#stores .chip:nth-child(2)")
        browser.until("S.total === 8 && !S.loading")
        browser.click("#clip-0")
        plays(browser, 0)
        assert browser.complaints() == []


def test_without_words_the_page_says_why_and_does_the_rest(browser: Page, shown: Shown) -> None:
    with served(shown, words=False) as (_, address, _):
        browser.open(address)
        assert "--checkpoint" in browser.text("notice")
        assert not browser.run("$('notice').hidden")
        browser.click("#words")
        browser.keys("bell 2", ENTER)
        browser.until("S.ask.kind === 'words' && !S.loading && S.total > 0")
        assert all(name.startswith("bell/") for name in browser.files())
        browser.click("#similar")
        browser.until("S.ask.kind === 'like' && !S.loading")
        assert browser.complaints(MISSING) == []


def test_ten_thousand_clips(browser: Page, tmp_path: Path) -> None:
    """Listed as one scrolls, all on the map, and as quick to search: the page asks for a screenful at a time."""
    count = 10_000
    kinds = [number % 4 for number in range(count)]
    names = [f"{KINDS[kind]}/{number:05d}.wav" for number, kind in enumerate(kinds)]
    write_map(write_store(tmp_path / "store", names, embeddings_of(kinds)), kinds)
    with served(Shown([tmp_path / "store"])) as (_, address, _):
        browser.open(address)
        assert browser.text("status") == "10,000 clips"
        browser.until("map.rows.length === 10000")
        assert browser.run("S.clips.length") < 200
        for _ in range(5):
            before = browser.run("S.clips.length")
            browser.run("($('clips').scrollTop = $('clips').scrollHeight, 1)")
            browser.until("S.clips.length > arguments[0]", before)
        browser.keys("/", "a bell rings", ENTER)
        browser.until("S.ask.text === 'a bell rings' && !S.loading")
        assert {row % 4 for row in browser.run("S.clips.map(clip => clip.row)")} == {2}
        x, y = browser.place_of(0)
        browser.drag([(x - 40, y - 40), (x + 40, y - 40), (x + 40, y + 40), (x - 40, y + 40), (x - 40, y - 39)])
        browser.until("S.ask.kind === 'rows' && !S.loading")
        assert browser.run("S.total") > 60
        assert browser.run("S.total === S.ask.rows.length && S.clips.length === 60")
        assert browser.complaints(MISSING) == []
