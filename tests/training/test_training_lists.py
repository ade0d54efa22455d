"""The training list: read in place of the whole list, and refused once that list has changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.tables import read_captions, read_file_list, write_captions, write_file_list
from m2dprep.training.config import DataChoice
from m2dprep.training.data_dir import TrainingData, open_training_data
from tests.cli.invocation import run

pytestmark = pytest.mark.slow

EVALUATION = ["clip0000-0", "clip0005-1"]


@pytest.fixture
def data(make_data: Callable[..., Path], tmp_path: Path) -> Path:
    """A data directory in which two clips are AudioSet's evaluation clips by their captions."""
    data = make_data(tmp_path / "data", clips=8)
    captions = read_captions(data / "captions.parquet")
    splits = ["eval" if clip in EVALUATION else "balanced_train" for clip in captions["clip_id"].to_pylist()]
    at = captions.schema.get_field_index("split")
    write_captions(data / "captions.parquet", captions.set_column(at, captions.schema.field(at), [splits]))
    return data


def training_list(data: Path, *more: object, code: int = 0) -> None:
    result = run("captions", "training-list", data / "files_made.csv", data / "captions.parquet", *more)
    assert result.exit_code == code, result.output


def opened(data: Path, **choice: object) -> TrainingData:
    return open_training_data(DataChoice(data, **choice), 80)  # type: ignore[arg-type]


def trained(found: TrainingData) -> set[str]:
    return {Path(name).stem for name in found.training.log_mels.file_names.to_pylist()}


def test_it_is_read_in_place_of_the_whole_list(data: Path) -> None:
    assert set(EVALUATION) < trained(opened(data))
    training_list(data)
    found = opened(data)
    assert not trained(found) & set(EVALUATION)
    assert len(found) == 6
    assert found.notes[:2] == ["files listed in train_made.csv", "train_made.csv is read in place of files_made.csv"]
    named = opened(data, file_lists=(data / "files_made.csv",))
    assert set(EVALUATION) < trained(named), "a list that is named is read as it is"


def test_lists_without_one_are_read_beside_it(data: Path) -> None:
    names = read_file_list(data / "files_made.csv")
    write_file_list(data / "files_made.csv", names[:6])
    write_file_list(data / "files_more.csv", names[6:])
    training_list(data)
    found = opened(data)
    assert found.notes[0] == "files listed in train_made.csv, files_more.csv"
    assert len(found) == 6


def test_a_list_that_grew_makes_it_out_of_date(data: Path) -> None:
    names = read_file_list(data / "files_made.csv")
    write_file_list(data / "files_made.csv", names[:6])
    training_list(data)
    write_file_list(data / "files_made.csv", names)
    with pytest.raises(UserError, match=r"train_made\.csv was made from an earlier files_made\.csv.*training-list"):
        opened(data)
    checked = run("check", data, "--workers", 0)
    assert checked.exit_code == 4
    assert "was made from an earlier files_made.csv" in checked.output
    training_list(data, code=5)
    training_list(data, "--overwrite")
    assert len(opened(data)) == 6


def test_a_list_that_was_only_written_again_does_not(data: Path) -> None:
    training_list(data)
    write_file_list(data / "files_made.csv", read_file_list(data / "files_made.csv"))
    assert len(opened(data)) == 6
    assert run("check", data, "--workers", 0).output.count("train_made") == 0


def test_one_that_grew_by_evaluation_clips_only_is_current_once_made_again(data: Path) -> None:
    """The list stays as it is, and only the note beside it changes: also after a kill between the two."""
    names = read_file_list(data / "files_made.csv")
    write_file_list(data / "files_made.csv", [name for name in names if EVALUATION[0] not in name])
    training_list(data)
    before = (data / "train_made.csv").read_bytes()
    write_file_list(data / "files_made.csv", names)
    with pytest.raises(UserError, match="earlier"):
        opened(data)
    training_list(data)
    assert (data / "train_made.csv").read_bytes() == before
    assert len(opened(data)) == 6


def test_one_of_ones_own_is_taken_as_it_is(data: Path) -> None:
    names = read_file_list(data / "files_made.csv")
    (data / "train_made.csv").write_text("file_name\n" + "\n".join(names[:3]) + "\n")
    assert len(opened(data)) == 3
    (data / "train_other.csv").write_text("clip,caption\n1,2\n")
    assert len(opened(data)) == 3, "not a list: there is no files_other.csv"


def test_it_is_checked_as_the_whole_list_is(data: Path) -> None:
    training_list(data)
    with (data / "train_made.csv").open("a") as file:
        file.write("made_lms/clip0000-0.npy\n")
    checked = run("check", data, "--workers", 0)
    assert checked.exit_code == 4
    assert "train_made.csv is not as m2dprep wrote it" in checked.output
    accepted = run("check", data, "--workers", 0, "--accept", "train_made.csv")
    assert "train_made.csv: taken as it is, with 7 files" in accepted.stderr
    origin = json.loads((data / "train_made.csv.json").read_text())
    assert origin["list"] == "files_made.csv"
