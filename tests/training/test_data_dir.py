"""A data directory opens with everything left out counted and named, or it is refused with the reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from m2dprep.artifacts.embeddings.m2d_dictionary import write_dictionary
from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.files import write_json
from m2dprep.artifacts.json_files import write_object
from m2dprep.artifacts.layout import LmsLayout
from m2dprep.artifacts.log_mels.records import write_config
from m2dprep.artifacts.tables import read_captions, read_file_list, write_captions, write_file_list
from m2dprep.audioprep.config import PRESETS, ConvertConfig
from m2dprep.audioprep.pack import pack
from m2dprep.training.config import DataChoice
from m2dprep.training.data_dir import open_training_data, write_skipped
from tests.conftest import write_store

MakeData = Callable[..., Path]


@pytest.fixture
def data(make_data: MakeData, tmp_path: Path) -> Path:
    return make_data(tmp_path / "data", clips=8)


def test_everything_is_used_where_all_fits(data: Path) -> None:
    opened = open_training_data(DataChoice(data), 80)
    assert opened.summary() == "8 files listed = 8 used + 0 without captions + 0 unreadable"
    assert opened.notes == ["files listed in files_made.csv", "captions of capemb_made (16 rows)"]
    assert opened.captions.dim == 16
    assert opened.stats == (-9.5, 2.5)
    assert opened.front_end == PRESETS["16k"]
    assert opened.text_model is not None
    assert opened.text_model["model"] == "made-up"


def test_what_is_left_out_is_named(data: Path) -> None:
    names = read_file_list(data / "files_made.csv")
    (data / names[0]).write_bytes((data / names[0]).read_bytes()[:-100])
    (data / names[1]).unlink()
    np.save(data / names[2], np.zeros((1, 40, 100), np.float32))
    np.save(data / "made_lms/stranger.npy", np.zeros((1, 80, 100), np.float32))
    write_file_list(data / "files_more.csv", [*names[:4], "made_lms/stranger.npy"])
    opened = open_training_data(DataChoice(data), 80)
    assert opened.summary() == "9 files listed = 5 used + 1 without captions + 3 unreadable"
    assert opened.training.log_mels.file_names.to_pylist() == names[3:]
    write_skipped(data / "skipped.csv", opened.skipped)
    lines = (data / "skipped.csv").read_text().splitlines()
    assert lines[0] == "file_name,reason,message"
    assert [line.split(",")[:2] for line in lines[1:]] == [
        ["made_lms/stranger.npy", "no_captions"],
        *([name, "unreadable"] for name in names[:3]),
    ]


def rename(data: Path, *names: str) -> None:
    """Give the first log-mels other names, below made_lms, on disk and in the list."""
    listed = read_file_list(data / "files_made.csv")
    for old, new in zip(listed, names, strict=False):
        (data / "made_lms" / new).parent.mkdir(parents=True, exist_ok=True)
        (data / old).rename(data / "made_lms" / new)
    write_file_list(data / "files_made.csv", [*(f"made_lms/{name}" for name in names), *listed[len(names) :]])


def test_a_caption_lands_on_no_other_clip_of_the_same_name(data: Path) -> None:
    """Clips of classes in folders share stems; a stem that two listed files share is the clip of neither."""
    before = read_file_list(data / "files_made.csv")
    first = Path(before[0]).name
    rename(data, f"dog/{first}", f"cat/{first}")
    opened = open_training_data(DataChoice(data), 80)
    assert opened.summary() == "8 files listed = 6 used + 0 without captions + 2 of shared names + 0 unreadable"
    assert opened.notes[-1].startswith(
        f"listed files without captions since others may have the same clip: 2, such as made_lms/cat/{first} and "
        f"made_lms/dog/{first} may both be the clip {Path(first).stem!r}"
    )
    assert {skip.reason for skip in opened.skipped} == {"shared_name"}
    # even if one of them is held out
    lists = data / "files_made.csv", data / "held.csv"
    write_file_list(lists[1], [f"made_lms/dog/{first}", *before[2:4]])
    opened = open_training_data(DataChoice(data, (lists[0],), held_out=(lists[1],)), 80)
    assert opened.summary().startswith("8 files listed = 4 used + 2 held out + 0 without captions + 2 of shared names")
    # and a clip without captions never gets those of its namesake, which alone is listed
    write_file_list(lists[0], [f"made_lms/dog/{first}", *before[2:]])
    assert open_training_data(DataChoice(data), 80).summary().startswith("7 files listed = 7 used")


def test_a_pack_of_other_mel_bins_is_left_out(data: Path) -> None:
    listed = read_file_list(data / "files_made.csv")
    names = [Path(name).name for name in listed[:2]]
    (data / "narrow_lms").mkdir()
    for name in names:
        np.save(data / "narrow_lms" / name, np.zeros((1, 40, 100), np.float32))
    write_file_list(data / "files_narrow.csv", [f"narrow_lms/{name}" for name in names])
    write_file_list(data / "files_made.csv", listed[2:])
    pack(data / "narrow_lms")
    pack(data / "made_lms")
    opened = open_training_data(DataChoice(data), 80)
    assert opened.summary() == "8 files listed = 6 used + 0 without captions + 2 unreadable"
    assert opened.training.log_mels.packed == 6
    assert {skip.message for skip in opened.skipped} == {"its pack has 40 mel bins, not 80."}


def test_chosen_lists_and_dictionaries(data: Path) -> None:
    names = read_file_list(data / "files_made.csv")
    write_file_list(data / "some.csv", names[:3])
    ids = [Path(name).stem for name in names[:2]]
    write_dictionary(data / "capemb.npy", {clip: np.ones(5, np.float16) for clip in ids})
    opened = open_training_data(DataChoice(data, (data / "some.csv",), (), (data / "capemb.npy",)), 80)
    assert opened.summary() == "3 files listed = 2 used + 1 without captions + 0 unreadable"
    assert (opened.captions.dim, opened.text_model) == (5, None)


def test_front_end_is_the_log_mels_own(data: Path) -> None:
    (data / "made_lms/_melspec").mkdir()
    write_config(LmsLayout(data / "made_lms"), ConvertConfig(PRESETS["32k"]).to_dict(), {})
    assert open_training_data(DataChoice(data), 80).front_end == PRESETS["32k"]


def test_mixed_front_ends_are_refused(data: Path) -> None:
    (data / "other_lms").mkdir()
    name = read_file_list(data / "files_made.csv")[0]
    (data / "other_lms" / Path(name).name).write_bytes((data / name).read_bytes())
    write_file_list(data / "files_other.csv", [f"other_lms/{Path(name).name}"])
    for folder, rate in (("made_lms", "16k"), ("other_lms", "32k")):
        (data / folder / "_melspec").mkdir()
        write_config(LmsLayout(data / folder), ConvertConfig(PRESETS[rate]).to_dict(), {})
    with pytest.raises(UserError, match="sample_rate: 16000 → 32000"):
        open_training_data(DataChoice(data), 80)
    assert len(open_training_data(DataChoice(data, (data / "files_made.csv",)), 80)) == 8


@pytest.mark.slow
@pytest.mark.parametrize(
    ("breaking", "message"),
    [
        (lambda data: (data / "norm_stats.json").unlink(), "m2dprep stats"),
        (lambda data: write_json(data / "norm_stats.json", {"mean": 1}), "no mean and std"),
        (lambda data: write_json(data / "norm_stats.json", {"mean": 1, "std": 0}), "cannot normalise"),
        (lambda data: (data / "files_made.csv").unlink(), "m2dprep melspec"),
        (lambda data: (data / "files_made.csv").write_text("sound\na.npy\n"), "file_name"),
        (lambda data: (data / "files_made.csv").write_text("file_name\n"), "lists no files"),
        (lambda data: (data / "files_made.csv").write_text("file_name\n../x/clip0000-0.npy\n"), "leads out of"),
        (lambda data: write_file_list(data / "files_made.csv", ["made_lms/other.npy"]), "clip ids like"),
        (lambda data: (data / "capemb_made").rename(data / "away"), "embed-captions"),
        (lambda data: (data / "capemb_made" / "meta.json").unlink(), "meta.json"),
        (lambda data: [path.unlink() for path in data.glob("made_lms/*.npy")], "none of the 8 listed"),
    ],
)
def test_what_cannot_be_used_says_why(data: Path, breaking: Callable[[Path], object], message: str) -> None:
    breaking(data)
    with pytest.raises(UserError, match=message):
        open_training_data(DataChoice(data), 80)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        open_training_data(DataChoice(tmp_path / "nowhere"), 80)


def test_stores_of_different_models_are_not_mixed(data: Path) -> None:
    second = data / "capemb_second"
    second.mkdir()
    for path in (data / "capemb_made").iterdir():
        (second / path.name).write_bytes(path.read_bytes())
    meta = json.loads((second / "meta.json").read_text())
    write_object(second / "meta.json", {**meta, "pooling": "cls"})
    with pytest.raises(UserError, match="pooling: 'mean' → 'cls'"):
        open_training_data(DataChoice(data), 80)
    assert len(open_training_data(DataChoice(data, (), (second,)), 80)) == 8


def test_captions_in_two_stores_are_not_trained_on_twice(data: Path) -> None:
    """As after `captions add` and `embed-captions --reuse` into a second store beside the first."""
    captions = read_captions(data / "captions.parquet")
    more = [{**captions.slice(0, 1).to_pylist()[0], "caption": "a new one", "caption_index": 2}]
    captions = pa.concat_tables([captions, pa.Table.from_pylist(more, schema=captions.schema)])
    write_captions(data / "captions.parquet", captions)
    (note,) = open_training_data(DataChoice(data), 80).notes[2:]
    assert "capemb_made is not of captions.parquet as it is now" in note
    assert "has 16 rows, the captions have 17" in note
    assert "embed-captions --overwrite" in note
    write_store(data / "capemb_more", captions, np.ones((17, 16)))
    with pytest.raises(UserError, match=r"capemb_made and capemb_more hold 16 captions both, .*--embeddings"):
        open_training_data(DataChoice(data), 80)
    opened = open_training_data(DataChoice(data, stores=(data / "capemb_more",)), 80)
    assert opened.notes[1:] == ["captions of capemb_more (17 rows)"]
    both = open_training_data(DataChoice(data, stores=(data / "capemb_made", data / "capemb_more")), 80)
    assert [note.split(",")[0] for note in both.notes[1:3]] == [
        "captions of capemb_made (16 rows)",
        "capemb_made and capemb_more hold 16 captions both",
    ]


def test_stores_of_different_captions_are_trained_on_together(data: Path) -> None:
    captions = read_captions(data / "captions.parquet")
    other = captions.set_column(1, captions.schema.field(1), pa.array([f"other {n}" for n in range(16)]))
    write_store(data / "capemb_other", other, np.ones((16, 16)))
    (data / "captions.parquet").unlink()
    opened = open_training_data(DataChoice(data), 80)
    assert opened.notes[1:] == ["captions of capemb_made (16 rows), capemb_other (16 rows)"]


def test_a_folder_of_log_mels_is_no_data_directory(tmp_path: Path, make_data: Callable[..., Path]) -> None:
    data = make_data(tmp_path / "data", clips=4, frames=60)
    for folder in (data / "made_lms", data / "other"):
        (folder / "_melspec").mkdir(parents=True, exist_ok=True)
        with pytest.raises(UserError, match=f"is a folder of log-mels; DATA is .*: {data}"):
            open_training_data(DataChoice(folder), 80)


STATISTICS: dict[str, tuple[str, str, str]] = {
    "of another folder here": ("other_lms", "", r"is that of other_lms, and files of made_lms are trained on"),
    "of an earlier conversion": ("made_lms", "0123456789abcdef", "is that of an earlier conversion of made_lms"),
}


@pytest.mark.parametrize(("folder", "fingerprint", "message"), STATISTICS.values(), ids=STATISTICS)
def test_statistics_of_other_log_mels_are_refused(data: Path, folder: str, fingerprint: str, message: str) -> None:
    (data / "other_lms").mkdir()
    write_config(made_layout(data), ConvertConfig(PRESETS["16k"]).to_dict(), {})
    write_object(data / "norm_stats.json", {"mean": -9.5, "std": 2.5, "folder": folder, "fingerprint": fingerprint})
    with pytest.raises(UserError, match=f"{message}.*m2dprep stats .*made_lms"):
        open_training_data(DataChoice(data), 80)


def test_statistics_of_another_data_set_are_told(data: Path) -> None:
    write_object(data / "norm_stats.json", {"mean": -9.5, "std": 2.5, "folder": "audioset_lms", "fingerprint": "x"})
    assert any(
        "is that of audioset_lms, which is not here" in line for line in open_training_data(DataChoice(data), 80).notes
    )


def test_a_list_that_is_not_as_it_was_written_is_used_and_told(data: Path) -> None:
    path = data / "files_made.csv"
    path.write_text("\n".join(path.read_text().split("\n")[:-2]) + "\n")
    opened = open_training_data(DataChoice(data), 80)
    assert len(opened) == 7
    assert any("files_made.csv is not as m2dprep wrote it" in line for line in opened.notes)


def made_layout(data: Path) -> LmsLayout:
    layout = LmsLayout(data / "made_lms")
    layout.melspec.mkdir(exist_ok=True)
    return layout
