"""`check` finds every way in which the files of a data directory can disagree, and no problem in a sound one."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from click.testing import CliRunner

from m2dprep.artifacts.embeddings.store import index_of
from m2dprep.artifacts.embeddings.writer import EmbeddingStoreWriter
from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.json_files import read_object, write_object
from m2dprep.artifacts.layout import LmsLayout
from m2dprep.artifacts.log_mels.records import append_records, read_records, write_config
from m2dprep.artifacts.tables import CAPTIONS_SCHEMA, read_captions, write_captions, write_file_list
from m2dprep.artifacts.training_lists import write_origin
from m2dprep.audioprep.config import PRESETS, ConvertConfig
from m2dprep.audioprep.stats import norm_stats, write_norm_stats
from m2dprep.cli.main import m2dprep
from m2dprep.workflows.check.job import run_checks
from m2dprep.workflows.check.result import CheckResult, summary
from m2dprep.workflows.melspec.job import MelspecOptions, run_melspec

CLIPS = ["Yaaaaaaaaaaa", "Ybbbbbbbbbbb", "plain"]
IDS = ["aaaaaaaaaaa", "bbbbbbbbbbb", "plain"]


def write_store(data: Path, name: str = "capemb_tiny") -> None:
    captions = read_captions(data / "captions.parquet")
    writer = EmbeddingStoreWriter(data / name, index_of(captions), 4, "float16", {"model": "tiny"})
    rows = np.arange(captions.num_rows)
    writer.write_shard(rows, np.random.default_rng(0).standard_normal((len(rows), 4)), rows)
    writer.finish({})


def caption_rows() -> list[dict]:
    rows = [(clip, index) for clip in IDS for index in range(2)]
    return [
        {
            "clip_id": clip,
            "caption": f"{clip} {index}",
            "source": "x",
            "caption_index": index,
            "split": None,
            "labels": [],
        }
        for clip, index in rows
    ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("whole")
    rng = np.random.default_rng(0)
    for name in CLIPS:
        (root / "wavs").mkdir(exist_ok=True)
        soundfile.write(root / "wavs" / f"{name}.wav", 0.1 * rng.standard_normal(16000), 16000)
    data = root / "data"
    run_melspec(root / "wavs", data / "audioset_lms", ConvertConfig(PRESETS["16k"]), MelspecOptions(workers=0))
    write_norm_stats(data / "norm_stats.json", norm_stats(data / "audioset_lms"))
    write_captions(data / "captions.parquet", pa.Table.from_pylist(caption_rows(), schema=CAPTIONS_SCHEMA))
    write_store(data)
    return data


@pytest.fixture
def data(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "data")
    return tmp_path / "data"


def problems(data: Path, **settings: bool) -> dict[str, list[str]]:
    results = run_checks(data, workers=0, **settings)
    return {result.check: [f"{p.item}: {p.message}" for p in result.problems] for result in results if result.problems}


def states(data: Path) -> dict[str, str]:
    return {result.check: result.state for result in run_checks(data, workers=0)}


def test_a_name_that_two_listed_files_share_is_no_caption_of_theirs(data: Path) -> None:
    """A table's clip `plain` may belong to either folder; `dog/plain` belongs to one."""
    lms = data / "audioset_lms"
    for folder in ("dog", "cat"):
        (lms / folder).mkdir()
        shutil.copy(lms / "plain.npy", lms / folder / "plain.npy")
    listed = [f"audioset_lms/{name}.npy" for name in ("cat/plain", "dog/plain", *CLIPS[:2])]
    write_file_list(data / "files_audioset.csv", listed)
    for check in ("every clip captioned", "embeddings"):
        line, *others = problems(data)[check]
        assert "same clip: 2, such as audioset_lms/cat/plain.npy and audioset_lms/dog/plain.npy may both" in line
        assert [other.partition(":")[0] for other in others] == listed[:2]
    rows = [{**row, "clip_id": row["clip_id"].replace("plain", "dog/plain")} for row in caption_rows()]
    write_captions(data / "captions.parquet", pa.Table.from_pylist(rows, schema=CAPTIONS_SCHEMA))
    assert problems(data)["every clip captioned"] == [f"{listed[0]}: has no caption"]


