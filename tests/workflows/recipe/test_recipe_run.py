"""Recipes that run: which stages are skipped or repeated and why, kills, signals, failures, files changed in place.

Real commands on ten short recordings, without a text model or training, so that a run takes seconds.
"""

import fcntl
import json
import os
import pty
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner, Result

from m2dprep.artifacts.json_files import write_object
from m2dprep.artifacts.tables import read_captions, read_file_list
from m2dprep.cli.main import m2dprep

pytestmark = pytest.mark.slow

CLIPS = [f"clip{number:07d}" for number in range(10)]
RECIPE = """
data: data
workers: 0
stages:
  melspec: {src: wavs, dst: "${data}/audioset_lms"}
  stats: {lms: "${data}/audioset_lms"}
  fill:
    stage: captions fill
    segments: segments.csv
    ontology: ontology.json
    auto_acd: auto_acd.csv
    output: ${data}/captions.parquet
  acalt4: {stage: captions add, captions: "${data}/captions.parquet", acalt4: acalt4.csv}
  list: {stage: captions training-list, files_csv: "${data}/files_audioset.csv", captions: "${data}/captions.parquet"}
  lint: {stage: captions check, captions: "${data}/captions.parquet", findings: findings.csv}
"""
ALL = ["melspec", "stats", "fill", "acalt4", "list", "lint"]


