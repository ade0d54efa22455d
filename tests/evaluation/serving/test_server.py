"""The server over HTTP: what it answers, what it never answers, and that it ends when it is told to."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest

from m2dprep.artifacts.errors import UserError
from m2dprep.evaluation.serving.guard import guard_for
from m2dprep.evaluation.serving.handlers import PAGE
from m2dprep.evaluation.serving.opening import Shown, open_site
from m2dprep.evaluation.serving.serve import listening
from m2dprep.evaluation.serving.site import Site
from tests.evaluation.serving.made_server import Client, served
from tests.evaluation.serving.made_store import KINDS, captions_of, embeddings_of, tone, write_map, write_store

pytestmark = pytest.mark.slow
COUNT = 12
ODD = '<img src=x onerror="alert(1)">.wav'


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Shown:
    """Twelve clips of four kinds, one with a name like markup, one that is gone, one of a format for no browser."""
    folder = tmp_path_factory.mktemp("serve")
    names = [f"{KINDS[number % 4]}/{number}.wav" for number in range(COUNT)]
    names[9], names[10] = ODD, "bell/10.aiff"
    for number, name in enumerate(names):
        tone(folder / "root" / name, 200 + 50 * number)
    (folder / "root" / names[11]).unlink()
    (folder / "root/unlisted.wav").write_bytes((folder / "root" / names[0]).read_bytes())
    kinds = [number % 4 for number in range(COUNT)]
    write_map(write_store(folder / "store", names, embeddings_of(kinds)), kinds)
    clips = [(name.rsplit(".", 1)[0], [f"<script>alert({number})</script>"], [KINDS[number % 4]])
             for number, name in enumerate(names)]  # fmt: skip
    captions = captions_of(folder / "captions.parquet", clips)
    return Shown([folder / "store"], audio=[folder / "root"], captions=[captions])


@pytest.fixture(scope="module")
def running(shown: Shown) -> Iterator[tuple[Site, Client]]:
    with served(shown) as (site, _, client):
        yield site, client


@pytest.fixture
def client(running: tuple[Site, Client]) -> Client:
    return running[1]


def test_the_page_runs_its_own_script_and_loads_from_here_alone(client: Client) -> None:
    page = client.ask("/")
    assert page.status == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    policy = page.headers["content-security-policy"]
    text = page.body.decode()
    for kind in ("script", "style"):
        (content,) = re.findall(f"<{kind}>(.*?)</{kind}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}';" in policy
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    # Nothing comes from elsewhere, and there are no handlers or styles in the markup, which the policy would refuse.
    assert not re.findall(r'(?:src|href)="(?!data:)[^"]+"', text)
    assert not re.search(r"<[^>]*\s(on\w+|style)=", text.split("<script>")[0])
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)
    assert "innerHTML" not in text


@pytest.mark.parametrize("path", ["/", "/api/store", "/api/clips", "/api/clips/0", "/clips/0/sound", "/nowhere"])
def test_every_answer_is_for_this_page_alone(client: Client, path: str) -> None:
    answer = client.ask(path, headers={"Origin": "http://evil.example"})
    assert "access-control-allow-origin" not in answer.headers
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert "default-src 'none'" in answer.headers["content-security-policy"]


def test_the_state(client: Client) -> None:
    state = client.ask("/api/store").said
    (store,) = state["stores"]
    assert (store["rows"], store["sounds"], store["windows"], store["sound"]) == (COUNT, COUNT, False, True)
    assert (state["rows"], store["name"], store["first"]) == (COUNT, "store", 0)
    assert state["words"] == {"state": "ready", "reason": ""}
    assert state["labels"] == [{"name": kind, "rows": 3} for kind in sorted(KINDS)]


@pytest.mark.parametrize(
    ("question", "rows", "total"),
    [
        ("", list(range(COUNT)), COUNT),
        ("?offset=10", [10, 11], COUNT),
        ("?offset=3&limit=2", [3, 4], COUNT),
        ("?offset=500", [], COUNT),
        ("?limit=0", [], COUNT),
        ("?label=dog", [0, 4, 8], 3),
        ("?label=dog&label=bell", [0, 2, 4, 6, 8, 10], 6),
        ("?label=cat", [], 0),
        ("?words=rain", [1, 5], 2),
        ("?words=ONERROR", [9], 1),
        ("?words=rain&label=dog", [], 0),
        ("?rows=5,0,11", [5, 0, 11], 3),
        ("?text=%20%20", list(range(COUNT)), COUNT),
    ],
)
def test_lists(client: Client, question: str, rows: list[int], total: int) -> None:
    said = client.ask(f"/api/clips{question}").said
    assert [clip["row"] for clip in said["clips"]] == rows
    assert said["total"] == total


def test_words_find_what_sounds_like_them(client: Client) -> None:
    said = client.ask("/api/clips?text=the%20rain%20falls&limit=4").said
    assert {clip["row"] for clip in said["clips"][:3]} == {1, 5, 9}
    scores = [clip["score"] for clip in said["clips"]]
    assert scores == sorted(scores, reverse=True)
    assert said["total"] == COUNT
    later = client.ask("/api/clips?text=the%20rain%20falls&offset=3&limit=1").said
    assert later["clips"][0]["row"] == said["clips"][3]["row"]
    only = client.ask("/api/clips?text=the%20rain%20falls&label=bell").said
    assert {clip["row"] for clip in only["clips"]} == {2, 6, 10}


def test_neighbours_are_the_same_kind_and_not_the_clip_itself(client: Client) -> None:
    said = client.ask("/api/clips?like=4&limit=3").said
    assert {clip["row"] for clip in said["clips"][:2]} == {0, 8}
    assert said["total"] == COUNT - 1
    assert len(client.ask("/api/clips?like=4").said["clips"]) == COUNT - 1
    assert len(client.ask("/api/clips?like=4&label=dog").said["clips"]) == 2
    assert len(client.ask("/api/clips?like=4&label=rain").said["clips"]) == 3


def test_names_and_captions_are_data(client: Client) -> None:
    answer = client.ask("/api/clips/9")
    assert answer.headers["content-type"].lower() == "application/json; charset=utf-8"
    assert answer.said["file"] == ODD
    assert answer.said["captions"] == ["<script>alert(9)</script>"]


def test_what_has_changed_since_it_was_embedded(client: Client) -> None:
    assert client.ask("/api/clips/0/changes").said == {"row": 0, "changes": []}
    assert client.ask("/api/clips/99999/changes").status == 404


def test_a_sound_whole_in_part_and_not_again(client: Client, shown: Shown) -> None:
    data = (shown.audio[0] / "dog/0.wav").read_bytes()
    whole = client.ask("/clips/0/sound")
    assert (whole.status, whole.body) == (200, data)
    assert whole.headers["content-type"] == "audio/wav"
    assert whole.headers["accept-ranges"] == "bytes"
    head = client.ask("/clips/0/sound", "HEAD")
    assert (head.status, head.body) == (200, b"")
    same = ("content-length", "content-type", "etag", "last-modified")
    assert [head.headers[name] for name in same] == [whole.headers[name] for name in same]
    part = client.ask("/clips/0/sound", headers={"Range": "bytes=100-199"})
    assert (part.status, part.body) == (206, data[100:200])
    assert part.headers["content-range"] == f"bytes 100-199/{len(data)}"
    assert part.headers["content-length"] == "100"
    end = client.ask("/clips/0/sound", headers={"Range": "bytes=-10"})
    assert (end.status, end.body) == (206, data[-10:])
    beyond = client.ask("/clips/0/sound", headers={"Range": f"bytes={len(data)}-"})
    assert (beyond.status, beyond.headers["content-range"]) == (416, f"bytes */{len(data)}")
    known = client.ask("/clips/0/sound", headers={"If-None-Match": whole.headers["etag"]})
    assert (known.status, known.body) == (304, b"")
    assert known.headers["etag"] == whole.headers["etag"]
    other = client.ask("/clips/0/sound", headers={"If-Range": '"other"', "Range": "bytes=0-9"})
    assert (other.status, other.body) == (200, data)


def test_ranges_of_what_is_transcoded_fit_together(client: Client) -> None:
    whole = client.ask("/clips/10/sound")
    assert (whole.status, whole.body[:4], whole.headers["content-type"]) == (200, b"RIFF", "audio/wav")
    parts = [client.ask("/clips/10/sound", headers={"Range": f"bytes={start}-{start + 9999}"}).body
             for start in range(0, len(whole.body), 10000)]  # fmt: skip
    assert b"".join(parts) == whole.body
    assert client.ask("/clips/0/sound?as=wav").body[:4] == b"RIFF"


def test_a_picture(client: Client) -> None:
    answer = client.ask("/clips/0/log-mel.png")
    assert (answer.status, answer.headers["content-type"]) == (200, "image/png")
    assert answer.body.startswith(b"\x89PNG")
    again = client.ask("/clips/0/log-mel.png", headers={"If-None-Match": answer.headers["etag"]})
    assert again.status == 304


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/clips/11/sound", 404, "no such file"),
        ("/clips/11/log-mel.png", 404, "no such file"),
        (f"/clips/{COUNT}/sound", 404, "no row"),
        (f"/api/clips/{COUNT}", 404, "no row"),
        ("/api/clips/999999999999", 404, "no row"),
        (f"/api/clips?like={COUNT}", 404, "no row"),
        ("/api/clips?rows=0,99", 404, "no row"),
        ("/api/clips?like=-1", 400, "whole number"),
        ("/api/clips?like=1e3", 400, "whole number"),
        ("/api/clips?offset=x", 400, "whole number"),
        ("/api/clips?offset=%D9%A3", 400, "whole number"),
        ("/api/clips?rows=1,,2", 400, "whole number"),
        ("/api/clips?limit=201", 400, "200"),
        ("/api/clips?text=" + "x" * 2001, 400, "letters"),
        ("/api/clips?text=%FF", 400, ""),
    ],
)
def test_what_cannot_be_answered_says_why(client: Client, path: str, status: int, words: str) -> None:
    answer = client.ask(path)
    assert answer.status == status
    assert words in answer.said["error"]
    assert "Traceback" not in answer.body.decode()


PATHS = ["unlisted.wav", "dog/0.wav", "../store/meta.json", "/etc/passwd", "page.html", "store/embeddings.npy"]


FILES = [before + quote(path, safe=safe) for path in PATHS for before in ("/", "/clips/0/") for safe in ("/", "")]
NO_ROWS = ["-1", "+1", "0x0", "1e0", "٣", "%30", "0%00", "..", "0/..", "1.0", ""]
NO_ADDRESSES = ["/clips/0/sound/", "/clips/0/", "/clips//0/sound", "/./clips/0/sound", "/clips/0/../../etc/passwd",
                "//", "/api", "/.git/config", "/clips/0/sound;x", "/%2e%2e/etc/passwd", "/favicon.ico"]  # fmt: skip


@pytest.mark.parametrize("path", [*FILES, *(f"/clips/{row}/sound" for row in NO_ROWS), *NO_ADDRESSES])
def test_no_path_leads_to_a_file(client: Client, path: str) -> None:
    answer = client.ask(quote(path, safe="/%;?=.+"))
    assert answer.status == 404
    assert b"root:" not in answer.body
    assert b"RIFF" not in answer.body


@pytest.mark.parametrize("query", ["path", "file", "name", "src", "url", "root", "row"])
def test_no_parameter_leads_to_a_file(client: Client, query: str, shown: Shown) -> None:
    for value in ("/etc/passwd", "unlisted.wav", "11", str(shown.audio[0])):
        given = f"?{query}={quote(value)}"
        assert client.ask(f"/clips/0/sound{given}").body == client.ask("/clips/0/sound").body


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT"])
def test_only_reading_is_known(client: Client, method: str) -> None:
    for path in ("/", "/api/clips", "/clips/0/sound", "/nowhere"):
        assert client.ask(path, method).status in (400, 403, 404, 405)


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "evil.example:80"},
        {"Host": "127.0.0.1.evil.example"},
        {"Host": "localhost@evil.example"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
    ],
)
@pytest.mark.parametrize(
    "path", ["/", "/api/store", "/api/clips/0", "/clips/0/sound", "/clips/0/log-mel.png", "/api/map"]
)
def test_other_names_and_other_sites_are_refused(client: Client, headers: dict[str, str], path: str) -> None:
    answer = client.ask(path, headers=headers)
    assert answer.status in (400, 403)
    assert b"RIFF" not in answer.body
    assert b"dog" not in answer.body


def test_nothing_without_the_token(shown: Shown) -> None:
    guard = guard_for("0.0.0.0")
    with served(shown, guard=guard) as (_, page, client):
        assert page.endswith(f"/{guard.token}/")
        for path in ("/", "/api/store", "/api/clips", "/clips/0/sound", "/clips/0/log-mel.png"):
            assert client.ask(path).status == 200
            for before in ("", "/x", f"/{guard.token[:-1]}", f"/{guard.token}x", f"/{guard.token}/{guard.token}"):
                answer = Client(client.port, before).ask(path)
                assert answer.status == 404, before
                assert guard.token not in answer.body.decode()
            assert Client(client.port).ask(f"{path}?token={guard.token}").status == 404


def test_without_a_text_side_everything_else_is_there(shown: Shown) -> None:
    with served(shown, words=False) as (_, _, client):
        state = client.ask("/api/store").said["words"]
        assert state["state"] == "none"
        assert "--checkpoint" in state["reason"]
        refused = client.ask("/api/clips?text=a%20dog")
        assert (refused.status, refused.said["error"]) == (409, state["reason"])
        assert client.ask("/api/clips?like=0&limit=2").status == 200
        assert client.ask("/api/clips?words=dog").said["total"] == 3
        assert client.ask("/clips/0/sound").status == 200


def test_the_map(client: Client) -> None:
    assert client.ask("/api/store").said["map"] == {
        "state": "ready", "reason": "", "steps": 0, "most_steps": 0,
    }  # fmt: skip
    data = client.ask("/api/map").body
    count, about = np.frombuffer(data, "<u4", 2).tolist()
    start = 8 + about
    assert count == COUNT
    assert json.loads(data[8:start]) == {"by": "label", "groups": sorted(KINDS)}
    assert np.frombuffer(data, "<u4", COUNT, start).tolist() == list(range(COUNT))
    labels = np.frombuffer(data, "<i4", COUNT, start + 4 * COUNT)
    assert [sorted(KINDS)[label] for label in labels] == [KINDS[row % 4] for row in range(COUNT)]
    places = np.frombuffer(data, "<f4", -1, start + 8 * COUNT).reshape(COUNT, 2)
    assert np.sign(places[:4]).tolist() == [[-1, 1], [1, 1], [-1, -1], [1, -1]]


def test_a_store_without_rows_and_a_missing_folder_are_refused(tmp_path: Path) -> None:
    write_store(tmp_path / "empty", [], np.zeros((0, 16)))
    with pytest.raises(UserError, match="has no rows"):
        open_site(Shown([tmp_path / "empty"]))
    write_map(write_store(tmp_path / "store", ["a.wav"], embeddings_of([0])), [0])
    with pytest.raises(UserError, match="nowhere: no such folder"):
        open_site(Shown([tmp_path / "store"], audio=[tmp_path / "nowhere"]))
    with pytest.raises(UserError, match="no such folder"):
        open_site(Shown([tmp_path / "none"]))


def test_a_port_that_is_taken_is_said_and_the_usual_one_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match="is taken; --port"):
            listening("127.0.0.1", port)
        monkeypatch.setattr("m2dprep.evaluation.serving.serve.USUAL_PORT", port)
        (other,) = listening("127.0.0.1", None)
        with other:
            assert other.getsockname()[1] != port
    with pytest.raises(UserError, match=r"cannot listen at 192\.0\.2\.1"):
        listening("192.0.2.1", 0)


def test_the_page_is_installed_with_the_package() -> None:
    root = Path(__file__).resolve().parents[3]
    data = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    (pattern,) = data["m2dprep.evaluation.serving"]
    assert PAGE.name in {path.name for path in (root / "evaluation/serving").glob(pattern)}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_and_ends_cleanly(shown: Shown, number: signal.Signals) -> None:
    """Also while somebody takes a sound, and while the map is made."""
    (shown.stores[0] / "map.npz").unlink(missing_ok=True)
    words = ["serve", str(shown.stores[0]), "--audio", str(shown.audio[0]), "--port", "0", "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "m2dprep", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=environment,
    )  # fmt: skip
    assert process.stdout is not None
    url = json.loads(process.stdout.readline())["url"]
    client = Client(int(url.rsplit(":", 1)[1].strip("/")))
    assert client.ask("/clips/0/sound").status == 200
    with socket.create_connection(("127.0.0.1", client.port)) as waiting:
        waiting.sendall(b"GET /api/store HTTP/1.1\r\nHost: localhost\r\n\r\n")
        waiting.recv(100)
        process.send_signal(number)
        _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert "Traceback" not in said
    assert said.rstrip().endswith("Stopped.")
