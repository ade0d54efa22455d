"""Sounds behind addresses give the arrays and the records of the same files, whatever their server does."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.layout import LmsLayout
from m2dprep.artifacts.log_mels.records import read_records
from m2dprep.audioprep.config import PRESETS, ConvertConfig
from m2dprep.audioprep.remote import address
from m2dprep.audioprep.remote.address import address_of
from m2dprep.cli.main import m2dprep
from m2dprep.workflows.melspec.job import MelspecOptions, MelspecReport, run_melspec
from tests.audioprep.decoding.made_sounds import NOISE, coded, mp3
from tests.audioprep.web_server import web

fsspec = pytest.importorskip("fsspec")
pytest.importorskip("aiohttp")

CONFIG = ConvertConfig(PRESETS["16k"], min_seconds=0.2)
# Names that addresses write in another way.
LOOSE = ["plain.wav", "with space/a b.flac", "odd/100%25 #1?.mp3", "odd/é&'\".wav", "no suffix/sound"]
MEMBERS = [f"in/m{number}.{suffix}" for number, suffix in enumerate(("wav", "flac", "wav"))]


def sound(number: int, suffix: str) -> bytes:
    if suffix == "mp3":
        return mp3(samples=11000 + number)
    return coded(NOISE[number * 900 : number * 900 + 9000, :2], "FLAC" if suffix == "flac" else "WAV", "PCM_16")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Loose files, and an archive of every kind, in folders."""
    root = tmp_path_factory.mktemp("served") / "src"
    for number, name in enumerate(LOOSE):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(sound(number, name.rpartition(".")[2]))
    data = {name: sound(10 + number, name.rpartition(".")[2]) for number, name in enumerate(MEMBERS)}
    (root / "packed").mkdir()
    for kind, mode in (("tar", "w"), ("tar.gz", "w:gz")):
        with tarfile.open(root / f"packed/s.{kind}", mode) as archive:  # type: ignore[call-overload]
            for name, content in data.items():
                info = tarfile.TarInfo(f"{kind}/{name}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    with zipfile.ZipFile(root / "packed/s.zip", "w") as packed:
        for method, name in zip((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA), data, strict=True):
            packed.writestr(f"zip/{name}", data[name], method)
    table = pa.table({"id": [f"parquet/{name}" for name in data], "audio": list(data.values())})
    pq.write_table(table, root / "packed/s.parquet", row_group_size=2)
    (root / "README.txt").write_text("no sound")
    return root


@pytest.fixture(scope="module")
def as_files(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    lms = tmp_path_factory.mktemp("local") / "x_lms"
    assert convert(folder, lms).failed == 0
    return lms


def convert(src: object, lms: Path, **options: object) -> MelspecReport:
    src = address_of(src) if isinstance(src, str) else src
    return run_melspec(src, lms, CONFIG, MelspecOptions(**{"workers": 0, "read_timeout": 20.0, **options}))  # type: ignore[arg-type]


def arrays(lms: Path) -> dict[str, bytes]:
    return {path.relative_to(lms).as_posix(): path.read_bytes() for path in sorted(lms.rglob("*.npy"))}


def rows(lms: Path) -> dict[str, dict]:
    return {row["source"]: row for row in read_records(LmsLayout(lms)).to_pylist()}


def failures(lms: Path) -> dict[str, str]:
    return {name: row["reason"] for name, row in rows(lms).items() if row["status"] != "ok"}


def require_same(lms: Path, as_files: Path) -> None:
    assert not failures(lms)
    assert arrays(lms) == arrays(as_files)
    told = ("source_mtime_ns",)
    for name, row in rows(as_files).items():
        assert {k: v for k, v in rows(lms)[name].items() if k not in told} == {
            k: v for k, v in row.items() if k not in told
        }


@pytest.fixture(autouse=True)
def _no_long_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address, "PAUSES", (0.01, 0.02, 0.05))


@pytest.mark.slow
@pytest.mark.parametrize("ranges", [True, False])
def test_a_web_server_gives_what_its_folder_gives(tmp_path: Path, folder: Path, as_files: Path, ranges: bool) -> None:
    """Also read again with --check-sources; without ranges, archives fail and say so."""
    with web(folder, ranges=ranges, tags=True) as server:
        report = convert(server.url, tmp_path / "x_lms")
        assert report.passed_over.files == {".txt": 1}
        if not ranges:
            assert report.done == len(LOOSE) + 3  # the compressed tar is read from end to end
            found = failures(tmp_path / "x_lms")
            assert {name.rpartition(".")[0] for name in found} == {"packed/s"}
            assert set(found.values()) == {"unsupported"}
            return
        require_same(tmp_path / "x_lms", as_files)
        again = convert(server.url, tmp_path / "x_lms", check_sources=True)
        assert (again.done, again.skipped) == (0, report.inputs)


@pytest.mark.parametrize("form", ["file://{}", "memory://served", "zip://packed::file://{}.zip"])
@pytest.mark.slow
def test_other_addresses(tmp_path: Path, folder: Path, as_files: Path, form: str) -> None:
    if form.startswith("memory"):
        files = fsspec.filesystem("memory")
        for path in folder.rglob("*"):
            if path.is_file():
                files.pipe_file(f"/served/{path.relative_to(folder)}", path.read_bytes())
    elif form.startswith("zip"):
        with zipfile.ZipFile(f"{folder}.zip", "w") as archive:
            for path in folder.rglob("*"):
                archive.write(path, path.relative_to(folder))
    report = convert(form.format(folder), tmp_path / "x_lms")
    if not form.startswith("zip"):
        require_same(tmp_path / "x_lms", as_files)
    assert (report.done, report.failed) == (12 if form.startswith("zip") else 17, 0), failures(tmp_path / "x_lms")
    assert convert(form.format(folder), tmp_path / "x_lms", check_sources=True).done == 0


def test_an_archive_alone_and_a_list(tmp_path: Path, folder: Path, as_files: Path) -> None:
    with web(folder) as server:
        assert convert(f"{server.url}/packed/s.tar?version=1", tmp_path / "x_lms").done == 3
        names = ["with space/a b.flac", f"{server.url}/plain.wav", "packed/s.zip::zip/in/m0.wav", "gone.wav"]
        (tmp_path / "list.csv").write_text("source\n" + "\n".join(names) + "\n")
        report = convert(server.url, tmp_path / "y_lms", files=tmp_path / "list.csv")
        assert (report.done, failures(tmp_path / "y_lms")) == (3, {"gone.wav": "not_found"})
        (tmp_path / "list.csv").write_text("source\nhttps://other.example/a.wav?sig=secretsecret\n")
        with pytest.raises(UserError, match="does not lie below") as caught:
            convert(server.url, tmp_path / "y_lms", files=tmp_path / "list.csv")
        assert "secret" not in str(caught.value)
    assert arrays(as_files).items() >= {**arrays(tmp_path / "x_lms"), **arrays(tmp_path / "y_lms")}.items() - set()


@pytest.mark.slow
def test_what_fails_is_a_row_and_the_rest_is_converted(tmp_path: Path, folder: Path) -> None:
    with web(folder, forbidden=("plain.wav",), hangs=("a%20b", "a b")) as server:
        report = convert(server.url, tmp_path / "x_lms", read_timeout=3.0)
        assert report.done == 15
        assert failures(tmp_path / "x_lms") == {"plain.wav": "permission", "with space/a b.flac": "read_timeout"}
        server.forbidden = server.hangs = ()
        assert convert(server.url, tmp_path / "x_lms").done == 2


@pytest.mark.slow
def test_a_server_that_fails_now_and_then(tmp_path: Path, folder: Path, as_files: Path) -> None:
    with web(folder, fails_every=5) as server:
        for _ in range(4):
            if not convert(server.url, tmp_path / "x_lms").failed:
                break
    require_same(tmp_path / "x_lms", as_files)


def test_a_server_that_is_not_there(tmp_path: Path, folder: Path) -> None:
    with web(folder) as server:
        url = server.url
    with pytest.raises(UserError, match="cannot be listed"):
        convert(url, tmp_path / "x_lms")
    assert not (tmp_path / "x_lms").exists()


@pytest.mark.slow
def test_a_file_that_changes_on_the_server_is_converted_again_if_asked(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    for tags in (False, True):
        for number, name in enumerate(("a.wav", "b.wav")):
            (tmp_path / "src" / name).write_bytes(sound(number, "wav"))
        with web(tmp_path / "src", tags=tags) as server:
            lms = tmp_path / f"{tags}_lms"
            assert convert(server.url, lms).done == 2
            (tmp_path / "src/a.wav").write_bytes(sound(5, "wav"))
            os.utime(tmp_path / "src/a.wav", ns=(10**18, 10**18))
            assert convert(server.url, lms).done == 0
            assert convert(server.url, lms, check_sources=True).done == 1


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)


def here(*arguments: str) -> Result:
    """`m2dprep melspec` in this process, without workers."""
    return CliRunner().invoke(m2dprep, ["melspec", "--min-seconds", "0.2", "--workers", "0", *arguments])


COMMAND = [sys.executable, "-m", "m2dprep", "melspec", "--min-seconds", "0.2", "--workers", "2"]


@pytest.mark.slow
def test_kill_in_the_middle_with_two_workers(tmp_path: Path, folder: Path, as_files: Path, warm_python: str) -> None:
    with web(folder) as server:
        command = [*COMMAND, server.url, str(tmp_path / "x_lms")]
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline and not list((tmp_path).glob("x_lms/**/*.npy")):
            time.sleep(0.01)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        done = run([warm_python, *command[1:]])
    assert done.returncode == 0, done.stderr
    require_same(tmp_path / "x_lms", as_files)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["query", "user"])