def test_what_a_training_list_leaves_out_needs_no_caption(data: Path) -> None:
    """Training never reads it; the notes say how many files that are."""
    rows = [row for row in caption_rows() if row["clip_id"] != "plain"]
    write_captions(data / "captions.parquet", pa.Table.from_pylist(rows, schema=CAPTIONS_SCHEMA))
    shutil.rmtree(data / "capemb_tiny")
    write_store(data)
    listed = [f"audioset_lms/{name}.npy" for name in CLIPS]
    assert problems(data)["every clip captioned"] == ["audioset_lms/plain.npy: has no caption"]
    for kept, missing in ((listed[:2], []), (listed, ["audioset_lms/plain.npy"])):
        write_file_list(data / "train_audioset.csv", kept)
        write_origin(data / "train_audioset.csv", data / "files_audioset.csv")
        found = problems(data)
        assert [line.partition(":")[0] for line in found.get("every clip captioned", [])] == missing
        assert [line.partition(":")[0] for line in found.get("embeddings", [])] == missing
    write_file_list(data / "train_audioset.csv", listed[1:2])
    write_origin(data / "train_audioset.csv", data / "files_audioset.csv")
    (lists,) = (result for result in run_checks(data, workers=0) if result.check == "file lists")
    assert "training lists leave out 2 files, which need no captions" in lists.notes


def test_two_conversions_of_a_clip_share_its_caption(data: Path) -> None:
    """The two conversions are never trained on together, so neither takes the caption from the other."""
    shutil.copytree(data / "audioset_lms", data / "wide_lms")
    config = json.loads((data / "wide_lms/_melspec/config.json").read_text())
    (data / "wide_lms/_melspec/config.json").write_text(json.dumps({**config, "fingerprint": "other"}))
    write_file_list(data / "files_wide.csv", [f"wide_lms/{name}.npy" for name in CLIPS])
    assert "every clip captioned" not in problems(data)


def test_what_fits_has_no_problems(whole: Path) -> None:
    assert set(states(whole).values()) == {"ok"}


def change(path: Path, edit: Callable[[np.ndarray], np.ndarray]) -> None:
    np.save(path, edit(np.load(path)))


def truncate(data: Path) -> None:
    path = data / "audioset_lms/plain.npy"
    path.write_bytes(path.read_bytes()[:-100])


def alter_value(data: Path) -> None:
    change(
        data / "audioset_lms/plain.npy",
        lambda array: np.where(np.arange(array.shape[2]) == 7, -1.0, array).astype("f4"),
    )


def drop_caption(data: Path) -> None:
    rows = [row for row in caption_rows() if row["clip_id"] != "plain"]
    write_captions(data / "captions.parquet", pa.Table.from_pylist(rows, schema=CAPTIONS_SCHEMA))
    shutil.rmtree(data / "capemb_tiny")
    write_store(data)


def reorder_captions(data: Path) -> None:
    rows = caption_rows()
    rows[0], rows[5] = rows[5], rows[0]
    write_captions(data / "captions.parquet", pa.Table.from_pylist(rows, schema=CAPTIONS_SCHEMA))


def reword_caption(data: Path) -> None:
    rows = caption_rows()
    rows[4]["caption"] = "reworded"
    write_captions(data / "captions.parquet", pa.Table.from_pylist(rows, schema=CAPTIONS_SCHEMA))


def claim_an_array_twice(data: Path) -> None:
    layout = LmsLayout(data / "audioset_lms")
    row = read_records(layout).to_pylist()[0]
    append_records(layout, [{**row, "source": "another.flac"}])


def repeat_caption(data: Path) -> None:
    rows = caption_rows()
    write_captions(data / "captions.parquet", pa.Table.from_pylist([*rows, rows[0]], schema=CAPTIONS_SCHEMA))


def spoil_embedding(value: float) -> Callable[[Path], None]:
    def spoil(data: Path) -> None:
        embeddings = np.load(data / "capemb_tiny/embeddings.npy", mmap_mode="r+")
        embeddings[3] = value
        embeddings.flush()

    return spoil


def edit_json(name: str, **values: object) -> Callable[[Path], None]:
    def edit(data: Path) -> None:
        path = data / name
        write_object(path, {**(read_object(path) or {}), **values})

    return edit


