"""Who reads many sounds stops with exit code 75 once none can be read any more, and goes on once the machine is mended.

Otherwise two million sounds on a disk that has gone would each become a failure, and be waited for one after another.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from m2dprep.artifacts.errors import MachineLostError
from m2dprep.audioprep import retries, source
from m2dprep.audioprep.config import PRESETS
from m2dprep.evaluation.events.listening.hearing import hear
from m2dprep.evaluation.tagging.inputs import Reading
from m2dprep.evaluation.tagging.sounds import Windows
from tests.cli.invocation import run
from tests.evaluation.made_clips import write_checkpoint, write_tones
from tests.evaluation.tagging.made_classifiers import write_class_list, write_classifier

COUNT = 6


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_class_list(write_classifier(folder / "tags").with_name("classes.txt"))
    write_checkpoint(folder / "run")
    return folder


@pytest.fixture
def sounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(retries, "PAUSES", ())
    monkeypatch.setattr(retries, "TRANSIENT_IN_A_ROW", 3)
    monkeypatch.setattr(retries, "WAITED_IN_A_ROW", 3)
    write_tones(tmp_path / "wavs", COUNT)
    return tmp_path / "wavs"


def no_descriptor(path: Path) -> int:
    """What the system answers to a process that has too many files open."""
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def removed(path: Path) -> int:
    """The folder is unmounted when its first file is opened."""
    if path.parent.is_dir():
        path.parent.rename(path.parent.with_name("unmounted"))
    raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))


def opening(of: Callable[[Path], int], folder: Path) -> Callable[..., int]:
    original = os.open

    def open_(path: Any, *arguments: Any, **options: Any) -> int:
        inside = isinstance(path, Path) and path.parent.name == folder.name and path.suffix == ".wav"
        return of(path) if inside else original(path, *arguments, **options)

    return open_


COMMANDS: dict[str, Callable[[Path, Path, Path], tuple[object, ...]]] = {
    "tag": lambda models, sounds, out: (
        "tag",
        next(models.rglob("weights*.pth")),
        sounds,
        "-o",
        out / "tags.jsonl",
        "--device",
        "cpu",
    ),
    "embed-audio": lambda models, sounds, out: ("embed-audio", models / "run", sounds, out / "e"),
    "export": lambda models, sounds, out: ("export", "webdataset", sounds, out / "shards"),
}


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_can_read_nothing_any_more_stops_and_goes_on(
    models: Path, sounds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    arguments = COMMANDS[command](models, sounds, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(source.os, "open", opening(no_descriptor, sounds))
        lost = run(*arguments)
    assert (lost.exit_code, "3 files in a row could not be read" in lost.output) == (75, True), lost.output
    whole = run(*arguments)
    assert whole.exit_code == 0, whole.output


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_that_has_gone_stops_a_command(
    models: Path, sounds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    arguments = COMMANDS[command](models, sounds, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(source.os, "open", opening(removed, sounds))
        lost = run(*arguments)
    assert (lost.exit_code, f"{sounds}: the folder has gone" in lost.output) == (75, True), lost.output
    sounds.with_name("unmounted").rename(sounds)
    whole = run(*arguments)
    assert whole.exit_code == 0, whole.output


@pytest.mark.parametrize("of", [no_descriptor, removed])
def test_hearing_recordings_stops_as_well(
    sounds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, of: Callable[[Path], int]
) -> None:
    ear: Any = SimpleNamespace(
        encoder=SimpleNamespace(name="made"),
        parts={"tags": 1},
        identity=dict,
        inputs=lambda sound, segments: [np.zeros(1, np.float32) for _ in segments],
        hear=lambda inputs: {"tags": np.zeros((len(inputs), 1), np.float32)},
    )
    names = sorted(path.name for path in sounds.iterdir())
    arguments = (ear, names, sounds, Windows(1.0, 1.0), Reading(PRESETS["16k"], 60.0), tmp_path / "heard")
    with monkeypatch.context() as patch:
        patch.setattr(source.os, "open", opening(of, sounds))
        with pytest.raises(MachineLostError, match=r"in a row could not be read|the folder has gone"):
            hear(*arguments, quiet=True)
    if of is removed:
        sounds.with_name("unmounted").rename(sounds)
    heard = hear(*arguments, quiet=True)
    assert (heard.done, heard.failures) == (COUNT, [])


@pytest.mark.slow
def test_sounds_that_give_nothing_one_after_another_stop_a_command(
    models: Path, sounds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    back = threading.Event()

    def hang(path: Path) -> int:
        back.wait(60)
        return no_descriptor(path)

    with monkeypatch.context() as patch:
        patch.setattr(source.os, "open", opening(hang, sounds))
        lost = run(*COMMANDS["tag"](models, sounds, tmp_path), "--read-timeout", "0.5")
        back.set()
    assert (lost.exit_code, "3 files in a row" in lost.output) == (75, True), lost.output


OTHERS = [(None, None), ("truncated", "half of it"), ("not_found", "there is no such file (any more)")]


@pytest.mark.parametrize("between", OTHERS, ids=lambda one: str(one[0]))
def test_failures_with_others_between_them_are_rows(between: tuple[str | None, str | None]) -> None:
    seen = retries.StopIfUnreadable()
    for number in range(10 * retries.TRANSIENT_IN_A_ROW):
        often = number % (retries.TRANSIENT_IN_A_ROW - 1)
        seen("a.wav", *(("transient", "not enough memory") if often else between))


def test_members_that_fail_at_once_are_not_waited_for() -> None:
    """Only the first of an archive that gives nothing takes its time."""
    seen = retries.StopIfUnreadable()
    for number in range(1000):
        seen(f"a.tar::{number}.wav", "read_timeout", "reading another member of its archive gave nothing")
