"""kill -9 at any step: of the run, of a worker, of the whole process group. The next run ends with the same bytes.

Exact kills happen just before a step that changes the disk (open, rename, remove, …), chosen with one seed; kills
after random times hit everything in between. "The same" is every byte under the data directory, so every record too.
"""

import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from m2dprep.audioprep.config import PRESETS, ConvertConfig
from m2dprep.workflows.melspec import job as melspec
from m2dprep.workflows.melspec import results as record_buffer
from m2dprep.workflows.melspec.job import MelspecOptions, run_melspec

pytestmark = pytest.mark.slow

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
EXACT_KILLS = 30
CLIPS = 14


def write_wav(path: Path, seed: int, seconds: float = 0.3) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = 0.1 * np.random.default_rng(seed).standard_normal(round(seconds * 16000))
    soundfile.write(path, noise, 16000, subtype="PCM_16")


def snapshot(data: Path) -> dict[str, bytes | None]:
    """Every file with its bytes, and every folder, except the lock, which is never removed."""
    return {
        path.relative_to(data).as_posix(): path.read_bytes() if path.is_file() else None
        for path in data.rglob("*")
        if path.name != "lock"
    }


@pytest.fixture
def src(tmp_path: Path) -> Path:
    return write_sources(tmp_path / "wavs", CLIPS)


def write_sources(folder: Path, clips: int) -> Path:
    """So many clips in several folders, one that is cut off, and one that is empty."""
    for seed in range(clips):
        write_wav(folder / ("eval_segments" if seed % 5 == 0 else f"train {seed % 3}") / f"clip {seed}.wav", seed)
    (folder / "train 1" / "cut.wav").write_bytes((folder / "train 1" / "clip 1.wav").read_bytes()[:999])
    (folder / "empty.flac").touch()
    return folder


class KillServer:
    """The process of kill_server.py, asked for one run at a time."""

    def __init__(self) -> None:
        program = [sys.executable, Path(__file__).with_name("kill_server.py")]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self._process: subprocess.Popen[str] = subprocess.Popen(program, text=True, env=ENVIRONMENT, **pipes)  # type: ignore[call-overload]

    def __call__(self, src: Path, data: Path, kill_before: int = 0, **options: bool) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request = {"src": str(src), "data": str(data), "kill_before": kill_before, **options}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture(scope="module")
def serve() -> Iterator[KillServer]:
    server = KillServer()
    yield server
    server.close()