LISTED = [f"audioset_lms/{name}.npy" for name in CLIPS]
FAULTS: list[tuple[Callable[[Path], object], str, str]] = [
    (truncate, "arrays", r"plain\.npy is not a whole \.npy file"),
    (lambda data: (data / LISTED[2]).unlink(), "arrays", "no such file"),
    (lambda data: change(data / LISTED[2], lambda array: array[0]), "arrays", r"shape \(80, 611\)"),
    (lambda data: change(data / LISTED[2], lambda array: array[:, :79]), "arrays", r"shape \(1, 79, 611\)"),
    (
        lambda data: change(data / LISTED[2], lambda array: array[..., :600]),
        "arrays",
        "600 frames, its record promises 611",
    ),
    (lambda data: change(data / LISTED[2], lambda array: array.astype("f2") + 1), "arrays", "values have changed"),
    (lambda data: change(data / LISTED[2], lambda array: array * np.nan), "arrays", "not finite"),
    (alter_value, "arrays", "values have changed"),
    (lambda data: shutil.copy(data / LISTED[0], data / "audioset_lms/stray.npy"), "conversions", "no good record"),
    (edit_json("audioset_lms/_melspec/config.json", config={"dtype": "x"}), "conversions", "fingerprint"),
    (lambda data: (data / "audioset_lms/_melspec/config.json").unlink(), "conversions", "missing"),
    (claim_an_array_twice, "conversions", "Yaaaaaaaaaaa.npy: has 2 good records"),
    (
        lambda data: (data / "audioset_lms/_melspec/records-000000.parquet").write_bytes(b""),
        "conversions",
        "records-000000",
    ),
    (lambda data: write_file_list(data / "files_audioset.csv", []), "file lists", "lists no files"),
    (lambda data: write_file_list(data / "files_audioset.csv", [*LISTED, LISTED[0]]), "file lists", "more than once"),
    (
        lambda data: write_file_list(data / "files_audioset.csv", [*LISTED, "audioset_lms/./plain.npy"]),
        "file lists",
        r"audioset_lms/plain.npy is listed more than once",
    ),
    (lambda data: write_file_list(data / "files_audioset.csv", ["../x.npy"]), "file lists", "leads out"),
    (
        lambda data: write_file_list(data / "files_audioset.csv", ["a/eval_segments/x.npy"]),
        "file lists",
        "evaluation clip",
    ),
    (lambda data: write_file_list(data / "files_audioset.csv", ["audioset_lms/new.npy"]), "conversions", "no record"),
    (lambda data: (data / "files_audioset.csv").write_text("name\nx\n"), "file lists", "file_name"),
    (drop_caption, "every clip captioned", r"plain\.npy: has no caption"),
    (drop_caption, "embeddings", r"plain\.npy: has no embedding in capemb_tiny"),
    (
        reorder_captions,
        "embeddings",
        "row 0 is caption 0 of clip 'aaaaaaaaaaa', the captions have caption 1 of clip 'plain'",
    ),
    (reword_caption, "embeddings", "row 4"),
    (repeat_caption, "captions", "has 2 captions with index 0"),
    (lambda data: (data / "captions.parquet").write_bytes(b"x"), "captions", r"captions\.parquet"),
    (spoil_embedding(float("inf")), "embeddings", "row 3: holds values that are not finite"),
    (spoil_embedding(0.0), "embeddings", "row 3: is all zeros"),
    (lambda data: (data / "capemb_tiny/meta.json").unlink(), "embeddings", "meta.json"),
    (edit_json("capemb_tiny/meta.json", rows=7), "embeddings", "promises"),
    (edit_json("norm_stats.json", std=0.0), "statistics", "cannot normalise"),
    (edit_json("norm_stats.json", fingerprint="other"), "statistics", "another configuration"),
    (lambda data: (data / "norm_stats.json").write_text("{"), "statistics", "cannot be read"),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "check", "message"), FAULTS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_every_fault_is_found(data: Path, fault: Callable[[Path], object], check: str, message: str) -> None:
    fault(data)
    found = problems(data)
    assert any(re.search(message, line) for line in found.get(check, [])), found


