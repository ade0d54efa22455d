"""Recipes whose sounds lie on servers: they notice what changes there, and write down nothing that is secret."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from m2dprep.artifacts.clips.addresses import without_secrets
from m2dprep.cli.main import m2dprep
from m2dprep.workflows.recipe import servers
from m2dprep.workflows.recipe.servers import server_identity, shown
from m2dprep.workflows.recipe.state import read_state
from tests.audioprep.web_server import Web, web
from tests.workflows.recipe.conftest import Project

pytest.importorskip("fsspec")
pytest.importorskip("aiohttp")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Web]:
    (tmp_path / "wavs/sub").mkdir(parents=True)
    for name in ("a.wav", "sub/b.wav", "s.tar"):
        (tmp_path / "wavs" / name).write_bytes(b"x" * 99)
    with web(tmp_path / "wavs", tags=True) as served:
        yield served


@pytest.mark.parametrize(
    ("address", "plain"),
    [
        ("https://user:pass@host/x", "https://host/x"),
        ("https://host/a b.tar?sig=abc", "https://host/a b.tar"),
        ("https://host/x?token", "https://host/x"),
        ("zip://in::https://u:p@host/x.zip?s=1", "zip://in::https://host/x.zip"),
        ("https://u:p@[::1]:80/x?s=1", "https://[::1]:80/x"),
        ("https://host/secret-in-path/x?sig=secret-in-path", "https://host/…/x"),
        ("s3://bucket/x", "s3://bucket/x"),
    ],
)
def test_words_that_are_written_down(address: str, plain: str) -> None:
    assert without_secrets(address, address) == plain
    assert shown(["melspec", f"--src={address}", address, "data"]) == ["melspec", f"--src={plain}", plain, "data"]


def test_what_changes_on_a_server_changes_its_identity(server: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new name below the folder, and another tag of a file that is named alone."""
    archive, before = server_identity(f"{server.url}/s.tar"), server_identity(server.url)
    assert before == server_identity(server.url + "/")
    (server.folder / "sub/c.wav").write_bytes(b"x")
    (server.folder / "s.tar").write_bytes(b"y" * 99)
    os.utime(server.folder / "s.tar", ns=(10**18, 10**18))
    assert server_identity(server.url) not in (None, before)
    assert server_identity(f"{server.url}/s.tar") not in (None, archive)
    assert server_identity(f"{server.url}/gone.tar") is None
    monkeypatch.setattr(servers, "PATIENCE_SECONDS", 0.3)
    server.hangs = ("s.tar",)
    assert server_identity(f"{server.url}/s.tar") == {"unseen": "the server gave nothing for 0.3 s"}


def test_a_large_folder_is_not_listed_to_its_end(server: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "MAX_LISTINGS", 3)
    for number in range(9):
        (server.folder / f"d{number}").mkdir()
    server.asked.clear()
    server_identity(server.url)
    assert len(server.asked) == 3


def test_a_state_with_secrets_is_read_without_them(tmp_path: Path) -> None:
    """Earlier versions wrote them."""
    url = "https://u:hidden@host/x?sig=hidden"
    record = {"options": {"src": [url]}, "command": ["m2dprep", "melspec", url], "status": "done"}
    (tmp_path / "state.json").write_text(json.dumps({"format": 1, "recipe": "r", "stages": {"m": record, "n": {}}}))
    assert "hidden" not in json.dumps(read_state(tmp_path))
    assert read_state(tmp_path)["stages"]["m"]["options"] == {"src": ["https://host/x"]}


@pytest.mark.slow
def test_a_recipe_of_sounds_on_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Done once; again if a file is new there; left alone, with a word, while the server is away.

    What is secret in the address is written nowhere.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SIGNATURE", "s3cr3t-T0ken%2Fx")
    from tests.workflows.melspec.test_melspec_remote import sound

    (tmp_path / "wavs").mkdir()
    for number in range(2):
        (tmp_path / f"wavs/{number}.wav").write_bytes(sound(number, "wav"))
    project = Project(tmp_path)
    with web(tmp_path / "wavs", needs="sig=s3cr3t-T0ken%2Fx") as server:
        url = f"{server.url.replace('//', '//name:pa55-w0rd@')}?sig=${{SIGNATURE}}"
        project.write(
            recipe="data: data\nworkers: 0\nstages:\n"
            f"  melspec: {{src: '{url}', dst: data/audioset_lms, min_seconds: 0.2}}\n"
        )
        told = ""
        for command, said in (
            (["run"], "done"),
            (["run"], "skipped"),
            (["run", "--dry-run"], "nothing has changed"),
            (["status", "--json"], '"state": "done"'),
        ):
            result = CliRunner().invoke(m2dprep, [*command[:1], "recipe.yaml", *command[1:]])
            assert result.exit_code == 0, result.output
            assert said in result.output
            told += result.output
        (tmp_path / "wavs/2.wav").write_bytes(sound(2, "wav"))
        assert "has changed" in project.plan()["melspec"][1]
        assert project.done() == ["melspec"]
        assert len(list((tmp_path / "data").rglob("*.npy"))) == 3
        port = server.port
    monkeypatch.setattr(servers, "PATIENCE_SECONDS", 0.5)
    action, reason = project.plan()["melspec"]
    assert action == "skip"
    assert f"what http://127.0.0.1:{port} holds now is unknown" in reason
    for hidden in ("s3cr3t-T0ken", "pa55-w0rd"):
        assert hidden not in told + reason
        for path in (tmp_path / "data").rglob("*"):
            assert not path.is_file() or hidden.encode() not in path.read_bytes(), path
