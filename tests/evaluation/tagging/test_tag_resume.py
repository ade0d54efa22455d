"""A run of `m2dprep tag` that is killed goes on with the same command, and ends with the bytes of one that was not."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from m2dprep.audioprep.decoding.sound import DecodeError
from m2dprep.cli.main import m2dprep
from m2dprep.evaluation.tagging import job, opening
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


@pytest.fixture(scope="module", params=["jsonl", "csv", "parquet"])
def undisturbed(place: Path, request: pytest.FixtureRequest) -> Path:
    output = place / f"undisturbed.{request.param}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opening, "SHARD_SOUNDS", 2)
        assert CliRunner().invoke(m2dprep, command(place, output)).exit_code == 0
    return output


@pytest.mark.parametrize("shards", [0, 1, 3, 5])
def test_stopped_before_any_shard(
    place: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shards: int
) -> None:
    monkeypatch.setattr(opening, "SHARD_SOUNDS", 2)
    output, write, written = tmp_path / undisturbed.name, Journal.write, []

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
    assert output.read_bytes() == undisturbed.read_bytes()
    assert not partial_of(output).exists()


def test_stopped_between_the_output_and_its_notes(
    place: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / undisturbed.name
    with monkeypatch.context() as patch:
        patch.setattr(job, "finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        patch.setattr(opening, "SHARD_SOUNDS", 2)
        assert CliRunner().invoke(m2dprep, command(place, output)).exit_code == 130
        assert output.exists()
        assert not sidecar_of(output).exists()
    monkeypatch.setattr(opening, "SHARD_SOUNDS", 2)
    assert CliRunner().invoke(m2dprep, command(place, output)).exit_code == 0
    assert output.read_bytes() == undisturbed.read_bytes()


def test_killed_for_real(place: Path, undisturbed: Path, tmp_path: Path) -> None:
    output = tmp_path / undisturbed.name
    full = [sys.executable, "-c", PROGRAM, *command(place, output)]
    process = subprocess.Popen(full, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while not list(partial_of(output).glob("0*.jsonl")) and process.poll() is None and time.monotonic() < until:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    ended = subprocess.run(full, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert output.read_bytes() == undisturbed.read_bytes()


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