def pack(data: Path, *options: str) -> None:
    result = CliRunner().invoke(m2dprep, ["pack", str(data / "audioset_lms"), *options])
    assert result.exit_code == 0, result.output


def test_float32_where_float16_is_promised_is_found(whole: Path, data: Path) -> None:
    half = ConvertConfig(PRESETS["16k"], dtype="float16")
    run_melspec(whole.parent / "wavs", data / "audioset_lms", half, MelspecOptions(workers=0, overwrite=True))
    assert "arrays" not in problems(data)
    change(data / LISTED[2], lambda array: array.astype("f4"))
    assert "is float32, its configuration promises float16" in problems(data)["arrays"][0]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_pack_stands_for_arrays_that_are_gone(data: Path, dtype: str) -> None:
    pack(data, "--dtype", dtype)
    assert problems(data) == {}
    for name in LISTED:
        (data / name).unlink()
    assert problems(data) == {}


def test_a_pack_with_other_values_is_found(data: Path) -> None:
    pack(data)
    shard = next((data / "audioset_lms/_packed").glob("*.npy"))
    np.save(shard, np.load(shard) + 1)
    assert all("is damaged: the clip in row" in line for line in problems(data)["arrays"])
    shard.write_bytes(shard.read_bytes()[:-64])
    assert "promises" in problems(data)["conversions"][0]


def test_quick_reads_no_values(data: Path) -> None:
    alter_value(data)
    assert problems(data, quick=True) == {}
    truncate(data)
    assert list(problems(data, quick=True)) == ["arrays"]


def test_parts_that_are_not_there_are_absent_not_failed(data: Path) -> None:
    for path in (data / "captions.parquet", data / "norm_stats.json"):
        path.unlink()
    shutil.rmtree(data / "capemb_tiny")
    found = states(data)
    assert {check for check, state in found.items() if state == "absent"} == {
        "statistics",
        "captions",
        "every clip captioned",
        "embeddings",
    }
    assert "FAILED" not in found.values()


def test_nothing_to_check_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no file list"):
        run_checks(tmp_path, workers=0)
    with pytest.raises(UserError, match="no such folder"):
        run_checks(tmp_path / "missing", workers=0)


def test_command_exits_4_with_the_list_and_0_without(data: Path) -> None:
    good = CliRunner().invoke(m2dprep, ["check", str(data), "--workers", "0"])
    assert good.exit_code == 0, good.output
    drop_caption(data)
    bad = CliRunner().invoke(m2dprep, ["check", str(data), "--workers", "0"])
    assert bad.exit_code == 4
    assert "has no caption" in bad.stdout
    assert "Traceback" not in bad.output
    machine = CliRunner().invoke(m2dprep, ["check", str(data), "--workers", "0", "--json"])
    parsed = {result["check"]: result["state"] for result in json.loads(machine.stdout)}
    assert parsed["every clip captioned"] == "FAILED"


def test_result_states() -> None:
    result = CheckResult("x")
    assert result.state == "ok"
    result.absent = "nothing"
    assert result.state == "absent"
    result.problem("a", "b")
    assert result.state == "FAILED"


def as_an_earlier_version_wrote_it(data: Path) -> None:
    """The same directory without a digest anywhere."""
    for path in data.rglob("*.json"):
        value = read_object(path) or {}
        gone = ("digests", "block_bytes", "odd_rows", "index_digest", "generation", "folder", "files")
        path.write_text(json.dumps({key: value[key] for key in value if key not in gone}, indent=2) + "\n")
    for path in data.rglob("*.parquet"):
        table = pq.read_table(path)
        pq.write_table(table.drop_columns([name for name in ("digest",) if name in table.column_names]), path)
        table = pq.read_table(path)
        pq.write_table(table.replace_schema_metadata(None), path)
    for path in data.rglob("*.xxh3"):
        path.unlink()