def test_secrets_of_addresses_are_written_nowhere(tmp_path: Path, folder: Path, kind: str, warm_python: str) -> None:
    """A signature, or a name and a password: not in records, the configuration, indices, messages, nor with -v.

    Workers of their own have what is secret too: the first run has two.
    """
    secret = "s3cr3t-T0ken%2Fx" if kind == "query" else "pa55-w0rd-x"
    needs = f"sig={secret}" if kind == "query" else "Basic dXNlcjpwYTU1LXcwcmQteA=="
    with web(folder, needs=needs, forbidden=("plain.wav",)) as server:
        host = server.url.removeprefix("http://")
        url = f"http://{host}?sig={secret}" if kind == "query" else f"http://user:{secret}@{host}"
        done = run([warm_python, *COMMAND[1:], "-v", url, str(tmp_path / "x_lms")])
        told = done.stdout + done.stderr
        assert len(arrays(tmp_path / "x_lms")) == 16, told
        for more in (["-v", "--retry-failed", "--check-sources"], ["--dry-run", "--overwrite"]):
            told += here(*more, url, str(tmp_path / "x_lms")).output
        bad = ["http://user:hidden-pw@127.0.0.1:1/x?sig=hidden-pw", "nosuch://user:hidden-pw@host/x?sig=hidden-pw"]
        for src, dst in ((bad[0], str(tmp_path / "y_lms")), (bad[1], str(tmp_path / "y_lms")), (str(folder), bad[0])):
            refused = here("-v", src, dst)
            assert (refused.exit_code, "error: " in refused.output.lower()) == (2, True), refused.output
            told += refused.output
    for hidden in (secret, secret.replace("%2F", "/"), "hidden-pw"):
        assert hidden not in told
        for path in tmp_path.rglob("*"):
            assert not path.is_file() or hidden.encode() not in path.read_bytes(), path
    assert rows(tmp_path / "x_lms")["plain.wav"]["reason"] == "permission"


@pytest.mark.parametrize(
    ("library", "url", "said"),
    [
        ("fsspec.core", "https://host/x", "needs fsspec: pip install 'm2dprep[remote]'"),
        ("s3fs", "s3://bucket/x", "m2dprep[remote]"),
        (None, "nosuch://bucket/x", "is no address that fsspec reads"),
    ],
)
def test_without_the_extra(monkeypatch: pytest.MonkeyPatch, library: str | None, url: str, said: str) -> None:
    address._file_system.cache_clear()
    if library:
        monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UserError) as caught:
        address_of(url)
    assert said in str(caught.value)
    address._file_system.cache_clear()
