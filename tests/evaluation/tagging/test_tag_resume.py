"""A run of `m2dprep tag` that is killed goes on with the same command, and ends with the bytes of one that was not."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from click.testing import CliRunner

from m2dprep.artifacts.locks import exclusive
from m2dprep.audioprep.decoding.sound import DecodeError
from m2dprep.cli.main import m2dprep
from m2dprep.evaluation.tagging import job, journal, opening
from m2dprep.evaluation.tagging.journal import Journal, partial_of, sidecar_of
from tests.evaluation.tagging.made_classifiers import write_class_list, write_classifier, write_sound

pytestmark = pytest.mark.slow
PROGRAM = (
    "import m2dprep.evaluation.tagging.opening as opening; opening.SHARD_SOUNDS = 2\n"
    "from m2dprep.cli.main import main; main()"
)  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint and sounds, of which the command below tags those of the folder sounds."""
    folder = tmp_path_factory.mktemp("place")
    write_class_list(write_classifier(folder).parent / "classes.txt")
    for number in range(11):
        write_sound(folder / f"sounds/{number:02d}.wav", 0.5 + 0.4 * number, number)
    (folder / "sounds/05.wav").write_bytes(b"no sound")
    return folder


def command(place: Path, output: Path) -> list[str]:
    checkpoint = next(place.glob("m2d*/*.pth"))
    how = ["--window", "1", "--hop", "0.5", "--top", "0", "--max-failures", "1", "--batch-size", "3"]
    return ["tag", str(checkpoint), str(place / "sounds"), *how, "-o", str(output)]


@pytest.fixture(scope="module")
def undisturbed(place: Path) -> Callable[[str], Path]:
    """The output of a run that nobody stopped, in a format."""

    @cache
    def of(kind: str) -> Path:
        output = place / f"undisturbed.{kind}"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(opening, "SHARD_SOUNDS", 2)
            assert CliRunner().invoke(m2dprep, command(place, output)).exit_code == 0
        return output

    return of


# What a run has done lies in one form until the end, so that formats and places to stop need not be tried in all pairs.
STOPS = [("jsonl", 0), ("csv", 1), ("jsonl", 3), ("parquet", 3), ("csv", 5)]


@pytest.mark.parametrize(("kind", "shards"), STOPS)
def test_stopped_before_any_shard(
    place: Path, undisturbed: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str,
    shards: int,
) -> None:  # fmt: skip
    monkeypatch.setattr(opening, "SHARD_SOUNDS", 2)
    expected, write, written = undisturbed(kind), Journal.write, []
    output = tmp_path / expected.name

    def stops(self: Journal, first: int, rows: list[dict[str, object]]) -> None:
        if len(written) == shards:
            raise KeyboardInterrupt
        written.append(first)
        write(self, first, rows)

    monkeypatch.setattr(Journal, "write", stops)
    result = CliRunner().invoke(m2dprep, command(place, output))
    assert result.exit_code == 130
    assert not output.exists()
    monkeypatch.setattr(Journal, "write", write)
    result = CliRunner().invoke(m2dprep, command(place, output))
    assert result.exit_code == 0, result.output
    failed_before = shards >= 3  # the sixth sound
    skipped = 2 * shards - failed_before
    assert f"11 inputs = {10 - skipped} done + {skipped} skipped + 1 failed" in result.stderr
    assert output.read_bytes() == expected.read_bytes()
    assert not partial_of(output).exists()


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_stopped_between_the_output_and_its_notes(
    place: Path, undisturbed: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    expected = undisturbed(kind)
    output = tmp_path / expected.name
    monkeypatch.setattr(opening, "SHARD_SOUNDS", 2)
    with monkeypatch.context() as patch:
        patch.setattr(job, "finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert CliRunner().invoke(m2dprep, command(place, output)).exit_code == 130
        assert output.exists()
        assert not sidecar_of(output).exists()
    assert CliRunner().invoke(m2dprep, command(place, output)).exit_code == 0
    assert output.read_bytes() == expected.read_bytes()


def test_killed_while_it_tidies_up(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The output is whole; the same command removes what is left of the journal, and nothing that is not left over."""
    output = tmp_path / "tags.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr(journal, "remove_folder", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        assert CliRunner().invoke(m2dprep, command(place, output)).exit_code == 130
    written = output.read_bytes()
    assert list(partial_of(output).glob("0*.jsonl"))
    with exclusive(partial_of(output)):
        assert CliRunner().invoke(m2dprep, command(place, output)).exit_code == 0
        assert partial_of(output).exists(), "another run may be writing there"
    assert CliRunner().invoke(m2dprep, command(place, output)).exit_code == 0
    assert not partial_of(output).exists()
    assert output.read_bytes() == written


def test_killed_for_real(
    place: Path, undisturbed: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the kernel; this process goes on with what the other one has left."""
    expected = undisturbed("parquet")
    output = tmp_path / expected.name
    full = [sys.executable, "-c", PROGRAM, *command(place, output)]
    process = subprocess.Popen(full, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while not list(partial_of(output).glob("0*.jsonl")) and process.poll() is None and time.monotonic() < until:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    monkeypatch.setattr(opening, "SHARD_SOUNDS", 2)
    ended = CliRunner().invoke(m2dprep, command(place, output))
    assert ended.exit_code == 0, ended.stderr
    assert output.read_bytes() == expected.read_bytes()


def test_another_run_is_refused_while_one_writes(place: Path, tmp_path: Path) -> None:
    from m2dprep.artifacts.locks import exclusive

    output = tmp_path / "tags.jsonl"
    partial_of(output).mkdir()
    with exclusive(partial_of(output)):
        result = CliRunner().invoke(m2dprep, command(place, output))
    assert result.exit_code == 2
    assert "being written to by another run" in result.stderr


def test_what_was_begun_with_other_settings_is_refused_or_begun_anew(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "tags.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr(job, "write_rows", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert CliRunner().invoke(m2dprep, command(place, output)).exit_code == 130
    other = [*command(place, output), "--threshold", "0.2"]
    result = CliRunner().invoke(m2dprep, other)
    assert result.exit_code == 5
    assert "threshold" in result.stderr
    assert CliRunner().invoke(m2dprep, [*other, "--overwrite"]).exit_code == 0


def test_the_machines_failures_are_tried_again(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from m2dprep.evaluation.tagging import inputs

    output, opened = tmp_path / "tags.jsonl", inputs.Waveform.__init__

    def fails(self: inputs.Waveform, where: object, *arguments: object, **options: object) -> None:
        if str(where.path).endswith("03.wav"):  # type: ignore[attr-defined]
            raise DecodeError("transient", "Input/output error")
        opened(self, where, *arguments, **options)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(inputs.Waveform, "__init__", fails)
        result = CliRunner().invoke(m2dprep, [*command(place, output), "--max-failures", "2"])
        assert result.exit_code == 0
        assert "2 failed" in result.stderr
    result = CliRunner().invoke(m2dprep, command(place, output))
    assert result.exit_code == 0, result.output
    assert "1 failed" in result.stderr
    fresh = tmp_path / "fresh.jsonl"
    assert CliRunner().invoke(m2dprep, command(place, fresh)).exit_code == 0
    assert output.read_bytes() == fresh.read_bytes()