@pytest.mark.slow
def test_a_directory_of_an_earlier_version_is_checked_as_before_and_said_to_lack_digests(data: Path) -> None:
    pack(data)
    as_an_earlier_version_wrote_it(data)
    results = run_checks(data, workers=0)
    assert problems(data) == {}
    notes = " ".join(note for result in results for note in result.notes)
    for what in (
        "10 of them have no digest",
        "3 arrays have no digest: only their moments were compared",
        "audioset_lms/_packed has no digests",
        "capemb_tiny has no digests",
    ):
        assert what in notes, notes
    for option in ("--json", "--quick"):
        assert CliRunner().invoke(m2dprep, ["check", str(data), "--workers", "0", option]).exit_code == 0
    alter_value(data)
    assert "values have changed" in problems(data)["arrays"][0]


@pytest.mark.parametrize("column", ["clip_id", "caption", "source"])
def test_text_of_an_earlier_version_that_is_not_utf8_is_told(data: Path, column: str) -> None:
    as_an_earlier_version_wrote_it(data)
    table = pq.read_table(data / "captions.parquet")
    texts = pa.array([b"\xff\xfe", *[b"x"] * (table.num_rows - 1)], pa.binary())
    spoilt = pa.Array.from_buffers(pa.string(), len(texts), texts.buffers())
    pq.write_table(
        table.set_column(table.column_names.index(column), column, spoilt), data / "captions.parquet", compression=None
    )
    result = CliRunner().invoke(m2dprep, ["check", str(data), "--workers", "0"])
    assert result.exit_code == 4
    assert f"row 0 of the column {column} is not UTF-8" in result.output


@pytest.mark.parametrize("quick", [False, True])
def test_arrays_that_the_disk_cannot_read_are_problems_of_their_own(
    data: Path, quick: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path, **_: object) -> object:
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr("m2dprep.workflows.check.arrays.lms_form", fail)
    monkeypatch.setattr("m2dprep.workflows.check.arrays.read_lms", fail)
    found = problems(data, quick=quick)
    assert found == {"arrays": [f"{data / name}: cannot be read: Input/output error" for name in LISTED]}