def test_kills_before_steps_chosen_at_random(tmp_path: Path, src: Path, serve: KillServer) -> None:
    data = tmp_path / "data"
    undisturbed = serve(src, data)
    assert undisturbed["exit"] == 0
    expected = snapshot(data)
    assert len([name for name in expected if name.endswith(".npy")]) == CLIPS
    rng = random.Random(3)
    kills = chains = 0
    while kills < EXACT_KILLS:
        shutil.rmtree(data)
        chains += 1
        while (done := serve(src, data, kill_before=rng.randint(1, undisturbed["steps"] // 2)))["exit"] != 0:
            assert done["exit"] == -signal.SIGKILL
            kills += 1
        assert snapshot(data) == expected
    assert chains >= 3


def test_kills_before_each_of_the_last_steps(tmp_path: Path, src: Path, serve: KillServer) -> None:
    """A kill at every step of merging the records and writing the list, each followed by a complete run."""
    data, saved = tmp_path / "data", tmp_path / "saved"
    steps = serve(src, saved)["steps"]
    expected = snapshot(saved)
    last_steps = 16
    assert serve(src, data, kill_before=steps - last_steps)["exit"] == -signal.SIGKILL
    assert len(list((data / "audioset_lms/_melspec").glob("records-*.parquet"))) > 1, "they are still to be merged"
    shutil.rmtree(saved)
    data.rename(saved)
    before_the_last = snapshot(saved)
    left = None
    for step in range(1, 100):
        shutil.copytree(saved, data)
        if serve(src, data, kill_before=step)["exit"] == 0:
            left = step
            break
        assert serve(src, data)["exit"] == 0
        assert snapshot(data) == expected, f"killed before step {step}"
        shutil.rmtree(data)
    assert left is not None
    assert left > last_steps
    assert snapshot(saved) == before_the_last


def test_retrying_failures_survives_kills(tmp_path: Path, src: Path, serve: KillServer) -> None:
    data = tmp_path / "data"
    serve(src, data)
    write_wav(src / "train 1" / "cut.wav", 50)
    rng = random.Random(5)
    for _ in range(8):
        serve(src, data, kill_before=rng.randint(1, 40), retry_failed=True)
    assert serve(src, data, retry_failed=True)["exit"] == 0
    serve(src, tmp_path / "undisturbed")
    assert snapshot(data) == snapshot(tmp_path / "undisturbed")


def test_takeovers_of_arrays_survive_kills(tmp_path: Path, src: Path, serve: KillServer) -> None:
    """Sources give way to others with the same output, some of them unreadable: their old arrays stay at any moment."""
    data, saved = tmp_path / "data", tmp_path / "saved"
    serve(src, saved)
    for number, path in enumerate(sorted(src.rglob("clip *.wav"))):
        sound = soundfile.read(path)[0]
        path.unlink()
        if number % 2:
            soundfile.write(path.with_suffix(".flac"), 0.5 * sound, 16000)
        else:
            path.with_suffix(".flac").write_bytes(b"no sound")
    names = [path.with_suffix(".npy").relative_to(src) for path in src.rglob("clip *.flac") if path.stat().st_size < 9]
    kept = {name: next(saved.rglob(str(name))).read_bytes() for name in names}
    assert len(kept) == CLIPS // 2
    shutil.copytree(saved, data)
    undisturbed = serve(src, data)
    expected = snapshot(data)
    rng = random.Random(7)
    for _ in range(12):
        shutil.rmtree(data)
        shutil.copytree(saved, data)
        serve(src, data, kill_before=rng.randint(1, undisturbed["steps"]))
        assert {name: next(data.rglob(str(name))).read_bytes() for name in names} == kept
        assert serve(src, data)["exit"] == 0
        assert snapshot(data) == expected


def test_records_speak_only_of_what_is_synced(tmp_path: Path, src: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut loses unsynced arrays: no record of them may be on disk before they are synced."""
    synced: set[Path] = set()
    original_append = record_buffer.append_records

    def sync(root: Path, files: list[Path]) -> None:
        assert all(path.is_file() for path in files)
        synced.update(files)

    def append(layout: Any, rows: Any) -> Path | None:
        assert {layout.root / row["file_name"] for row in rows if row["status"] == "ok"} <= synced
        return original_append(layout, rows)

    monkeypatch.setattr("m2dprep.audioprep.convert.sync_files", sync)
    monkeypatch.setattr("m2dprep.audioprep.convert.FILES_PER_SYNC", 2)
    monkeypatch.setattr(record_buffer, "append_records", append)
    monkeypatch.setattr(melspec, "MAX_SHARD_SIZE", 5)
    monkeypatch.setattr(record_buffer, "PART_SECONDS", 0.0)
    options = MelspecOptions(workers=0)
    run_melspec(src, tmp_path / "data/audioset_lms", ConvertConfig(PRESETS["16k"], min_seconds=0.2), options)
    assert len(synced) == CLIPS


# Workers that kill themselves once for every clip in `deadly`, before a step of its conversion that the seed chooses.
WORKERS = """
import functools, os, random, signal, sys
from pathlib import Path
from m2dprep.audioprep.config import PRESETS, ConvertConfig
from m2dprep.workflows.melspec import job as melspec; from m2dprep.workflows.melspec import results as record_buffer

ORIGINAL = melspec.convert_shard

def dying_shard(sources, *, dst, markers, **options):
    import random
    from m2dprep.audioprep import convert
    def die_once(name, step):
        marker = markers / f"{name.replace('/', '_')}"
        if not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
    deadly = {source.relative for source in sources if random.Random(source.relative).random() < 0.35}
    write = convert.write_lms
    def killing_write(path, *arguments, **options):
        relative = path.relative_to(dst).with_suffix(".wav").as_posix()
        after = random.Random(relative + "after").random() < 0.5
        if relative in deadly and not after:
            die_once(relative, "before")
        digest = write(path, *arguments, **options)
        if relative in deadly and after:
            die_once(relative, "after")
        return digest
    convert.write_lms = killing_write
    try:
        return ORIGINAL(sources, dst=dst, **options)
    finally:
        convert.write_lms = write

if __name__ == "__main__":
    src, data, workers, markers = sys.argv[1:]
    melspec.MAX_SHARD_SIZE = 2
    record_buffer.PART_SECONDS = 0.05
    if markers:
        melspec.convert_shard = functools.partial(dying_shard, markers=Path(markers))
    options = melspec.MelspecOptions(workers=int(workers))
    config = ConvertConfig(PRESETS["16k"], min_seconds=0.2)
    melspec.run_melspec(Path(src), Path(data) / "audioset_lms", config, options)
"""


def start(
    script: Path, src: Path, data: Path, workers: int, markers: Path | str = "", python: str = sys.executable
) -> subprocess.Popen[bytes]:
    """Start the job in its own process group; its workers have the same ``python``."""
    command = [python, str(script), str(src), str(data), str(workers), str(markers)]
    return subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL, env=ENVIRONMENT)


@pytest.fixture
def script(tmp_path: Path) -> Path:
    (tmp_path / "job.py").write_text(WORKERS)
    return tmp_path / "job.py"


def test_workers_killed_while_they_write(
    tmp_path: Path, src: Path, script: Path, serve: KillServer, warm_python: str
) -> None:
    (tmp_path / "markers").mkdir()
    assert start(script, src, tmp_path / "data", 2, tmp_path / "markers", warm_python).wait() == 0
    assert len(list((tmp_path / "markers").iterdir())) >= 3
    assert serve(src, tmp_path / "undisturbed")["exit"] == 0
    assert snapshot(tmp_path / "data") == snapshot(tmp_path / "undisturbed")


def kill_after_progress(process: subprocess.Popen[bytes], data: Path, arrays: int, delay: float) -> bool:
    """Kill the group a moment after ``arrays`` more files exist. Returns whether it was still running."""
    enough = len(list(data.rglob("*.npy"))) + arrays
    while len(list(data.rglob("*.npy"))) < enough and process.poll() is None:
        time.sleep(0.002)
    time.sleep(delay)
    killed = process.poll() is None
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return killed


@pytest.mark.parametrize(("workers", "kills"), [(0, 4), (2, 2)])
def test_the_process_group_killed_after_random_times(
    tmp_path: Path, script: Path, serve: KillServer, workers: int, kills: int
) -> None:
    src, data = tmp_path / "wavs", tmp_path / "data"
    for seed in range(40):
        write_wav(src / f"clip {seed}.wav", seed, seconds=8.0)
    assert serve(src, tmp_path / "undisturbed")["exit"] == 0
    rng = random.Random(1)
    killed = [
        kill_after_progress(start(script, src, data, workers), data, rng.randint(1, 6), rng.uniform(0, 0.03))
        for _ in range(kills)
    ]
    assert sum(killed) >= (kills + 1) // 2
    assert start(script, src, data, workers).wait() == 0
    assert snapshot(data) == snapshot(tmp_path / "undisturbed")


@pytest.mark.parametrize("half", [False, True], ids=["the same configuration", "another configuration"])
def test_replacing_a_conversion_survives_kills(tmp_path: Path, serve: KillServer, half: bool) -> None:
    """A good source has become bad meanwhile. The exchange is killed before each of its steps.

    With the same configuration, where nothing is set aside, before every other one.
    """
    data, saved, undisturbed = tmp_path / "data", tmp_path / "saved", tmp_path / "undisturbed"
    src = write_sources(tmp_path / "wavs", 6)
    serve(src, saved)
    (src / "train 1" / "clip 4.wav").write_bytes(b"RIFF")
    write_wav(src / "train 1" / "clip 1.wav", 77)
    shutil.copytree(saved, undisturbed)
    steps = serve(src, undisturbed, overwrite=True, half=half)["steps"]
    expected = snapshot(undisturbed)
    assert bool(list((undisturbed / "audioset_lms" / "_melspec").glob("earlier-*"))) == half

    def killed_in_the_exchange(step: int) -> bool:
        shutil.copytree(saved, data)
        assert serve(src, data, kill_before=step, overwrite=True, half=half)["exit"] == -signal.SIGKILL
        begun = (data / "audioset_lms/_melspec/exchange.json").exists()
        assert serve(src, data, overwrite=True, half=half)["exit"] == 0
        assert snapshot(data) == expected, f"killed before step {step} of {steps}"
        shutil.rmtree(data)
        return begun

    exchange = list(itertools.takewhile(killed_in_the_exchange, range(steps, 0, -1 if half else -2)))
    assert len(exchange) > 8
    for step in random.Random(6).sample(range(1, exchange[-1] - 2), 8):
        assert not killed_in_the_exchange(step)
