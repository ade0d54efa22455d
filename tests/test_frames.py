"""What a notebook asks for, it gets as DataFrames; nothing else imports pandas."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import m2dprep
from m2dprep.artifacts.embeddings.store import index_of
from m2dprep.artifacts.embeddings.writer import EmbeddingStoreWriter
from m2dprep.artifacts.layout import LmsLayout
from m2dprep.artifacts.log_mels.records import append_records
from m2dprep.artifacts.tables import CAPTIONS_SCHEMA, write_captions

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ["artifacts", "audioprep", "captions", "cli", "evaluation", "m2dclap", "training", "workflows"]
ROWS = [
    {"clip_id": "a", "caption": "A dog barks.", "source": "s", "caption_index": 0, "split": None, "labels": ["Dog"]},
    {"clip_id": "a", "caption": "See www.a.com", "source": "s", "caption_index": 1, "split": "t", "labels": None},
]


@pytest.fixture
def captions(tmp_path: Path) -> Path:
    write_captions(tmp_path / "captions.parquet", pa.Table.from_pylist(ROWS, schema=CAPTIONS_SCHEMA))
    return tmp_path / "captions.parquet"


@pytest.mark.parametrize("kind", [Path, str])
def test_captions(captions: Path, kind: type) -> None:
    frame = m2dprep.read_captions(kind(captions))
    assert isinstance(frame, pd.DataFrame)
    assert list(frame.columns) == CAPTIONS_SCHEMA.names
    assert frame["caption"].tolist() == [row["caption"] for row in ROWS]
    assert list(frame["labels"][0]) == ["Dog"]
    assert list(m2dprep.read_captions(captions, ["split"]).columns) == ["split"]


@pytest.mark.slow
def test_faults(captions: Path) -> None:
    frame = m2dprep.find_faults(captions)
    assert frame[["row", "rule"]].values.tolist() == [[1, "url"]]
    assert m2dprep.find_faults(captions, ["empty"]).empty


def test_records(tmp_path: Path) -> None:
    layout = LmsLayout(tmp_path / "x_lms")
    layout.melspec.mkdir(parents=True)
    rows = [("b", "ok"), ("a", "failed")]
    append_records(
        layout,
        [{"file_name": f"{n}.npy", "source": f"{n}.wav", "clip_id": n, "status": status} for n, status in rows],
    )
    frame = m2dprep.read_records(str(layout.root))
    assert frame["source"].tolist() == ["a.wav", "b.wav"]
    assert frame["status"].value_counts().to_dict() == {"ok": 1, "failed": 1}


def test_the_index_of_a_store(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(ROWS, schema=CAPTIONS_SCHEMA)
    writer = EmbeddingStoreWriter(tmp_path / "store", index_of(table), 4, "float16", {"model": "m", "captions": "x"})
    writer.write_shard(np.arange(2), np.ones((2, 4), np.float16), np.arange(2), {})
    writer.finish({"counts": writer.counts})
    frame = m2dprep.read_index(tmp_path / "store")
    assert frame["clip_id"].tolist() == ["a", "a"]
    assert frame["caption_index"].tolist() == [0, 1]


def test_what_is_missing_is_an_error_for_people(tmp_path: Path) -> None:
    for read in (m2dprep.read_captions, m2dprep.read_records, m2dprep.read_index, m2dprep.find_faults):
        with pytest.raises(m2dprep.UserError, match="nothing"):
            read(tmp_path / "nothing")


def test_nothing_else_imports_pandas() -> None:
    """Apart from the types of what is returned, which no run of the code imports."""
    wanted = re.compile(r"^\s*(?:import|from) pandas\b", re.MULTILINE)
    types_alone = re.compile(r"^if TYPE_CHECKING:\n(?:    .*\n)+", re.MULTILINE)
    for path in (path for room in ROOMS for path in (ROOT / room).rglob("*.py")):
        assert not wanted.search(types_alone.sub("", path.read_text())), path