def make_sources(folder: Path) -> None:
    """Recordings, tables like AudioSet's, and the recipe."""
    rng = np.random.default_rng(0)
    (folder / "wavs").mkdir(parents=True)
    for clip in CLIPS:
        soundfile.write(folder / f"wavs/{clip}.wav", rng.uniform(-0.5, 0.5, 3200), 16000)
    rows = "".join(f'{clip}, 0.000, 10.000, "/m/1"\n' for clip in CLIPS)
    captioned = "".join(f"Y{clip},A dog barks.\n" for clip in CLIPS[:5])
    four = ",".join(f"caption{number}" for number in range(1, 5))
    tables = {
        "segments.csv": f"# a\n# b\n# YTID\n{rows}",
        "ontology.json": json.dumps([{"id": "/m/1", "name": "Dog"}]),
        "auto_acd.csv": f"youtube_id,caption\n{captioned}",
        "acalt4.csv": f"youtube_id,{four}\n{CLIPS[0]},a bark,barking,dog heard,woof\n",
        "recipe.yaml": RECIPE,
    }
    for name, text in tables.items():
        (folder / name).write_text(text)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with everything that the recipe needs, in which nothing has run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    make_sources(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which everything has run once."""
    folder = tmp_path_factory.mktemp("finished") / "project"
    make_sources(folder)
    result = CliRunner().invoke(m2dprep, ["run", "--json", str(folder / "recipe.yaml")])
    assert result.exit_code == 0, result.output
    assert [stage["status"] for stage in json.loads(result.stdout)["stages"]] == ["done"] * len(ALL)
    return folder


@pytest.fixture
def after_a_run(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it in another place: paths in recipes and states are relative to the recipe."""
    folder = tmp_path / "copied"
    shutil.copytree(finished, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return folder


def run(*arguments: str) -> Result:
    return CliRunner().invoke(m2dprep, ["run", *arguments])


def ran(*arguments: str, code: int = 0) -> dict[str, str]:
    """The outcome of every stage in a run."""
    result = run("--json", *arguments)
    assert result.exit_code == code, result.output
    return {stage["stage"]: stage["status"] for stage in json.loads(result.stdout)["stages"]}


def plan(*arguments: str) -> dict[str, tuple[str, str]]:
    result = run("--dry-run", "--json", *arguments)
    assert result.exit_code == 0, result.output
    return {item["stage"]: (item["action"], item["reason"]) for item in json.loads(result.stdout)["plan"]}


def states() -> dict[str, dict[str, object]]:
    result = CliRunner().invoke(m2dprep, ["status", "--json"])
    assert result.exit_code == 0, result.output
    return {stage["stage"]: stage for stage in json.loads(result.stdout)["stages"]}


def change(old: str, new: str) -> None:
    text = Path("recipe.yaml").read_text()
    assert old in text
    Path("recipe.yaml").write_text(text.replace(old, new))


def done(*names: str) -> dict[str, str]:
    """The outcome with these stages done and all others skipped."""
    return {name: "done" if name in names else "skipped" for name in ALL}


def contents() -> dict[str, bytes]:
    """Everything that the stages made."""
    made = [path for path in Path("data").rglob("*") if path.is_file() and "_recipe" not in path.parts]
    kept = [path for path in made if path.name not in ("lock", "config.json")]
    return {str(path): path.read_bytes() for path in [*kept, Path("findings.csv")]}


def wait_for(condition: Callable[[], object], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited for too long"
        time.sleep(0.01)


def test_a_plan_leaves_nothing(here: Path) -> None:
    assert {action for action, _ in plan().values()} == {"run"}
    assert not Path("data").exists()
    assert {stage["state"] for stage in states().values()} == {"remaining"}


def test_what_is_done_is_skipped_and_what_changed_is_done_again_with_what_depends_on_it(after_a_run: Path) -> None:
    assert len(read_captions(Path("data/captions.parquet"))) == 14
    first = contents()
    assert ran() == done()
    assert {stage["state"] for stage in states().values()} == {"done"}

    change("output: ${data}", "debias: true\n    output: ${data}")  # no caption mentions a man
    assert plan()["fill"] == ("redo", "debias: the default → true")
    assert plan()["acalt4"] == ("redo", "after fill, unless that leaves all as it was")
    assert states()["fill"]["state"] == "outdated"
    assert ran() == done("fill")  # the same captions came out, so nothing after it is done again
    assert contents() == first

    change("auto_acd: auto_acd.csv", "template: This is {label}.")
    assert ran() == done("fill", "acalt4", "list", "lint")
    captions = read_captions(Path("data/captions.parquet"))["caption"].to_pylist()
    assert captions[:6] == ["This is Dog.", "a bark", "barking", "dog heard", "woof", "This is Dog."]

    change("workers: 0", "workers: 1")  # it changes how the stage works, not what it makes
    assert ran() == done()
    for path in (Path("segments.csv"), Path("wavs") / f"{CLIPS[0]}.wav"):
        os.utime(path)
    assert ran() == done(), "a file that was only touched is the same"


def test_other_inputs_lost_outputs_and_requests_are_seen(after_a_run: Path) -> None:
    with Path("acalt4.csv").open("a") as table:
        table.write(f"{CLIPS[1]},b,c,d,e\n")
    assert plan()["acalt4"] == ("redo", "acalt4.csv has changed")
    assert plan()["fill"][0] == "skip"
    assert ran() == done("acalt4", "list", "lint")
    assert len(read_captions(Path("data/captions.parquet"))) == 18, "added to what fill left, not to what it had become"

    Path("data/norm_stats.json").unlink()
    assert plan()["stats"] == ("run", "data/norm_stats.json is missing")
    assert ran() == done("stats")
    soundfile.write("wavs/new.wav", np.zeros(3200), 16000)
    assert ran()["melspec"] == "done"
    assert "audioset_lms/new.npy" in read_file_list(Path("data/files_audioset.csv"))
    assert ran("--redo", "lint") == done("lint")
    assert ran("--until", "fill") == {name: "skipped" if name == "fill" else "left out" for name in ALL}
    assert {name for name, status in ran("--from", "acalt4").items() if status == "skipped"} == {
        "acalt4",
        "list",
        "lint",
    }
    unknown = run("--from", "acalt5")
    assert unknown.exit_code == 2
    assert "no stage 'acalt5'; did you mean 'acalt4'?" in unknown.stderr


def test_a_file_changed_by_hand_is_made_again_and_kept(after_a_run: Path) -> None:
    table = Path("data/captions.parquet")
    ours = table.read_bytes()
    command = ["captions", "add", str(table), "--csv", "acalt4.csv", "--source", "mine"]
    assert CliRunner().invoke(m2dprep, command).exit_code == 0
    theirs = table.read_bytes()
    assert plan()["acalt4"] == ("run", "data/captions.parquet was changed since")
    result = run()
    assert result.exit_code == 0
    assert table.read_bytes() == ours
    (kept,) = Path("data/_recipe/recipe/versions").glob("found--*")
    assert kept.read_bytes() == theirs
    assert str(kept) in result.stderr


def test_outputs_of_other_settings_are_replaced_unless_they_took_long(after_a_run: Path) -> None:
    change("src: wavs", "src: wavs, dtype: float16")
    assert plan()["melspec"] == ("redo", "dtype: the default → float16")
    assert ran()["melspec"] == "done"
    assert np.load(f"data/audioset_lms/{CLIPS[0]}.npy").dtype == np.float16
    state = Path("data/_recipe/recipe/state.json")
    value = json.loads(state.read_text())
    value["stages"]["melspec"]["worked_seconds"] = 7200.0
    write_object(state, value)
    change("dtype: float16", "dtype: float32")
    before = contents()
    refused = run()
    assert refused.exit_code == 5
    assert "which took 2:00:0" in refused.stderr
    assert "--overwrite" in refused.stderr
    assert contents() == before
    assert ran("--overwrite")["melspec"] == "done"
    assert np.load(f"data/audioset_lms/{CLIPS[0]}.npy").dtype == np.float32


def test_what_others_made_is_not_replaced(here: Path) -> None:
    made = CliRunner().invoke(m2dprep, ["melspec", "wavs", "data/audioset_lms", "--dtype", "float16", "--workers", "0"])
    assert made.exit_code == 0, made.output
    before = sorted(Path("data").rglob("*"))
    refused = run("--until", "melspec")
    assert refused.exit_code == 5
    assert "dtype: 'float16' → 'float32'" in refused.stderr
    assert sorted(path for path in Path("data").rglob("*") if "_recipe" not in path.parts) == before
    assert ran("--until", "melspec", "--overwrite")["melspec"] == "done"


def test_a_failure_stops_what_depends_on_it_and_its_code_passes_through(here: Path) -> None:
    for clip in CLIPS[:3]:
        (Path("wavs") / f"{clip}.wav").write_bytes(b"no sound")
    result = run("--json")
    assert result.exit_code == 3
    value = {stage["stage"]: stage for stage in json.loads(result.stdout)["stages"]}
    assert {name: stage["status"] for name, stage in value.items()} == {
        "melspec": "failed", "stats": "blocked", "fill": "done", "acalt4": "done", "list": "blocked", "lint": "done",
    }  # fmt: skip
    assert value["melspec"]["exit_code"] == 3
    assert "melspec (exit code 3: too many failures)" in result.stderr
    assert "stats, list wait for it" in result.stderr
    assert "3 failed" in Path("data/_recipe/recipe/melspec.log").read_text()
    assert states()["melspec"]["state"] == "failed"
    change("src: wavs", "src: wavs, max_failures: 30%")
    assert ran() == done("melspec", "stats", "list")


def start(here: Path) -> subprocess.Popen[bytes]:
    """A run as a process of its own; its stages begin slowly enough to be hit."""
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "m2dprep", "run", "--json"],
        cwd=here,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=listen_to_sigint,
    )


def listen_to_sigint() -> None:
    """Tests in the background of a shell ignore SIGINT, and so would the processes that they start."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def running(name: str) -> int | None:
    """The process id of a stage that is being worked on."""
    try:
        record = json.loads(Path("data/_recipe/recipe/state.json").read_text())["stages"][name]
    except (FileNotFoundError, KeyError):
        return None
    pid: int | None = record.get("pid") if record["status"] == "running" else None
    return pid


def test_killed_anywhere_the_same_command_goes_on_to_the_same_bytes(after_a_run: Path) -> None:
    expected = contents()
    shutil.rmtree("data")
    Path("findings.csv").unlink()
    for name in ("melspec", "acalt4", "list"):
        process = start(after_a_run)
        wait_for(lambda name=name: running(name))
        pid = running(name)
        assert pid is not None
        shown = states()[name]
        assert shown["state"] == "running"
        assert str(pid) in str(shown["progress"])
        refused = run()
        assert refused.exit_code == 2
        assert "another run" in refused.stderr
        process.kill()
        process.communicate()
        wait_for(lambda pid=pid: not Path("/proc", str(pid)).exists())  # a stage does not outlive its run
        assert states()[name]["state"] == "killed"
        assert plan()[name] == ("run", "goes on: it was killed")
    assert ran() == done("list", "lint")
    assert contents() == expected


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGUSR1, 75)])
def test_signals_reach_the_stage_and_the_run_says_how_to_go_on(
    after_a_run: Path, number: signal.Signals, code: int
) -> None:
    change("auto_acd: auto_acd.csv", "template: This is {label}.")
    process = start(after_a_run)
    wait_for(lambda: running("fill"))
    pid = running("fill")
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert b"`m2dprep run recipe.yaml` goes on there" in err
    assert not Path("/proc", str(pid)).exists()
    statuses = {stage["stage"]: stage["status"] for stage in json.loads(out)["stages"]}
    assert statuses["fill"] in ("stopped", "done"), "done where it had just ended"
    assert "acalt4" not in statuses
    assert ran("--until", "acalt4")["acalt4"] == "done"
    assert len(read_captions(Path("data/captions.parquet"))) == 14


def test_status_of_a_data_directory_and_of_a_recipe_that_is_gone(after_a_run: Path) -> None:
    empty = CliRunner().invoke(m2dprep, ["status", "wavs"])
    assert empty.exit_code == 2
    assert "no recipe has run here" in empty.stderr
    for _ in range(2):
        shown = CliRunner().invoke(m2dprep, ["status", "data"])
        assert shown.exit_code == 0, shown.output
        assert "recipe.yaml" in shown.stdout
        assert [line.split()[:2] for line in shown.stdout.splitlines() if line.startswith("fill")] == [["fill", "done"]]
        Path("recipe.yaml").unlink(missing_ok=True)


def test_on_a_terminal_bars_are_drawn_and_the_log_stays_short(after_a_run: Path) -> None:
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    shutil.rmtree("data")
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "m2dprep", "run", "--until", "melspec"], stderr=its, stdout=subprocess.DEVNULL
    )
    os.close(its)
    seen = b""
    while True:
        try:
            words = os.read(ours, 4096)
        except OSError:  # the other side of the terminal is closed
            break
        seen += words
    os.close(ours)
    assert process.wait() == 0, seen
    assert b"| 0/10" in seen
    assert b"| 10/10" in seen
    log = Path("data/_recipe/recipe/melspec.log").read_text()
    assert "| 0/10" not in log
    assert "| 10/10" in log
