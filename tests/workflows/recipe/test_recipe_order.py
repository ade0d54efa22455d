"""The order of a recipe's stages, and the identities of files and folders."""

import os
from pathlib import Path

import pytest

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.files import write_json, write_text
from m2dprep.cli.recipe import all_stage_kinds
from m2dprep.workflows.recipe import state as recipe_identity
from m2dprep.workflows.recipe.recipe import Recipe, read_recipe
from m2dprep.workflows.recipe.stage_process import StageLog, last_line
from m2dprep.workflows.recipe.state import identity, same

KINDS = all_stage_kinds()
STAGES = {
    "melspec": 'melspec: {src: wavs, dst: "${data}/audioset_lms"}',
    "stats": 'stats: {lms: "${data}/audioset_lms"}',
    "pack": 'pack: {lms: "${data}/audioset_lms"}',
    "fill": "fill: {stage: captions fill, segments: s.csv, ontology: o.json, output: filled.parquet}",
    "add": "add: {stage: captions add, captions: filled.parquet, acalt4: a.csv, output: added.parquet}",
    "lint": 'lint: {stage: captions check, captions: added.parquet, drop: refusal, output: "${data}/captions.parquet"}',
    "look": 'look: {stage: captions check, captions: "${data}/captions.parquet"}',
    "list": "list: {stage: captions training-list, files_csv: d/files_audioset.csv, captions: d/captions.parquet}",
    "embed": 'embed: {stage: embed-captions, captions: "${data}/captions.parquet", out: "${data}/capemb_x"}',
    "check": "check:",
    "train": "train: {output: run}",
    "test": "test: {stage: zero-shot, checkpoint: run, clips_csv: c.csv, root: d}",
    "export": 'export: {stage: embeddings export m2d, store: "${data}/capemb_x", file: x.npy}',
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def recipe_of(folder: Path, *names: str, **others: str) -> Recipe:
    lines = "\n".join(f"  {others.get(name, STAGES.get(name))}" for name in names)
    (folder / "r.yaml").write_text(f"data: d\nstages:\n{lines}\n")
    return read_recipe(folder / "r.yaml", KINDS)


def needs(recipe: Recipe) -> dict[str, set[str]]:
    return {stage.name: set(stage.needs) for stage in recipe.stages}


def test_every_stage_waits_for_those_that_make_what_it_reads(folder: Path) -> None:
    recipe = recipe_of(folder, *STAGES)
    assert needs(recipe) == {
        "melspec": set(),
        "stats": {"melspec"},
        "pack": {"melspec"},
        "fill": set(),
        "add": {"fill"},
        "lint": {"add"},
        "look": {"lint"},
        "list": {"melspec", "lint"},
        "embed": {"lint"},
        "check": {"melspec", "stats", "pack", "lint", "list", "embed"},
        "train": {"melspec", "stats", "pack", "list", "embed"},
        "test": {"train", "melspec", "stats", "pack", "lint", "list", "embed"},
        "export": {"embed"},
    }
    assert recipe.waiting_for("embed") == {"embed", "check", "train", "test", "export"}
    assert recipe.needed_by("look") == {"fill", "add", "lint", "look"}


def test_where_a_stage_is_written_down_does_not_matter(folder: Path) -> None:
    recipe = recipe_of(folder, "train", "stats", "embed", "melspec", "lint", "add", "fill")
    assert [stage.name for stage in recipe.stages] == ["melspec", "stats", "fill", "add", "lint", "embed", "train"]


def test_training_waits_for_the_training_list_and_not_for_the_whole_one(folder: Path) -> None:
    recipe = recipe_of(folder, "melspec", "stats", "fill", "lint", "add", "list", "embed", "train")
    data = folder / "d"
    assert recipe.stage("list").writes == (data / "train_audioset.csv",)
    read = recipe.stage("train").reads
    assert data / "train_audioset.csv" in read
    assert data / "files_audioset.csv" not in read
    elsewhere = STAGES["list"].replace("}", ", output: mine.csv}")
    train = "train: {output: run, files: mine.csv}"
    recipe = recipe_of(
        folder, "melspec", "stats", "fill", "add", "lint", "list", "embed", "train", list=elsewhere, train=train
    )
    assert {folder / "mine.csv", data / "audioset_lms"} < set(recipe.stage("train").reads)


BAD = [
    (("fill", "again"), "both write", {"again": STAGES["fill"].replace("fill:", "again:")}),
    (("add",), "both reads and writes", {"add": STAGES["add"].replace("added.parquet", "filled.parquet")}),
    (
        ("add", "lint"),
        "stages wait for each other",
        {"add": STAGES["add"].replace("filled.parquet", "d/captions.parquet")},
    ),
]


@pytest.mark.parametrize(("names", "message", "stages"), BAD, ids=[message for _, message, _ in BAD])
def test_files_that_no_order_suits_are_refused_with_the_line(
    folder: Path, names: tuple[str, ...], message: str, stages: dict[str, str]
) -> None:
    with pytest.raises(UserError, match=rf"r\.yaml, line \d+: .*{message}"):
        recipe_of(folder, *names, **stages)


def test_training_on_named_lists_reads_the_log_mels_of_these(folder: Path) -> None:
    held_out = 'held_out: {stage: melspec, src: others, dst: "${data}/held_out_lms"}'
    train = "train: {output: run, files: d/files_audioset.csv}"
    recipe = recipe_of(folder, "melspec", "held_out", "stats", "embed", "train", held_out=held_out, train=train)
    assert needs(recipe)["train"] == {"melspec", "stats", "embed"}
    with_validation = train.replace("}", ", valid_files: d/files_held_out.csv}")
    recipe = recipe_of(
        folder, "melspec", "held_out", "stats", "embed", "train", held_out=held_out, train=with_validation
    )
    assert needs(recipe)["train"] == {"melspec", "held_out", "stats", "embed"}


def test_files_are_known_by_content_and_folders_by_what_describes_them(folder: Path) -> None:
    table = folder / "table.csv"
    write_text(table, "a,b\n")
    before = identity(table)
    os.utime(table, ns=(1, 1))
    assert before != identity(table)
    assert same(before, identity(table, before)), "only touched"
    write_text(table, "a,c\n")
    assert not same(before, identity(table, before)), "of the same size"
    assert identity(folder / "nothing") is None
    assert not same(before, None)

    wavs = folder / "wavs"
    (wavs / "sub").mkdir(parents=True)
    before = identity(wavs)
    write_text(wavs / "sub" / "new.wav", "")
    assert not same(before, identity(wavs))

    lms = folder / "a_lms"
    (lms / "_melspec").mkdir(parents=True)
    write_json(lms / "_melspec" / "config.json", {"fingerprint": "1"})
    write_text(lms / "_melspec" / "records-000000.parquet", "rows")
    before = identity(lms)
    (lms / "new.npy").touch()
    (lms / "_melspec" / "lock").touch()
    assert same(before, identity(lms))
    write_text(lms / "_melspec" / "records-000001.parquet", "rows")
    assert not same(before, identity(lms))


def test_a_folder_of_millions_is_not_walked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe_identity, "MAX_ENTRIES", 10)
    entered: list[str] = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: (entered.append(str(path)), scandir(path))[1])
    for number in range(30):
        (folder / f"{number:02d}").mkdir()
    assert identity(folder) is not None
    assert entered == [str(folder)]


def test_a_log_holds_of_a_bar_what_is_seen_in_the_end(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "stage.log"
    with StageLog(path, ["melspec", "a folder", "b"]) as log:
        for words in (b"one", b" line\n\rbar 1", b"\rbar 2\rbar", b" 3\n", b"\rnext 1\r"):
            log.write(words)
        monkeypatch.setattr("m2dprep.workflows.recipe.stage_process.BAR_SECONDS", 0.0)
        log.write(b"next 2")
        log.write(b"\rnext 3")
    lines = path.read_text().splitlines()
    assert lines[0].endswith(" m2dprep melspec 'a folder' b")
    assert lines[1:] == ["one line", "bar 3", "next 2", "next 3"]
    assert last_line(path) == "next 3"
    assert last_line(folder / "none.log") is None
