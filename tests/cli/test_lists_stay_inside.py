"""Paths of lists, records and packs stay inside their folder, whichever command reads them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from m2dprep.artifacts.digests import plain_digest
from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.json_files import read_object, write_object
from m2dprep.artifacts.layout import LmsLayout, inside, leads_out
from m2dprep.artifacts.tables import write_file_list, write_parquet
from m2dprep.audioprep.config import PRESETS, ConvertConfig
from m2dprep.audioprep.pack import pack
from m2dprep.training.config import DataChoice
from m2dprep.training.data_dir import open_training_data
from m2dprep.workflows.melspec.job import MelspecOptions, run_melspec
from tests.cli.invocation import refused, run

LEADING_OUT = ["../y_lms/a.npy", "/etc/passwd", "x_lms/../../a.npy", "x_lms/b/../../../a.npy", ".."]


@pytest.mark.parametrize("name", LEADING_OUT)
def test_names_that_lead_out(name: str, tmp_path: Path) -> None:
    assert leads_out(name)
    with pytest.raises(UserError, match="leads out"):
        inside(tmp_path, name)


@pytest.mark.parametrize("name", ["a..b/c.npy", "..a.npy", "a/...npy", "a..", "./a.npy"])
def test_names_that_do_not(name: str, tmp_path: Path) -> None:
    assert inside(tmp_path, name) == tmp_path / name


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A converted and packed folder in a data directory."""
    (tmp_path / "wavs").mkdir()
    for number in range(3):
        values = 0.1 * np.random.default_rng(number).standard_normal(16000)
        soundfile.write(tmp_path / "wavs" / f"{number}.wav", values, 16000)
    run_melspec(tmp_path / "wavs", tmp_path / "d" / "x_lms", ConvertConfig(PRESETS["16k"]), MelspecOptions(workers=0))
    return tmp_path / "d"


@pytest.mark.slow
@pytest.mark.parametrize("name", LEADING_OUT)
def test_lists(data: Path, name: str) -> None:
    write_file_list(data / "files_x.csv", ["x_lms/0.npy", "x_lms/1.npy", name])
    pq.write_table(pa.table({"clip_id": ["0"], "split": pa.array([None], pa.string())}), data / "captions.parquet")
    refused(run("stats", data / "x_lms", "--files", data / "files_x.csv"), 2, "files_x.csv, row", "leads out")
    refused(run("stats", data / "x_lms", "--recompute", "--files", data / "files_x.csv"), 2, "leads out")
    refused(run("captions", "training-list", data / "files_x.csv", data / "captions.parquet"), 2, "leads out")
    checked = run("check", data, "--workers", 0)
    assert checked.exit_code == 4
    assert f"{name!r} leads out" in checked.output


def test_training_through_a_pack_of_the_folder_above(make_data, tmp_path: Path) -> None:
    above = make_data(tmp_path / "above")
    pack(above / "made_lms")
    inner = above / "inner"
    inner.mkdir()
    for name in ("captions.parquet", "norm_stats.json"):
        shutil.copy(above / name, inner)
    shutil.copytree(above / "capemb_made", inner / "capemb_made")
    write_file_list(inner / "files_made.csv", [f"../made_lms/clip{number:04d}-{number % 4}.npy" for number in range(8)])
    for choice in (DataChoice(inner), DataChoice(above, held_out=(inner / "files_made.csv",))):
        with pytest.raises(UserError, match=r"files_made.csv, row 2: .* leads out"):
            open_training_data(choice, 80)


@pytest.mark.slow
@pytest.mark.parametrize("name", LEADING_OUT)
def test_records(data: Path, name: str) -> None:
    path = LmsLayout(data / "x_lms").melspec / "records-000000.parquet"
    table = pq.read_table(path)
    names = pa.array([name, *table["file_name"].to_pylist()[1:]])
    write_parquet(path, table.set_column(0, table.schema.field(0), names))
    for words in (["stats"], ["stats", "--recompute"], ["pack"]):
        refused(run(words[0], data / "x_lms", *words[1:]), 2, "records-000000.parquet, row 0", "leads out")
    refused(run("melspec", data.parent / "wavs", data / "x_lms", "--workers", 0), 2, "leads out")
    checked = run("check", data, "--workers", 0)
    assert checked.exit_code == 4
    assert "leads out" in checked.output


@pytest.mark.parametrize("name", LEADING_OUT)
def test_packs(data: Path, name: str, tmp_path: Path) -> None:
    pack(data / "x_lms")
    path = data / "x_lms" / "_packed" / "index.parquet"
    table = pq.read_table(path)
    names = pa.array([name, *table["file_name"].to_pylist()[1:]])
    write_parquet(path, table.set_column(0, table.schema.field(0), names))
    meta = read_object(path.with_name("meta.json")) or {}
    write_object(path.with_name("meta.json"), {**meta, "index_digest": plain_digest(path)})
    refused(run("unpack", data / "x_lms", "--output", tmp_path / "elsewhere"), 2, "leads out")
    refused(run("stats", data / "x_lms", "--recompute"), 2, "leads out")
    checked = run("check", data, "--workers", 0)
    assert checked.exit_code == 4
    assert "leads out" in checked.output


def test_links_lead_where_they_lead(data: Path) -> None:
    (data / "x_lms").rename(data.parent / "disk")
    (data / "x_lms").symlink_to(data.parent / "disk")
    assert run("stats", data / "x_lms", "--recompute", "--files", data / "files_x.csv").exit_code == 0
    assert run("check", data, "--workers", 0).exit_code == 0
