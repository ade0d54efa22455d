"""All tasks below a folder: prepared and downloaded ones, finished and failing ones, and the report after each."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from m2dprep.artifacts.errors import UserError
from m2dprep.evaluation.prepared import EvaluationSet
from m2dprep.evaluation.protocols.result import Result
from m2dprep.evaluation.reports.campaign import Campaign, Line, Runner, render, run_campaign
from tests.cli.invocation import run
from tests.evaluation.preparation.made_downloads import DOWNLOADS, touch, write
from tests.evaluation.reports.test_pages import Reader

ALL = ("zero-shot", "linear", "retrieval")


class Fake:
    """Notes what it is asked to run; fails for some tasks."""

    def __init__(self, failing: str = "", error: Callable[[], Exception] = lambda: UserError("no text model")) -> None:
        self.asked: list[tuple[str, str]] = []
        self.failing, self.error = failing, error

    def __call__(self, clips: EvaluationSet, protocol: str, folder: Path) -> Result:
        self.asked.append((clips.task.name, protocol))
        if clips.task.name == self.failing:
            raise self.error()
        columns = {"labels": [0] * len(clips.files), "predicted": [1] * len(clips.files), "classes": ["a", "b"]}
        return Result(protocol, clips.task.name, clips.task.metric, 0.5, n={"clips": len(clips.files)}).about(
            details={"files": clips.files, **columns}
        )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """CREMA-D prepared, ESC-50, FSD50K and Clotho as downloaded, a folder of holiday sounds, and another's list."""
    root = tmp_path / "data"
    for name in ("esc50", "fsd50k", "clotho"):
        DOWNLOADS[name](root / name, root / "lists")
    DOWNLOADS["cremad"](root / "crema", tmp_path / "lists")
    done = run(
        "evaluate", "prepare", "cremad", root / "crema", "--lists", tmp_path / "lists",
        "-o", root / "tasks" / "emotions", "--max-failures", "50%",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    touch(root, "holiday/beach/1.wav", "holiday/beach/2.wav", "notes.txt")
    return root


def campaign(root: Path, runner: Runner, model: str = "m", **more: object) -> list[Line]:
    settings = {"protocols": ALL, **more}
    said: list[str] = []
    return run_campaign(Campaign(root, root.parent / "report", {"checkpoint": model}, runner, **settings), said.append)  # type: ignore[arg-type]


EVERY = [
    ("cremad", "zero-shot"), ("cremad", "linear"), ("clotho", "retrieval"), ("esc50", "zero-shot"), ("esc50", "linear"),
    ("fsd50k", "zero-shot"),
]  # fmt: skip


@pytest.mark.slow
def test_every_task_is_run_once_and_finished_ones_are_skipped(root: Path) -> None:
    fake = Fake()
    lines = campaign(root, fake)
    assert sorted(fake.asked) == sorted(EVERY)
    assert not any(line.problem or line.skipped for line in lines)
    again = Fake()
    assert all(line.skipped for line in campaign(root, again))
    assert again.asked == []
    other = Fake()
    campaign(root, other, model="another")
    assert sorted(other.asked) == sorted(EVERY), "another model has no results yet"


@pytest.mark.slow
def test_a_changed_table_sound_or_result_is_run_again(root: Path) -> None:
    campaign(root, Fake())
    table = root / "tasks" / "emotions" / "metadata.csv"
    table.write_text(table.read_text().replace("ANG,test", "SAD,test"))
    result = root.parent / "report" / "results" / "esc50.linear.json"
    result.write_text(result.read_text().replace("0.5", "0.9"))
    fake = Fake()
    campaign(root, fake)
    assert sorted(fake.asked) == [("cremad", "linear"), ("cremad", "zero-shot"), ("esc50", "linear")]
    sound = next(path for path in sorted((root / "fsd50k").rglob("*.wav")) if "eval" in str(path))
    sound.write_bytes(b"another recording")
    later = root.parent / "report" / "results" / "clotho.retrieval.json"
    failure = {"file_name": "a.wav", "reason": "transient", "message": "the disk did not answer"}
    later.write_text(json.dumps({**json.loads(later.read_text()), "failures": [failure]}))
    names = root / "tasks" / "emotions" / "labels.csv"
    names.write_text("label,name\nANG,someone shouting\n")
    fake = Fake()
    campaign(root, fake)
    assert sorted(fake.asked) == [
        ("clotho", "retrieval"), ("cremad", "linear"), ("cremad", "zero-shot"), ("fsd50k", "zero-shot")
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "error", [lambda: UserError("no text model"), lambda: RuntimeError("out of memory\nlong trace")]
)
def test_a_failure_is_a_row_and_stops_nothing(root: Path, error: Callable[[], Exception]) -> None:
    fake = Fake("esc50", error)
    lines = campaign(root, fake)
    assert sorted(fake.asked) == sorted(EVERY)
    failed = [line for line in lines if line.problem]
    assert {line.task for line in failed} == {"esc50"}
    assert {line.problem for line in failed} <= {"no text model", "RuntimeError: out of memory"}
    value = json.loads((root.parent / "report" / "report.json").read_text())
    assert [row["task"] for row in value["rows"] if row["problem"]] == ["esc50", "esc50"]
    later = Fake()
    campaign(root, later)
    assert later.asked == [("esc50", "zero-shot"), ("esc50", "linear")], "only what failed is run again"


@pytest.mark.slow
def test_the_report_has_the_papers_beside_and_links_to_pages(root: Path) -> None:
    lines = campaign(root, Fake())
    text = render(lines)
    header, *rows = text.splitlines()
    assert "M2D-CLAP 2024" in header
    assert "50.00" in rows[0]
    assert any("96.3 ± 0.3" in row and row.startswith("esc50") for row in rows)
    report = root.parent / "report"
    page = Reader((report / "report.html").read_text())
    assert len(page.links) == len(EVERY)
    for link in page.links:
        inner = Reader((report / link).read_text())
        for player in inner.links:
            assert (report / "results" / player).resolve().exists() or "%" in player
    assert "75.45" in (report / "report.md").read_text()


def test_only_some_protocols_and_tasks(root: Path) -> None:
    fake = Fake()
    campaign(root, fake, protocols=("linear",), only=("esc50", "clotho"))
    assert fake.asked == [("esc50", "linear")]
    with pytest.raises(UserError, match="holds no task nope; prepared there are cremad"):
        campaign(root, fake, only=("esc50", "nope"))
    assert len(fake.asked) == 1


@pytest.mark.slow
def test_a_data_set_that_cannot_be_prepared_is_a_row(root: Path) -> None:
    write(root / "esc50" / "ESC-50-master" / "meta" / "esc50.csv", "filename,fold\n1.wav,1\n")
    lines = campaign(root, Fake())
    assert [line.task for line in lines if line.problem] == ["esc50"]
    assert "category" in next(line.problem for line in lines if line.problem)


def test_two_sets_of_one_task_have_results_of_their_own(root: Path) -> None:
    run("evaluate", "prepare", "esc50", root / "esc50", "-o", root / "tasks" / "a", "--max-failures", "50%")
    run("evaluate", "prepare", "esc50", root / "esc50", "-o", root / "tasks" / "b", "--max-failures", "50%")
    stems = [line.stem for line in campaign(root, Fake(), only=("esc50",))]
    assert len(set(stems)) == len(stems) == 4


@pytest.mark.slow
def test_a_data_set_that_lacks_a_list_is_a_row_that_says_where_it_is(root: Path) -> None:
    """CREMA-D's names have six emotions."""
    touch(root, *(f"more/AudioWAV/1001_DFA_{emotion}_XX.wav" for emotion in ("ANG", "DIS", "FEA", "HAP", "NEU", "SAD")))
    for path in (root / "tasks" / "emotions").iterdir():
        path.unlink()
    lines = campaign(root, Fake())
    assert [line.task for line in lines if line.problem] == ["cremad"]
    assert "cremad.csv" in next(line.problem for line in lines if line.problem)


def test_nothing_to_run(tmp_path: Path) -> None:
    touch(tmp_path / "data", "a/1.wav")
    with pytest.raises(UserError, match="holds no task"):
        campaign(tmp_path / "data", Fake())
