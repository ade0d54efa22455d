"""Servers that are slow, fall silent, vanish and come back, and stores of objects: what a run makes of them."""

from __future__ import annotations

import errno
import io
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from m2dprep.artifacts.errors import MachineLostError, UserError
from m2dprep.audioprep import ahead, convert, retries
from m2dprep.audioprep.convert import convert_shard
from m2dprep.audioprep.discover import discover
from m2dprep.audioprep.remote import address, requests
from m2dprep.audioprep.remote.address import address_of
from tests.audioprep.hangs import Hangs
from tests.audioprep.web_server import web
from tests.workflows.melspec.test_melspec_remote import CONFIG, arrays, failures, rows, sound
from tests.workflows.melspec.test_melspec_remote import convert as run

fsspec = pytest.importorskip("fsspec")
pytest.importorskip("aiohttp")


@pytest.fixture(autouse=True)
def nothing_learnt(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Pauses are short, and what this process has learnt of its servers does not outlive a test."""
    monkeypatch.setattr(address, "PAUSES", (0.01, 0.02, 0.05))
    monkeypatch.setattr(retries, "PAUSES", (0.01, 0.02, 0.05))
    monkeypatch.setattr(requests.PORTIONS, "size", requests.FIRST_BYTES)
    yield
    ahead.OPENING.seconds = 0.0


@pytest.fixture
def src(tmp_path: Path) -> Path:
    """Thirty short sounds."""
    folder = tmp_path / "src"
    folder.mkdir()
    for number in range(30):
        (folder / f"{number:02d}.wav").write_bytes(sound(number % 3, "wav"))
    return folder


@pytest.fixture
def store() -> Iterator[type]:
    """A store of objects behind s3://, gs:// and hf://."""
    from tests.audioprep.object_store import ObjectStore, OpeningStore

    for protocol in ObjectStore.protocol:
        kind = OpeningStore if protocol == "hf" else ObjectStore
        fsspec.register_implementation(protocol, kind, clobber=True)
    address._file_system.cache_clear()
    yield ObjectStore
    ObjectStore.clear()
    for protocol in ObjectStore.protocol:
        sys.modules["fsspec.registry"]._registry.pop(protocol, None)
    address._file_system.cache_clear()


@pytest.mark.slow
@pytest.mark.parametrize("opening", [0.0, 1e9], ids=["one by one", "ahead"])
def test_a_slow_answer_is_no_silent_one(tmp_path: Path, src: Path, opening: float) -> None:
    """Each file takes longer than the limit, and so does the page that lists them; no pause is as long."""
    for path in sorted(src.iterdir())[2:]:
        path.unlink()
    assert run(src, tmp_path / "a_lms").done == 2
    with web(src, drip_bytes=3000, drip_seconds=0.4) as server:  # 36 kB take 5 s
        ahead.OPENING.seconds = opening
        report = run(server.url, tmp_path / "x_lms", read_timeout=2.5)
    assert (report.done, failures(tmp_path / "x_lms")) == (2, {})
    assert arrays(tmp_path / "x_lms") == arrays(tmp_path / "a_lms")


@pytest.mark.slow
def test_an_answer_that_stops_in_its_middle_is_a_row(tmp_path: Path, src: Path) -> None:
    for path in sorted(src.iterdir())[2:]:
        path.unlink()
    with web(src) as server:
        sources = discover(address_of(server.url))
        server.drip_bytes, server.stops_after = 5000, 10000
        found = convert_shard(sources, address_of(server.url), tmp_path / "x_lms", CONFIG, read_timeout=1.0)
    assert [row["reason"] for row in found] == ["read_timeout"] * 2


def test_a_store_that_is_slow_is_asked_for_less_at_once(tmp_path: Path, store: type) -> None:
    """Its answers come whole: with requests of 256 KiB, the first one takes longer than the next ones may."""
    data = bytes(range(256)) * 4096
    store.objects["bucket/a.bin"] = data  # type: ignore[attr-defined]
    place = address_of("s3://bucket") / "a.bin"
    assert b"".join(place.read_whole(len(data))) == data
    quick = [size for _, size in store.asked]  # type: ignore[attr-defined]
    assert quick == [1 << 18, 1 << 19, 1 << 18]
    requests.PORTIONS.took(1 << 20, requests.SLOW_SECONDS + 1)
    assert requests.PORTIONS.size == 1 << 19
    for _ in range(20):
        requests.PORTIONS.took(requests.PORTIONS.size, requests.SLOW_SECONDS + 1)
    assert requests.PORTIONS.size == requests.LEAST_BYTES
    store.asked.clear()  # type: ignore[attr-defined]
    assert place.read(100, 50000) == data[100:50100]
    assert next(size for _, size in store.asked) == requests.LEAST_BYTES  # type: ignore[attr-defined]


@pytest.mark.parametrize("protocol", ["s3", "hf"])
def test_no_byte_is_asked_for_twice(store: type, protocol: str) -> None:
    """Also by a store that opens files to read ranges, which fsspec would have read 5 MiB ahead each time."""
    data = bytes(range(256)) * 20000
    store.objects["bucket/a.bin"] = data  # type: ignore[attr-defined]
    place = address_of(f"{protocol}://bucket") / "a.bin"
    assert b"".join(place.read_whole(len(data))) == data
    assert place.read(1000, 500000) == data[1000:501000]
    assert sum(size for _, size in store.asked) == len(data) + 500000  # type: ignore[attr-defined]


@pytest.mark.parametrize("protocol", ["s3", "hf"])
def test_a_store_of_objects_gives_what_its_folder_gives(tmp_path: Path, src: Path, store: type, protocol: str) -> None:
    """Loose files and archives; found again by their tags, and converted again only if these have changed."""
    for path in sorted(src.iterdir())[4:]:
        path.unlink()
    with tarfile.open(src / "s.tar", "w") as archive:
        for number in range(3):
            info = tarfile.TarInfo(f"in/{number}.flac")
            info.size = len(data := sound(number, "flac"))
            archive.addfile(info, io.BytesIO(data))
    (src / "deep/er").mkdir(parents=True)
    (src / "deep/er/e.wav").write_bytes(sound(7, "wav"))
    assert run(src, tmp_path / "a_lms").done == 8
    store.put_folder(src, "bucket/data/train")  # type: ignore[attr-defined]
    store.objects["bucket/data/train/deep/"] = b""  # type: ignore[attr-defined]  # some tools leave these behind
    url, lms = f"{protocol}://bucket/data/train", tmp_path / "x_lms"
    assert run(url, lms).done == 8
    assert arrays(lms) == arrays(tmp_path / "a_lms")
    assert all(row["source_mtime_ns"] < 0 for row in rows(lms).values())
    assert run(url, lms, check_sources=True).done == 0
    store.objects["bucket/data/train/00.wav"] = sound(9, "wav")  # type: ignore[attr-defined]
    assert run(url, lms, check_sources=True).done == 1
    store.forbidden.add("bucket")  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="cannot be listed: Forbidden"):
        run(url, lms)