def test_what_nobody_foresaw_is_a_problem_and_hides_nothing(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("m2dprep.workflows.check.job.read_captions", lambda path: 1 / 0)
    drop_list = data / LISTED[2]
    drop_list.unlink()
    found = problems(data)
    assert "ZeroDivisionError" in found["captions"][0]
    assert "no such file" in found["arrays"][0]


@pytest.mark.slow
@pytest.mark.parametrize("key", ["mean", "std", "count_files", "count_values", "bin_mean", "bin_std", "excluded_files"])
def test_statistics_that_are_not_those_of_the_records_are_told(data: Path, key: str) -> None:
    value = (read_object(data / "norm_stats.json") or {})[key]
    changed = [number + 1e-3 for number in value] if isinstance(value, list) else value + 1
    edit_json("norm_stats.json", **{key: changed})(data)
    assert f"{key} is " in problems(data)["statistics"][0]
    assert "`m2dprep stats` computes it anew" in problems(data)["statistics"][0]


@pytest.mark.parametrize("of", ["list", "arrays", "by hand"])
def test_statistics_are_compared_with_what_they_say_they_are_of(data: Path, of: str) -> None:
    if of == "list":
        write_file_list(data / "files_some.csv", LISTED[:2])
        write_norm_stats(data / "norm_stats.json", norm_stats(data / "audioset_lms", files=data / "files_some.csv"))
    elif of == "arrays":
        write_norm_stats(data / "norm_stats.json", norm_stats(data / "audioset_lms", recompute=True))
    else:
        value = read_object(data / "norm_stats.json") or {}
        kept = {key: value[key] for key in ("mean", "std", "fingerprint")}
        (data / "norm_stats.json").write_text(json.dumps(kept))
    assert problems(data) == {}
    (notes,) = [result.notes for result in run_checks(data, workers=0) if result.check == "statistics"]
    assert ("was not compared" in " ".join(notes)) == (of == "by hand")


def test_a_configuration_of_another_folder_is_told(data: Path, tmp_path: Path) -> None:
    config = data / "audioset_lms/_melspec/config.json"
    other = ConvertConfig(PRESETS["16k"], min_seconds=5).to_dict()
    write_config(LmsLayout(data / "audioset_lms"), other, {"source_root": "/elsewhere"})
    assert config.exists()
    found = problems(data)["files"]
    assert any("was not written beside this config.json" in line for line in found)


def second_folder(data: Path, clips: int = 2) -> Path:
    """Another conversion in the data directory, of louder sounds; its list is `files_other.csv`."""
    for number in range(clips):
        noise = 0.8 * np.random.default_rng(50 + number).uniform(-1, 1, 8000)
        (data.parent / "others").mkdir(exist_ok=True)
        soundfile.write(data.parent / "others" / f"{number}.wav", noise, 16000)
    run_melspec(data.parent / "others", data / "other_lms", ConvertConfig(PRESETS["16k"]), MelspecOptions(workers=0))
    return data / "other_lms"


@pytest.mark.parametrize("quick", [True, False])
def test_statistics_of_a_folder_that_no_list_names_are_told(data: Path, quick: bool) -> None:
    write_norm_stats(data / "norm_stats.json", norm_stats(second_folder(data)))
    assert "statistics" not in problems(data, quick=quick), "both are listed"
    (data / "files_other.csv").unlink()
    (data / "files_other.csv.xxh3").unlink()
    (message,) = problems(data, quick=quick)["statistics"]
    assert "is that of other_lms, and the lists name files of audioset_lms only" in message


def test_statistics_of_a_folder_that_is_not_here_are_those_of_another_or_told(data: Path) -> None:
    mine = read_object(data / "norm_stats.json") or {}
    write_object(data / "norm_stats.json", {**mine, "folder": "renamed_lms"})
    assert "statistics" not in problems(data)
    theirs = norm_stats(second_folder(data)).to_dict()
    shutil.rmtree(data / "other_lms")
    for path in data.glob("files_other.csv*"):
        path.unlink()
    write_object(data / "norm_stats.json", theirs)
    (message,) = problems(data)["statistics"]
    assert "norm_stats.json: is that of other_lms, which is not here: count_" in message


EDITS: dict[str, Callable[[str], str]] = {
    "a line less": lambda text: text[: text.rindex("\n", 0, -1) + 1],
    "a comment's worth of space": lambda text: text + "\n",
    "another order": lambda text: "\n".join([*text.split("\n")[:1], *reversed(text.split("\n")[1:-1]), ""]),
}


@pytest.mark.slow
@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_a_list_that_was_edited_is_taken_when_its_owner_says_so(data: Path, edit: Callable[[str], str]) -> None:
    path = data / "files_audioset.csv"
    path.write_text(edit(path.read_text()))
    command = ["check", str(data), "--workers", "0"]
    refused = CliRunner().invoke(m2dprep, command)
    assert refused.exit_code == 4
    assert f"`m2dprep check {data} --accept files_audioset.csv` takes it" in refused.output
    result = CliRunner().invoke(m2dprep, [*command, "--accept", "files_audioset.csv"])
    assert result.exit_code == 0, result.output
    assert "files_audioset.csv: taken as it is, with" in result.stderr
    assert CliRunner().invoke(m2dprep, command).exit_code == 0
    path.write_text(path.read_text().replace("aaaa", "aaab"))
    assert CliRunner().invoke(m2dprep, command).exit_code == 4, "what happens to it later is told again"


@pytest.mark.parametrize("name", ["files_none.csv", "norm_stats.json", "../files_audioset.csv"])
def test_only_lists_of_the_data_directory_are_accepted(data: Path, name: str) -> None:
    result = CliRunner().invoke(m2dprep, ["check", str(data), "--workers", "0", "--accept", name])
    assert result.exit_code == 2
    assert "has no such list; it has files_audioset.csv" in result.output


def test_what_is_no_list_is_not_accepted(data: Path) -> None:
    (data / "files_mine.csv").write_text("file_name\n../outside.npy\n")
    result = CliRunner().invoke(m2dprep, ["check", str(data), "--workers", "0", "--accept", "files_mine.csv"])
    assert result.exit_code == 2
    assert not (data / "files_mine.csv.xxh3").exists()


def test_a_problem_is_one_line_whatever_the_name() -> None:
    result = CheckResult("captions")
    result.problem("a\nb\x1b.npy", "has no\ncaption")
    lines = summary([result]).split("\n")
    assert len(lines) == 2
    assert lines[0].endswith("1 problem")
    assert all(line.isprintable() for line in lines)