@pytest.mark.slow
def test_a_server_that_vanishes_and_comes_back(tmp_path: Path, src: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run stops after some failures in a row, and not after one each; the next run does the rest."""
    monkeypatch.setattr(retries, "TRANSIENT_IN_A_ROW", 5)
    assert run(src, tmp_path / "a_lms").done == 30
    lms = tmp_path / "x_lms"
    with web(src) as server:
        url, port, original, written = server.url, server.port, convert.write_lms, list[Path]()

        def write(path: Path, *arguments: Any, **options: Any) -> Any:
            written.append(path)
            if len(written) == 4:
                server.stop()
            return original(path, *arguments, **options)

        monkeypatch.setattr(convert, "write_lms", write)
        with pytest.raises(
            MachineLostError, match=r"5 files in a row could not be read, the last of them \d\d\.wav: .*machine"
        ):
            run(url, lms)
    assert 3 < len(arrays(lms)) < 25
    with web(src, port=port):
        report = run(url, lms)
    assert (report.failed, arrays(lms)) == (0, arrays(tmp_path / "a_lms"))


def until(holds: object) -> None:
    deadline = time.monotonic() + 120
    while not holds() and time.monotonic() < deadline:  # type: ignore[operator]
        time.sleep(0.005)


@pytest.mark.slow
def test_a_server_that_falls_silent_stops_the_run(tmp_path: Path, src: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two million files are not waited for one after another. A few silent ones among others are rows."""
    monkeypatch.setattr(retries, "WAITED_IN_A_ROW", 3)
    with web(src) as server:
        sources = discover(address_of(server.url))
        server.hangs = ("05.wav", "06.wav", "08.wav")
        hangs = Hangs(monkeypatch, server.hangs)
        found = convert_shard(sources, address_of(server.url), tmp_path / "x_lms", CONFIG, read_timeout=0.8)
        reasons = {row["source"]: row["reason"] for row in found if row["reason"]}
        assert reasons == dict.fromkeys(server.hangs, "read_timeout")
        hangs.names = server.hangs = tuple(f"{number:02d}.wav" for number in range(10, 30))
        with pytest.raises(MachineLostError, match=r"3 files in a row could not be read, the last of them 12.wav"):
            convert_shard(sources, address_of(server.url), tmp_path / "y_lms", CONFIG, read_timeout=0.8)


def test_an_answer_that_is_cut_off_is_no_answer_of_the_server(tmp_path: Path, src: Path) -> None:
    """aiohttp gives it the status 400."""
    with web(src, cuts=True) as server, pytest.raises(OSError, match="Response payload is not completed") as caught:
        (address_of(server.url) / "00.wav").read(0, 1000)
    assert (caught.value.errno, "answered" in str(caught.value)) == (errno.EIO, False)


@pytest.mark.parametrize("size", [0, 1000, 1 << 20, -1])
def test_the_bytes_ahead_are_bounded(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Only the present source is read whatever its size; those behind it get room in their order."""
    monkeypatch.setattr(ahead, "BYTES_AHEAD", 4000)
    monkeypatch.setattr(ahead, "FILES_AHEAD", 8)
    room, begun = ahead.Room(), list[int]()

    def take(number: int) -> None:
        room.take(number, size)
        begun.append(number)

    threads = [threading.Thread(target=take, args=(number,), daemon=True) for number in range(8)]
    fit = {0: 8, 1000: 5, 1 << 20: 1, -1: 8}[size]  # the present one, and those that fit behind it
    for number, thread in enumerate(threads):
        thread.start()
        until(lambda number=number: number in (begun if number < fit else room._waiting))  # type: ignore[misc]
    assert begun == list(range(fit))
    for number in range(1, 8):
        room.reach(number)
        until(lambda number=number: number in begun)  # type: ignore[misc]
    for thread in threads:
        thread.join(120)
    assert begun == list(range(8))


def test_nobody_waits_for_room_once_it_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "BYTES_AHEAD", 10)
    room = ahead.Room()
    waiting = threading.Thread(target=room.take, args=(3, 100), daemon=True)
    waiting.start()
    room.close()
    waiting.join(120)
    assert not waiting.is_alive()
